"""Command-line flags from a dataclass: one field is one flag, and a mistake is one line that names it."""

import argparse
import difflib
import math
import os
import signal
import sys
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

from dpo_min.data import BadRow, Preference, parse_line, read_rows
from dpo_min.files import Lock, read_json
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


def read_prompts(path):
    """The lines of a file, or of standard input if `path` is None; ValueError where there is no text."""
    try:
        text = (path.read_bytes() if path else sys.stdin.buffer.read()).decode()
    except (OSError, UnicodeDecodeError) as error:
        where = f"--prompts {path}" if path else "standard input"
        raise ValueError(f"{where}: cannot be read as UTF-8 text: {error}") from error
    if not text:
        raise ValueError("no prompt: use --prompt TEXT, --prompts FILE, or standard input, one prompt a line")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def is_text(argument):
    """Whether a command-line argument is UTF-8; Python marks bytes that are not as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


LOCK = ".lock"  # held by the run that writes in a directory
RUN_FILES = ("config.json", "metrics.jsonl", "model", "best", "reference", "checkpoint")
SAVED = ("model", "best", "reference/config.json", "checkpoint/step-*", "reference/checkpoint/step-*")


def check_out(directory, resume, held=False):
    """Whether the run in a directory goes on; ValueError unless that is asked for, or the directory is free.

    A run that stopped before it saved anything leaves its directory free, and one that stopped before it had a
    config.json begins where it is to be resumed. `held`: whether this program has the directory's lock.
    """
    try:
        found = [name for name in RUN_FILES if (directory / name).exists()]
        if directory.exists() and not directory.is_dir():
            raise ValueError(f"--out {directory} is not a directory")
        saved = any(next(directory.glob(pattern), None) for pattern in SAVED)
        if not held and (directory / LOCK).exists():
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
        directory.mkdir(parents=True, exist_ok=True)
        (directory / LOCK).touch()
    except OSError as error:
        stop(f"--out {directory}: {error.strerror}")


def is_run(directory):
    """Whether the config.json in a directory is a run's."""
    try:
        return "data_sha256" in read_json(directory / "config.json")
    except ValueError:
        return False


def hold(directory):
    """The `Lock` of a run directory; ValueError where another program holds it."""
    try:
        return Lock(directory / LOCK)
    except BlockingIOError as error:
        raise ValueError(f"--out {directory}: another run is writing there") from error


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
    if not config.init:
        check_memory(config, *sizes["policy"])
    for name, (known, positions) in sizes.items():
        if tokenizer.vocab_size > known:
            raise ValueError(f"--tokenizer makes {tokenizer.vocab_size} token ids, the {name} knows only {known}")
        if config.max_length > positions:
            raise ValueError(f"--max-length {config.max_length}: the {name} has only {positions} positions")
    return tokenizer


