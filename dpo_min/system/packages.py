"""The first import of every program: a Python that cannot run it is named in one line, before a traceback does it.

Written so that an old Python can read it too.
"""

import os
import sys
from importlib.util import find_spec


def missing():
    """What this Python lacks, in words; empty if it has all."""
    if sys.version_info < (3, 11):  # noqa: UP036
        return "Python 3.11 or newer"
    found = {"torch": find_spec("torch"), "numpy": find_spec("numpy"), "tiktoken": find_spec("tiktoken")}
    names = [name for name in found if found[name] is None]
    return "the package" + "s" * (len(names) > 1) + " " + ", ".join(names) if names else ""


if missing():
    line = "%s: error: this Python (%s) lacks %s: `make setup` makes .venv/bin/python, which has everything\n"
    sys.exit(line.rstrip() % (os.path.basename(sys.argv[0]), sys.executable, missing()))
