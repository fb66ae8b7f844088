"""What train.py and sample.py do first: they check what was asked, before PyTorch is loaded, which takes seconds."""

import gc
import os
import sys
from pathlib import Path

import dpo_min.system.packages  # noqa: F401  (before all that needs one)
from dpo_min.system.program import collect_nothing_at_exit, guard
from dpo_min.system.signals import interrupt, on_signals, quit_at_once
from dpo_min.system.streams import steady

# An idle thread of PyTorch's first looks around for so many turns, some hundredths of a millisecond, and then sleeps.
# GNU's own 300,000 take the cores of a busy machine from the thread that is waited for. The pauses of decoding are much
# shorter than those of training: to sleep in each of them would cost a quiet machine an eighth of the tokens.
TURNS = {"train.py": "1000", "sample.py": "10000"}


def start(program, argv):
    """What a command line asks for, as the program's own `prepare` checked it, with streams and signals in order."""
    steady(lasting=program == "train.py")  # a run goes on when nobody gets its output; sample.py has no other end
    on_signals(quit_at_once)
    collect_nothing_at_exit()
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", TURNS[program])
    # These load NumPy, which takes some tenths of a second: Ctrl-C meanwhile must not be a traceback.
    if program == "train.py":
        from dpo_min.run.job import begin as prepare
    else:
        from dpo_min.run.sample_flags import prepare
    on_signals(interrupt)
    job = guard(prepare, argv)
    on_signals(quit_at_once)  # modules that are being loaded take no exception
    gc.disable()  # and hold no garbage: looking for it takes a fifth of their time; `guard` enables it again
    return job


PROGRAM = Path(getattr(sys.modules["__main__"], "__file__", None) or "").name
JOB = start(PROGRAM, sys.argv[1:]) if PROGRAM in ("train.py", "sample.py") else None  # None where those are imported
