"""The flags of sample.py, checked against each other before PyTorch is loaded."""

import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

from dpo_min.data.forms import BadRow
from dpo_min.data.lines import read_rows
from dpo_min.data.rows import Preference, parse_line
from dpo_min.judge.trained_with import run_settings
from dpo_min.system.flags import (
    COUNT,
    EXPONENT,
    FRACTION,
    MOST,
    NATURAL,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SEED,
    SIZE,
    flag,
    is_text,
    parse,
    refuse,
    sections,
)
from dpo_min.system.program import stop


@dataclass
class SampleFlags:
    """Every flag: its default, and when to change it."""

    model: Path = flag(MISSING, "model directory, such as a run's model/")
    reference: Path | None = flag(None, "a second model, whose answers are shown beside the first's")
    prompt: str | None = flag(None, "the text to continue; may be empty")
    prompts: Path | None = flag(None, "a file with one prompt a line; without it and --prompt: standard input")
    num_samples: int = flag(1, "answers to each prompt", SIZE)
    temperature: float = flag(1.0, "below 1 bolder, above 1 more varied, 0 always the likeliest token", NOT_NEGATIVE)
    top_k: int | None = flag(None, "draw among the k likeliest tokens", COUNT)
    top_p: float = flag(1.0, "draw among the likeliest tokens that together reach this probability", PROBABILITY)
    min_p: float = flag(0.0, "draw among the tokens at least this share as likely as the likeliest", FRACTION)
    repetition_penalty: float = flag(1.0, "above 1 tokens that were there before become less likely", POSITIVE)
    num_beams: int | None = flag(None, "draw nothing: search the likeliest answer, keeping so many at a time", SIZE)
    length_penalty: float = flag(0.0, "beams rank by log-probability / length^X; above 0 favours longer", EXPONENT)
    min_new_tokens: int = flag(0, "the shortest answer, unless --stop ends it", NATURAL)
    max_new_tokens: int = flag(200, "the longest answer; all end where the model's positions do", COUNT)
    length_range: list[int] | None = flag(None, "draw each answer's limit uniformly", None, ("LO", "HI"))
    stop: list[str] = flag([], "end an answer before any of these texts", None, "TEXT")
    seed: int = flag(0, "another seed, other answers", SEED)
    device: str = flag("auto", "where to compute", ["auto", "cpu", "cuda", "mps"])
    dtype: str = flag("auto", "auto: bfloat16 on CUDA, float32 elsewhere", ["auto", "float32", "bfloat16", "float16"])
    credit: bool = flag(False, "colour each token by its reward, β (log π − log π_ref)")
    completion: str | None = flag(None, "with --credit and --prompt: the reward of this answer instead of fresh ones")
    pair: str | None = flag(None, "with --credit: the reward of both sides of a preference, FILE:LINE")
    html: Path | None = flag(None, "with --credit: write the same as a page of HTML")
    beta: float | None = flag(None, "of the reward; default: the run's that --model is in, else 0.1", POSITIVE)
    jsonl: bool = flag(False, "one JSON object an answer, for machines")


GROUPS = sections(
    SampleFlags,
    "model reference prompt prompts num_samples",
    ("drawing", "temperature"),
    ("beams instead of drawing", "num_beams"),
    ("length", "min_new_tokens"),
    ("drawing", "seed"),
    ("memory and speed", "device"),
    ("the reward of each token, against --reference", "credit"),
    ("output", "jsonl"),
)
EXAMPLE = 'python sample.py --model runs/demo/model --prompt "a review of"'


def prepare(argv):
    """(flags, prompts); a mistake ends the program with one line and exit code 2."""
    try:
        flags, given = parse(SampleFlags, argv, "Ask a model: a prompt in, text out.", GROUPS, EXAMPLE)
        check_sampling(flags, given)
        check_credit(flags, given)
        if flags.prompt is not None:
            refuse(given, ["prompts"], "with --prompt")
            if not is_text(flags.prompt):
                raise ValueError("--prompt: not UTF-8 text")
            return flags, [flags.prompt]
        return flags, read_prompts(flags.prompts)
    except ValueError as error:
        stop(error)
    except KeyboardInterrupt:
        stop("stopped before anything was asked", code=130)


def check_sampling(flags, given):
    """Check sample.py's flags of drawing against each other; --length-range becomes a pair.

    Raises:
        ValueError: a flag is out of range, or would have no effect.
    """
    choices = ["top_k", "top_p", "min_p", "seed", "num_samples", "length_range"]
    if flags.num_beams:
        refuse(given, ["temperature", "repetition_penalty", *choices], "with --num-beams, which draws nothing")
    elif flags.temperature == 0:
        refuse(given, choices, "with --temperature 0, which is one answer")
    if (flags.num_beams or 1) == 1:
        refuse(given, ["length_penalty"], "without --num-beams of at least 2")
    limit = "--max-new-tokens"
    if flags.length_range is not None:
        refuse(given, ["max_new_tokens"], "with --length-range, which has a limit for each answer")
        if len(flags.length_range) != 2 or not 1 <= flags.length_range[0] <= flags.length_range[1] <= MOST:
            words = " ".join(map(str, flags.length_range))
            raise ValueError(f"--length-range: expected LO HI with 1 <= LO <= HI <= 10^9, got {words}")
        limit, flags.max_new_tokens = "the LO of --length-range", flags.length_range[1]
    least = flags.length_range[0] if flags.length_range else flags.max_new_tokens
    if flags.min_new_tokens > least:
        raise ValueError(f"--min-new-tokens {flags.min_new_tokens} is above {limit}, which is {least}")
    for text in flags.stop:
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


def check_credit(flags, given):
    """Check sample.py's flags that have to do with the implicit reward, and fill in --beta and the row of --pair.

    Raises:
        ValueError: a flag is wrong or would have no effect.
    """
    if not flags.reference:
        refuse(given, ["credit", "beta"], "without --reference, against which the reward is measured")
    if not flags.credit:
        refuse(given, ["completion", "pair", "html"], "without --credit")
    if flags.pair:
        refuse(given, ["prompt", "prompts", "completion"], "with --pair, which has its own")
        flags.pair = read_row(flags.pair)
        flags.prompt = flags.pair.prompt
    elif flags.completion is not None:
        if flags.prompt is None or not flags.completion:
            raise ValueError("--completion needs --prompt TEXT, and a text of its own")
        if not is_text(flags.completion):
            raise ValueError("--completion: not UTF-8 text")
        flags.pair = Preference(flags.prompt, flags.completion, flags.completion)
    if flags.pair:
        shown = {"model", "reference", "prompt", "prompts", "completion", "pair", "credit", "html", "beta"}
        refuse(given, sorted(given - shown - {"device", "dtype", "jsonl"}), "where nothing is drawn")
    if flags.html and (flags.html.is_dir() or not flags.html.absolute().parent.is_dir()):
        raise ValueError(f"--html {flags.html}: not a file in a directory that exists")
    if flags.reference and flags.beta is None:
        flags.beta = run_settings(flags.model)["beta"]
