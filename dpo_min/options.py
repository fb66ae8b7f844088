"""Command-line flags from a dataclass: one field is one flag, and a mistake is one line that names it."""

import argparse
import difflib
import math
import os
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

from dpo_min.cache import read_json
from dpo_min.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Accepts:
    """The values that a flag accepts: a test, and the words for it."""

    test: callable
    words: str


MOST = 10**9
COUNT = Accepts(lambda v: 1 <= v <= MOST, "a whole number from 1 to 10^9")
SIZE = Accepts(lambda v: 1 <= v <= 10**5, "a whole number from 1 to 10^5")
LENGTH = Accepts(lambda v: 2 <= v <= 10**7, "a whole number from 2 to 10^7")
NATURAL = Accepts(lambda v: 0 <= v <= MOST, "a whole number from 0 to 10^9")
SEED = Accepts(lambda v: 0 <= v < 2**63, "a whole number from 0 up to 2^63 - 1")
POSITIVE = Accepts(lambda v: 0 < v < math.inf, "a number above 0")
RATE = Accepts(lambda v: 0 < v <= 10, "a number above 0 and up to 10")
NOT_NEGATIVE = Accepts(lambda v: 0 <= v < math.inf, "a number from 0 up")
EXPONENT = Accepts(lambda v: -10 <= v <= 10, "a number from -10 to 10")
FRACTION = Accepts(lambda v: 0 <= v < 1, "a number from 0 up to, not including, 1")
PROBABILITY = Accepts(lambda v: 0 < v <= 1, "a number above 0 and up to 1")
NOISE_RATE = Accepts(lambda v: 0 < v < 0.5, "a number between 0 and 0.5")


def flag(default, about, accepts=None, values="PATH"):
    """A field of a config dataclass: its default, when to change it, and what it accepts (`Accepts`, or a list).

    Values: what `--help` calls each value of a field that is a list, or a tuple with a name for each.
    """
    choices, accepts = (accepts, None) if isinstance(accepts, list) else (None, accepts)
    metadata = {"about": about, "accepts": accepts, "choices": choices, "values": values}
    if default is MISSING or not isinstance(default, list):
        return field(default=default, metadata=metadata)
    return field(default_factory=lambda: list(default), metadata=metadata)


class Parser(argparse.ArgumentParser):
    """argparse, but an error is one line and an unknown flag suggests the nearest known one."""

    def error(self, message):
        """Raise ValueError, which the program turns into its one line."""
        raise ValueError(message)

    def parse_args(self, argv):
        """As argparse, naming the first unknown argument."""
        namespace, unknown = self.parse_known_args(argv)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            self.error(f"{unknown[0]}: unknown argument; {hint}--help lists all")
        return namespace


def parse(config_class, argv, description):
    """(config, the set of field names that were given); `--help` prints and exits.

    Raises:
        ValueError: an unknown flag, or a value out of range; the message names the flag and what it accepts.
    """
    parser = Parser(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for f in fields(config_class):
        kind = f.type
        if isinstance(kind, UnionType):  # `int | None`: None means "not given"
            kind = next(k for k in get_args(kind) if k is not type(None))
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        settings = {"dest": f.name, "help": f.metadata["about"].replace("%", "%%")}
        if default is not MISSING and default is not None and default is not False and default != []:
            settings["help"] += f" (default: {default})"
        if kind is bool:
            settings["action"] = "store_true"
        elif get_origin(kind) is list:
            values = f.metadata["values"]
            settings |= {"nargs": len(values) if isinstance(values, tuple) else "+", "action": "extend"}
            settings |= {"type": get_args(kind)[0], "metavar": values}
        else:
            settings |= {"type": converter(kind, f.metadata["accepts"]), "choices": f.metadata["choices"]}
            if not f.metadata["choices"]:
                settings["metavar"] = {int: "N", float: "X", Path: "DIR", str: "TEXT"}[kind]
        parser.add_argument("--" + f.name.replace("_", "-"), **settings)
    given = vars(parser.parse_args(argv))
    for f in fields(config_class):
        if f.default is MISSING and f.default_factory is MISSING and f.name not in given:
            raise ValueError(f"--{f.name.replace('_', '-')} is required: {f.metadata['about']}")
    return config_class(**given), set(given)


def converter(kind, accepts):
    """Turn a flag's text into a value of `kind`, or say what the flag accepts."""

    def convert(text):
        try:
            value = kind(text)
            if accepts is None or accepts.test(value):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"expected {accepts.words if accepts else kind.__name__}, got {text!r}")

    return convert


