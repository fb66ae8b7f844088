"""What a launcher such as torchrun says in the environment: how many processes there are, and which one this is."""

import os
import sys
from pathlib import Path


def processes():
    """The number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_process():
    """Whether this is the first of torchrun's processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def print_once():
    """Of torchrun's processes, let the first alone print."""
    if not first_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def first_to_fail():
    """Whether no other of torchrun's processes on this machine ended with an error before: one message is enough.

    The first one leaves a mark in the directory that torchrun makes for a run and removes after it.
    """
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return True
    mark = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[1] / "stopped"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
