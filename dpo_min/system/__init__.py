"""What a program needs from the machine it runs on: whole files, flags, streams, signals, one line for an error.

Nothing here knows of models or preferences, and only devices.py loads PyTorch.
"""

READING_ORDER = ("text", "files", "flags", "launcher", "streams", "progress", "signals", "program", "devices")
