"""What may change between the beginning of a run and its resumption: nothing that would make it another run.

config.json in the run directory holds what the run was begun with. Files are compared by what is in them, so that they
may be moved; everything else by its value.
"""

import json
import platform
from dataclasses import asdict

from dpo_min.judge.trained_with import HASH, check_taken, hash_of_taken
from dpo_min.system.files import read_json, write_text

# By their content, and so that the paths are free: the hashes in config.json, and what each stands for.
HASHES = {
    "data_sha256": "the data (--data)",
    "eval_data_sha256": "the held-out data (--eval-data)",
    "sft_data_sha256": "the data of the first fit (--sft-data)",
    "tokenizer_sha256": "the tokenizer",
    "adapter_sha256": "the adapter in --adapter",
    "init_sha256": "the model in --init",
    "reference_sha256": "the reference",
}
BY_CONTENT = {"data", "eval_data", "sft_data", "tokenizer", "adapter", "init", "reference"}
ELSEWHERE = {"out", "resume", "shard"}  # no part of what is computed
LENGTH = {"epochs", "max_steps"}  # compared as the number of steps
FREE = {"log_every", "eval_every", "save_every", "max_kl"}  # no weight depends on them
PLACE = {"versions", "processor", "processes", "threads"}  # software and machine, as far as they decide last bits
ROUNDING = {"micro_batch_size", "checkpoint_activations", "compile", "device"} | PLACE
ANOTHER = "; a run keeps what it began with: to change that, begin a new run, with --init on the best/ of this one"


def kept_flags(flags):
    """Name → value of every flag that config.json keeps, as JSON has it."""
    values = {name: value for name, value in asdict(flags).items() if name not in ELSEWHERE}
    return json.loads(json.dumps(values, default=str))


def read_run(directory):
    """The config.json of the run in a directory.

    Raises:
        ValueError: it is not a run's, or is damaged.
    """
    path = directory / "config.json"
    before = read_json(path)
    if "data_sha256" not in before:
        raise ValueError(f"--resume: {path} is not a run's, but a model's")
    check_taken(path, before)
    return before


def compare(before, now):
    """Sentences about what is different now, and harmless; `before` is config.json, `now` any part of what it holds.

    Raises:
        ValueError: what is different would make it another run; the message names it.
    """
    notes = []
    for name, value in now.items():
        was, flag = before.get(name), "--" + name.replace("_", "-")
        if value == was or name in BY_CONTENT | LENGTH or (name == "sft_steps" and value is None):
            continue
        if name in HASHES:
            raise ValueError(f"--resume: the hash of {HASHES[name]} was {was} when the run began, now it is {value}")
        if name == "steps":
            notes += length_notes(before, value)
        elif name in FREE:
            notes.append(f"{flag} was {was}, now it is {value}: the weights do not depend on it")
        elif name in ROUNDING:
            was, value = (", ".join(map(" ".join, v.items())) if isinstance(v, dict) else v for v in (was, value))
            notes.append(f"{name if name in PLACE else flag} was {was}, now it is {value}: "
                         "the same run up to rounding, not to the last bit")  # fmt: skip
        else:
            raise ValueError(f"--resume: {flag} was {was!r} when the run began, now it is {value!r}{ANOTHER}")
    return notes


def length_notes(before, steps):
    """What is said of a run that gets another length; ValueError where earlier steps would have been others."""
    was, shape = before.get("steps"), before.get("lr_schedule")
    if shape != "constant":
        raise ValueError(
            f"--resume: the run was begun for {was} steps, now it would have {steps}; under --lr-schedule {shape} "
            "the learning rate of every step depends on that number"
        )
    begun = f" that begins with --sft-steps {before['sft_steps']} and" if before.get("sft_steps") else " that"
    same = f"to the last bit that of a run{begun} has {steps} steps"
    return [f"{was} steps become {steps}: the result, except for best/, is {same}"]


def check_flags(flags, tokenizer):
    """Compare the flags and the tokenizer, before the data is read, and keep what a run is not to change by itself.

    Raises:
        ValueError: as `compare`.
    """
    before = read_run(flags.out)
    now = {name: value for name, value in kept_flags(flags).items() if value != "auto"}
    compare(before, now | {"tokenizer_sha256": tokenizer.fingerprint()})
    if flags.sft_steps is None:  # its default would depend on the length of the run as it is now
        flags.sft_steps = before.get("sft_steps")


def versions():
    """What a run was begun with, as config.json has it; PyTorch's version is taken without loading it."""
    from importlib.metadata import version

    return {"python": platform.python_version(), "torch": version("torch")}


def write_run(directory, settings):
    """Write config.json."""
    settings = settings | {HASH: hash_of_taken(settings)}
    write_text(directory / "config.json", json.dumps(settings, indent=2) + "\n")
