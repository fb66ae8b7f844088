"""What train.py and sample.py do first: they check what was asked, before PyTorch is loaded, which takes seconds."""

import sys
from pathlib import Path

from dpo_min.system.signals import interrupt, on_signals, quit_at_once


def start(program, argv):
    """What a command line asks for, as the program's own `prepare` checked it, with the signals in order."""
    on_signals(quit_at_once)
    # These load NumPy, which takes some tenths of a second: Ctrl-C meanwhile must not be a traceback.
    if program == "train.py":
        from dpo_min.run.job import begin as prepare
    else:
        from dpo_min.run.sample_flags import prepare
    on_signals(interrupt)
    job = prepare(argv)
    on_signals(quit_at_once)  # modules that are being loaded take no exception
    return job


PROGRAM = Path(getattr(sys.modules["__main__"], "__file__", None) or "").name
JOB = start(PROGRAM, sys.argv[1:]) if PROGRAM in ("train.py", "sample.py") else None  # None where those are imported
