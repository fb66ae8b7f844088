"""The circle: draw candidates from a model, let a person or a scorer choose between them, and train on the choices.

`journal` keeps what must not be lost; `candidates` is the line that is drawn, and `drawing` draws it. `choices` is what
a person said, `agreement` how far that can be trusted, `desk` who is shown what; `server` lets a browser ask the desk.
"""

READING_ORDER = ("journal", "candidates", "drawing", "choices", "agreement", "desk", "server", "__main__")
