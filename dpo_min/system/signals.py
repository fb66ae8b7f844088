"""Ctrl-C, SIGTERM and a terminal that is closed, outside the steps of a run; within them the step is finished first."""

import os
import signal

from dpo_min.system.launcher import program_name, rank
from dpo_min.system.streams import say_at_once

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def on_signals(handler):
    """Let them be handled so; returns what they did before. What was ignored stays so: by nohup, or behind a script."""
    heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


def interrupt(number, frame):
    """The first signal becomes a KeyboardInterrupt; those that follow must not disturb what it does."""
    on_signals(signal.SIG_IGN)
    raise KeyboardInterrupt


def quit_at_once(number, frame):
    """Leave as if killed, which a run survives, but with a line: modules and C++ take no exception everywhere."""
    if not rank():
        name = program_name()
        hint = "; if the run had begun, --resume goes on" if name == "train.py" else ""
        say_at_once(2, f"{name}: stopped at once{hint}\n")
    os._exit(130)
