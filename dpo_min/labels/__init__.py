"""The circle: draw candidates from a model, let a person or a scorer choose between them, and train on the choices.

`journal` keeps what must not be lost, `candidates` is the line that is drawn, and `drawing` draws it.
"""

READING_ORDER = ("journal", "candidates", "drawing")
