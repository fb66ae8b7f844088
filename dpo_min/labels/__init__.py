"""The circle: draw candidates from a model, let a person or a scorer choose between them, and train on the choices.

`journal` keeps what must not be lost, and `candidates` is the line that is drawn.
"""

READING_ORDER = ("journal", "candidates")
