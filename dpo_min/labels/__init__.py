"""The circle: draw candidates from a model, let a person or a scorer choose between them, and train on the choices.

`journal` keeps what must not be lost, `candidates` reads the answers to choose between, and `drawing` draws them.
`choices` keeps what a person chose, `agreement` measures its noise, `desk` decides who is shown what, and `server` lets
a browser ask the desk. `verdicts` finds the better answer by a scorer, `implicit` makes a model a scorer, and `scored`
labels by any scorer.
"""

READING_ORDER = (
    "journal",
    "candidates",
    "drawing",
    "choices",
    "agreement",
    "desk",
    "server",
    "verdicts",
    "implicit",
    "scored",
    "__main__",
)
