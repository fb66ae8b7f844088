"""The first thing that train.py does: its `JOB` is checked here, before PyTorch is loaded, which takes seconds."""

import sys
from pathlib import Path

from dpo_min.system.signals import interrupt, on_signals, quit_at_once
from dpo_min.system.streams import Steady


def start(argv):
    """The `Job` of a command line, with standard output, signals and the run directory in order."""
    on_signals(quit_at_once)
    sys.stdout = Steady(sys.stdout)
    from dpo_min.run.directory import claim  # these two load NumPy: Ctrl-C meanwhile must not be a traceback
    from dpo_min.run.job import prepare

    on_signals(interrupt)
    job = prepare(argv)
    claim(job.flags.out)
    on_signals(quit_at_once)
    return job


def is_program(name):
    """Whether the program that runs is the file of this name; not where that file is imported."""
    return Path(getattr(sys.modules["__main__"], "__file__", None) or "").name == name


JOB = start(sys.argv[1:]) if is_program("train.py") else None
