"""What a program needs from the machine it runs on: streams, whole files, signals, flags, one line for an error.

Nothing here knows of models or preferences, and only devices.py loads PyTorch.
"""

READING_ORDER = (
    "packages",
    "text",
    "streams",
    "progress",
    "files",
    "launcher",
    "signals",
    "program",
    "kinds",
    "flags",
    "picture",
    "devices",
)
