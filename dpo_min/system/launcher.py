"""How this process was started: by what command, and by torchrun as which one of how many."""

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from dpo_min.system.files import read_text
from dpo_min.system.streams import silence
from dpo_min.system.text import one_line

NUMBER = re.compile(r"\d{1,6}")
NUMBERS = ("RANK", "LOCAL_RANK", "MASTER_PORT")  # what every process is told beside WORLD_SIZE and MASTER_ADDR


def program_name():
    """What was typed to start this program, less its flags: train.py, or python -m dpo_min.learn."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    as_module = spec and spec.origin == sys.argv[0]
    return f"python -m {spec.name.removesuffix('.__main__')}" if as_module else Path(sys.argv[0]).name


def processes():
    """The number of processes that torchrun started; 1 without it, and where what is left of one is empty.

    Raises:
        ValueError: there are to be several, and the environment does not say all that they need to meet.
    """
    world = os.environ.get("WORLD_SIZE") or "1"
    if not NUMBER.fullmatch(world) or int(world) < 1:
        raise ValueError(f"WORLD_SIZE is {one_line(world)!r} in the environment: start with torchrun, or unset it")
    if int(world) > 1:
        said = {name: os.environ.get(name, "") for name in (*NUMBERS, "MASTER_ADDR")}
        wrong = [name for name in NUMBERS if not NUMBER.fullmatch(said[name])]
        wrong += ["MASTER_ADDR"] if not said["MASTER_ADDR"] else []
        if not wrong and int(said["RANK"]) >= int(world):
            wrong = ["RANK"]
        if wrong:
            raise ValueError(
                f"WORLD_SIZE is {world} in the environment and {wrong[0]} is {one_line(said[wrong[0]])!r}: "
                "start with torchrun, or unset WORLD_SIZE"
            )
    return int(world)


def rank():
    """This process's number, 0 for the only one."""
    try:
        return int(os.environ["RANK"]) if processes() > 1 else 0
    except ValueError:  # which whoever asks for `processes` will hear of
        return 0


def print_once():
    """Of torchrun's processes, let the first alone print."""
    if rank():
        silence()


def first_to_fail():
    """Whether no other of torchrun's processes on this machine ended with an error before: one message is enough.

    The first one leaves its number in the directory that torchrun makes for a run and removes after it. A process that
    finds its own there speaks too: that was another program, which the same process ran before this one.
    """
    mark = None
    try:
        if processes() == 1:
            return True
        mark = Path(os.environ["TORCHELASTIC_ERROR_FILE"]).parents[1] / "stopped"
        with open(mark, "x", encoding="ascii") as file:
            file.write(str(rank()))
    except FileExistsError:
        with suppress(OSError, ValueError):
            return read_text(mark, 20) == str(rank())
    except (LookupError, ValueError, OSError):  # no such directory is kept here, or not any more
        pass
    return True
