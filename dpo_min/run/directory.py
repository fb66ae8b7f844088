"""The directory of a run: who may begin one there, who may go on, and that only one program writes in it."""

import shutil

from dpo_min.system.files import Lock, make_directory, partials, read_json
from dpo_min.system.launcher import rank
from dpo_min.system.program import stop

LOCK = ".lock"  # held by the run that writes in a directory
RUN_FILES = ("config.json", "metrics.jsonl", "model", "adapter", "best", "reference", "checkpoint", "curves.png")
PLACES = ("", "model", "adapter", "best", "reference", "checkpoint", "reference/checkpoint")  # where a run writes
SAVED = ("model", "adapter", "best", "reference/config.json", "checkpoint/step-*", "reference/checkpoint/step-*")


def check_out(directory, resume, held=False):
    """Whether the run in a directory goes on; ValueError unless that is asked for, or the directory is free.

    A run that stopped before it saved anything leaves its directory free, and one that stopped before it had a
    config.json begins where it is to be resumed. `held`: whether this program has the directory's lock.
    """
    try:
        found = [name for name in RUN_FILES if (directory / name).exists()]
        for place in PLACES:
            if (directory / place).exists() and not (directory / place).is_dir():
                raise ValueError(f"--out {directory / place} is not a directory")
        saved = any(next(directory.glob(pattern), None) for pattern in SAVED)
        if not held and not rank() and (directory / LOCK).exists():
            hold(directory).__exit__()
    except OSError as error:
        raise ValueError(f"--out {directory}: {error.strerror}") from error
    if found and not resume and (saved or not is_run(directory)):
        raise ValueError(
            f"--out {directory} already holds a run or a model ({found[0]}): choose another, or continue with --resume"
        )
    if resume and "config.json" not in found:
        if found or not (directory / LOCK).exists():
            raise ValueError(f"--resume: --out {directory} holds no run")
        print(f"resume: the run in {directory} was stopped before it began; it begins now")
        return False
    return resume


def claim(directory):
    """Make the directory of a run that is about to begin, so that from here on it may be stopped and resumed."""
    try:
        make_directory(directory)
        (directory / LOCK).touch()
    except OSError as error:
        stop(f"--out {directory}: {error.strerror}")


def sweep(directory):
    """Remove what a run was writing when it was killed, known by its mark, and only from where a run writes."""
    for left in (left for place in PLACES for left in partials(directory / place)):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


def is_run(directory):
    """Whether the config.json in a directory is a run's."""
    try:
        return "data_sha256" in read_json(directory / "config.json")
    except ValueError:
        return False


def hold(directory):
    """The `Lock` of a run directory, which is made; ValueError where another holds it, or nothing can be written."""
    try:
        make_directory(directory)
        return Lock(directory / LOCK)
    except BlockingIOError as error:
        raise ValueError(f"--out {directory}: another run is writing there") from error
    except OSError as error:
        raise ValueError(f"--out {directory}: {error.strerror}") from error
