"""Ctrl-C and SIGTERM outside the steps of a run; within them the step is finished first (run/interrupt.py)."""

import os
import signal
import sys
from pathlib import Path

from dpo_min.system.launcher import first_process


def on_signals(handler):
    """Let both signals be handled so."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def interrupt(number, frame):
    """The first signal becomes a KeyboardInterrupt; those that follow must not disturb what it does."""
    on_signals(signal.SIG_IGN)
    raise KeyboardInterrupt


def quit_at_once(number, frame):
    """Leave as if killed, which a run survives, but with a line: modules and C++ take no exception everywhere."""
    if first_process():
        name = Path(sys.argv[0]).name
        hint = "; if the run had begun, --resume goes on" if name == "train.py" else ""
        os.write(2, f"{name}: stopped at once{hint}\n".encode())
    os._exit(130)
