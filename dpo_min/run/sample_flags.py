"""The flags of sample.py, checked against each other before PyTorch is loaded."""

import sys

from dpo_min.data.rows import BadRow, Preference, parse_line, read_rows
from dpo_min.judge.trained_with import run_settings
from dpo_min.system.flags import MOST, is_text, refuse


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