def refuse(given, names, reason):
    """Raise ValueError if one of the fields `names` was given although it would have no effect."""
    for name in names:
        if name in given:
            raise ValueError(f"--{name.replace('_', '-')} has no effect {reason}; leave it out")


def check_sampling(config, given):
    """Check sample.py's flags of drawing against each other; --length-range becomes a pair.

    Raises:
        ValueError: a flag is out of range, or would have no effect.
    """
    choices = ["top_k", "top_p", "min_p", "seed", "num_samples", "length_range"]
    if config.num_beams:
        refuse(given, ["temperature", "repetition_penalty", *choices], "with --num-beams, which draws nothing")
    elif config.temperature == 0:
        refuse(given, choices, "with --temperature 0, which is one answer")
    if (config.num_beams or 1) == 1:
        refuse(given, ["length_penalty"], "without --num-beams of at least 2")
    limit = "--max-new-tokens"
    if config.length_range is not None:
        refuse(given, ["max_new_tokens"], "with --length-range, which has a limit for each answer")
        if len(config.length_range) != 2 or not 1 <= config.length_range[0] <= config.length_range[1] <= MOST:
            words = " ".join(map(str, config.length_range))
            raise ValueError(f"--length-range: expected LO HI with 1 <= LO <= HI <= 10^9, got {words}")
        limit, config.max_new_tokens = "the LO of --length-range", config.length_range[1]
    least = config.length_range[0] if config.length_range else config.max_new_tokens
    if config.min_new_tokens > least:
        raise ValueError(f"--min-new-tokens {config.min_new_tokens} is above {limit}, which is {least}")
    for text in config.stop:
        if not text or not is_text(text):
            raise ValueError(f"--stop: expected UTF-8 text of at least one character, got {text!r}")


def is_text(argument):
    """Whether a command-line argument is UTF-8; Python marks bytes that are not as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


RUN_FILES = ("config.json", "metrics.jsonl", "model", "best", "reference", "checkpoint")


def check_out(directory, resume):
    """Raise ValueError unless `directory` is free for a new run, or holds one if it is to be resumed."""
    try:
        found = [name for name in RUN_FILES if (directory / name).exists()]
        if directory.exists() and not directory.is_dir():
            raise ValueError(f"--out {directory} is not a directory")
    except OSError as error:
        raise ValueError(f"--out {directory}: {error.strerror}") from error
    if found and not resume:
        raise ValueError(
            f"--out {directory} already holds a run or a model ({found[0]}): choose another, or continue with --resume"
        )
    if resume and "config.json" not in found:
        raise ValueError(f"--resume: --out {directory} holds no run")


def resolve_lengths(config):
    """Fill in the lengths that are not given; returns the tokenizer. The models themselves need PyTorch, and wait.

    Raises:
        ValueError: the tokenizer, the lengths and the models' config.json do not go together.
    """
    sizes = {}  # name → (token ids, positions) that the model knows
    if config.init:
        sizes["policy"] = model_sizes(config.init)
        if config.loss_type != "sft":
            sizes["reference"] = model_sizes(config.reference or config.init)
        tokenizer = load_tokenizer(config.tokenizer or config.init)
    else:
        tokenizer = load_tokenizer(config.tokenizer or "bytes")
        config.block_size = config.block_size or config.max_length or 512
        sizes["policy"] = tokenizer.vocab_size, config.block_size
    config.max_length = config.max_length or min(512, sizes["policy"][1])
    config.max_prompt_length = config.max_prompt_length or config.max_length // 2
    if config.max_prompt_length >= config.max_length:
        raise ValueError(f"--max-prompt-length must stay below --max-length, which is {config.max_length}")
    for name, (known, positions) in sizes.items():
        if tokenizer.vocab_size > known:
            raise ValueError(f"--tokenizer makes {tokenizer.vocab_size} token ids, the {name} knows only {known}")
        if config.max_length > positions:
            raise ValueError(f"--max-length {config.max_length}: the {name} has only {positions} positions")
    return tokenizer


def model_sizes(directory):
    """(token ids, positions) by a model directory's config.json; `load_model` checks the rest of it."""
    path = directory / "config.json"
    config = read_json(path)
    for key in ("vocab_size", "n_positions"):
        if type(config.get(key)) is not int:
            raise ValueError(f"{path}: {key} is {config.get(key)!r}, not a whole number")
    return config["vocab_size"], config["n_positions"]


def stop(message, code=2):
    """End the program: the message on standard error, one line after the program's name."""
    if first_to_fail():
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(code)


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


def print_once():
    """Of torchrun's processes, let the first alone print."""
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def processes():
    """The number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
