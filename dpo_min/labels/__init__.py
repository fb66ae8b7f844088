"""The circle: draw candidates from a model, let a person or a scorer choose between them, and train on the choices.

`journal` keeps what must not be lost; `candidates` is the line that is drawn, and `drawing` draws it. `choices` is what
a person said, `agreement` how far that can be trusted, `desk` who is shown what; `server` lets a browser ask the desk.
`verdicts` says which answers win by a scorer, `implicit` is the scorer that a model is, and `scored` asks any of them.
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