def check_memory(config, vocab_size, positions):
    """ValueError where the GPT to be fitted, its gradient and AdamW's two moments are larger than the memory."""
    width = config.n_embd
    parameters = (vocab_size + positions + 2) * width + config.n_layer * (12 * width + 13) * width
    accelerator = sys.platform != "linux" or any(map(os.path.exists, ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")))
    here = config.device == "cpu" or not accelerator  # else the weights alone pass through this memory
    needed = 4 * parameters * (4 if here else 1)
    if hasattr(os, "sysconf") and needed > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise ValueError(
            f"--n-layer {config.n_layer} --n-embd {width}: a GPT of {parameters:.2g} parameters takes "
            f"{needed / 2**30:.0f} GiB, more than this machine's memory"
        )


def model_sizes(directory):
    """(token ids, positions) by a model directory's config.json; `load_model` checks the rest of it."""
    path = directory / "config.json"
    config = read_json(path)
    for key in ("vocab_size", "n_positions"):
        if type(config.get(key)) is not int:
            raise ValueError(f"{path}: {key} is {config.get(key)!r}, not a whole number")
    return config["vocab_size"], config["n_positions"]


def run_settings(model):
    """What a run's config.json, in the directory above a model's, says on scoring; what train.py takes without it.

    Returns: beta, reduce, and max_length and max_prompt_length, which are None where there is no run.

    Raises:
        ValueError: the config is a run's and cannot be read, or has no beta above 0.
    """
    path, settings = model.resolve().parent / "config.json", {}
    if path.exists() and "data_sha256" in (found := read_json(path)):
        settings = found
    beta = settings.get("beta", 0.1)
    if type(beta) not in (int, float) or not POSITIVE.test(beta):
        raise ValueError(f"{path}: beta is {beta!r}, not {POSITIVE.words}; give --beta")
    names = ("max_length", "max_prompt_length")
    return {"beta": beta, "reduce": settings.get("reduce", "sum")} | {name: settings.get(name) for name in names}


def read_row(place):
    """The `Preference` at FILE:LINE.

    Raises:
        ValueError: it names no line of a file, or that line is not a preference.
    """
    path, _, line = place.rpartition(":")
    if not path or not line.isdecimal():
        raise ValueError(f"--pair: expected FILE:LINE, got {place!r}")
    row = next((row for number, row, _ in read_rows(path) if number == int(line)), None)
    if row is None:
        raise ValueError(f"--pair: {path} has no row in line {line}")
    try:
        return Preference(*parse_line(int(line), row), place)
    except BadRow as error:
        raise ValueError(f"--pair: {place}: {error}") from error


def check_credit(config, given):
    """Check sample.py's flags that have to do with the implicit reward, and fill in --beta and the row of --pair.

    Raises:
        ValueError: a flag is wrong or would have no effect.
    """
    if not config.reference:
        refuse(given, ["credit", "beta"], "without --reference, against which the reward is measured")
    if not config.credit:
        refuse(given, ["completion", "pair", "html"], "without --credit")
    if config.pair:
        refuse(given, ["prompt", "prompts", "completion"], "with --pair, which has its own")
        config.pair = read_row(config.pair)
        config.prompt = config.pair.prompt
    elif config.completion is not None:
        if config.prompt is None or not config.completion:
            raise ValueError("--completion needs --prompt TEXT, and a text of its own")
        if not is_text(config.completion):
            raise ValueError("--completion: not UTF-8 text")
        config.pair = Preference(config.prompt, config.completion, config.completion)
    if config.pair:
        shown = {"model", "reference", "prompt", "prompts", "completion", "pair", "credit", "html", "beta"}
        refuse(given, sorted(given - shown - {"device", "dtype", "jsonl"}), "where nothing is drawn")
    if config.html and (config.html.is_dir() or not config.html.absolute().parent.is_dir()):
        raise ValueError(f"--html {config.html}: not a file in a directory that exists")
    if config.reference and config.beta is None:
        config.beta = run_settings(config.model)["beta"]


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
    if not first_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def first_process():
    """Whether this is the first of torchrun's processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"


class Steady:
    """Standard output that outlives its reader: `train.py | head` goes on, unseen."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        """Whatever else a stream has."""
        return getattr(self.stream, name)

    def write(self, text):
        """Write, or go on into nothing."""
        self.attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self):
        """Flush, or go on into nothing."""
        self.attempt(self.stream.flush)

    def attempt(self, action):
        """Do something with the stream; when nobody reads it any more, send the rest to nowhere."""
        try:
            action()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


# Ctrl-C and SIGTERM, outside the steps of a run: those are finished first, by `run.Interrupt`.


def on_signals(handler):
    """Let both signals be handled so."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def interrupt(number, frame):
    """The first signal becomes a KeyboardInterrupt; those that follow must not disturb what it does."""
    on_signals(signal.SIG_IGN)
    raise KeyboardInterrupt


def quit_at_once(number, frame):
    """Leave as if killed, which a run survives, but with a line: modules and C++ take no exception everywhere."""
    if first_process():
        name = Path(sys.argv[0]).name
        hint = "; if the run had begun, --resume goes on" if name == "train.py" else ""
        os.write(2, f"{name}: stopped at once{hint}\n".encode())
    os._exit(130)


def processes():
    """The number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
