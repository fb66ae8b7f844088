"""What others read of a run, and believe only if it is whole: the settings that a model was trained with, and metrics.

Programs, and a run that goes on, take some settings from config.json without being asked: their hash is in it.
"""

import hashlib
import json

from dpo_min.system.files import open_regular, read_json
from dpo_min.system.kinds import COUNT, LENGTH, POSITIVE
from dpo_min.system.text import one_line

TAKEN = {"beta": 0.1, "reduce": "sum", "max_length": None, "max_prompt_length": None, "sft_steps": None}  # by default
NUMBERS = {"beta": POSITIVE, "max_length": LENGTH, "max_prompt_length": COUNT, "sft_steps": COUNT}
HASH = "taken_sha256"
MAX_LINE = 2**16  # bytes of a line of metrics


def run_settings(model):
    """What a run's config.json, in the directory above a model's, says on scoring; what train.py takes without it.

    Returns: beta, reduce, and max_length and max_prompt_length, which are None where there is no run.

    Raises:
        ValueError: the config is a run's and cannot be read, or is not as the run wrote it.
    """
    path, settings = model.resolve().parent / "config.json", {}
    if path.exists() and "data_sha256" in (found := read_json(path)):
        check_taken(path, found)
        settings = found
    return {name: settings.get(name, default) for name, default in TAKEN.items() if name != "sft_steps"}


def hash_of_taken(settings):
    """The SHA-256 of what is taken from settings unasked."""
    values = {name: settings.get(name, default) for name, default in TAKEN.items()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def check_taken(path, settings):
    """ValueError where what is taken from a run's settings unasked is not what it wrote, or is nothing to go by."""
    if settings.get(HASH, hash_of_taken(settings)) != hash_of_taken(settings):
        names = ", ".join(TAKEN)
        raise ValueError(f"{path}: {names} are not as the run wrote them; if that is meant, remove {HASH} there")
    for name, accepts in NUMBERS.items():
        value, kinds = settings.get(name, TAKEN[name]), (int, float) if name == "beta" else (int,)
        if value != TAKEN[name] and (type(value) not in kinds or not accepts.test(value)):
            raise ValueError(f"{path}: {name} is {one_line(repr(value))}, not {accepts.words}")
    if settings.get("reduce", "sum") not in ("sum", "mean"):
        raise ValueError(f"{path}: reduce is {one_line(repr(settings['reduce']))}, not sum or mean")


def metric_lines(path):
    """Yield of each line of a metrics.jsonl its bytes and its values; None for the values where it is not whole.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        for line in iter(lambda: file.readline(MAX_LINE), b""):
            yield line, values_of(line)


def values_of(line):
    """The values of a line of metrics: name → number, with a split and a step; None if it is anything else."""
    try:
        values = json.loads(line)
        whole = line.endswith(b"\n") and values["split"] in ("train", "eval")
        numbers = all(type(value) in (int, float) for name, value in values.items() if name != "split")
        return values if whole and numbers and type(values["step"]) is int and values["step"] >= 0 else None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
