"""The flags of sample.py, checked against each other before PyTorch is loaded."""

import gzip
import json
import sys
import zlib
from dataclasses import MISSING, dataclass
from pathlib import Path

from dpo_min.data.chat_template import describe, use_template
from dpo_min.data.forms import read_prompt
from dpo_min.data.lines import check_kinds, decode, is_gzip, read_rows, unreadable
from dpo_min.data.messages import ROLE_KEYS, BadRow
from dpo_min.data.row_flags import NAMED, RowFlags
from dpo_min.data.rows import Preference, parse_line
from dpo_min.data.templates import as_text
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.judge.trained_with import run_settings
from dpo_min.system import kinds
from dpo_min.system.flags import flag, parse, refuse, sections
from dpo_min.system.program import mistakes


@dataclass
class SampleFlags(RowFlags):
    """Every flag: its default, and when to change it."""

    model: Path = flag(MISSING, "model directory, such as a run's model/")
    reference: Path | None = flag(None, "a second model, whose answers are shown beside the first's")
    prompt: str | None = flag(None, "the text to continue; may be empty", kinds.TEXT)
    prompts: Path | None = flag(None, "a file with one prompt a line; without it and --prompt: standard input")
    one_prompt: bool = flag(False, "all of the file, or of standard input, is one prompt")
    num_samples: int = flag(1, "answers to each prompt", kinds.SIZE)
    temperature: float = flag(1.0, "below 1 less varied, above 1 more, 0 the likeliest token", kinds.NOT_NEGATIVE)
    top_k: int | None = flag(None, "draw among the k likeliest tokens", kinds.COUNT)
    top_p: float = flag(1.0, "draw among the likeliest tokens that together reach this probability", kinds.PROBABILITY)
    min_p: float = flag(0.0, "draw among tokens with at least this share of the likeliest one's", kinds.FRACTION)
    repetition_penalty: float = flag(1.0, "above 1: tokens already in the text become less likely", kinds.POSITIVE)
    seed: int = flag(0, "another seed, other answers", kinds.SEED)
    num_beams: int | None = flag(None, "search the likeliest answer with so many beams; draw nothing", kinds.SIZE)
    length_penalty: float = flag(0.0, "beams rank by log-probability/length^X: above 0 favours longer", kinds.EXPONENT)
    min_new_tokens: int = flag(0, "the shortest answer, unless --stop ends it", kinds.NATURAL)
    max_new_tokens: int = flag(200, "the longest answer; all end where the model's positions do", kinds.COUNT)
    length_range: list[int] | None = flag(None, "draw each answer's limit uniformly", kinds.NATURAL, ("LO", "HI"))
    stop: list[str] = flag([], "end an answer before any of these texts", kinds.SOME_TEXT, "TEXT")
    device: str = flag("auto", "where to compute", ["auto", "cpu", "cuda", "mps"])
    dtype: str = flag("auto", "auto: bfloat16 on CUDA, float32 elsewhere", ["auto", "float32", "bfloat16", "float16"])
    credit: bool = flag(False, "colour each token by its reward, β (log π − log π_ref)")
    completion: str | None = flag(
        None, "with --credit and --prompt: the reward of this answer, not of fresh ones", kinds.TEXT
    )
    pair: str | None = flag(None, "with --credit: the reward of both sides of a preference, FILE:LINE")
    html: Path | None = flag(None, "with --credit: write the same as a page of HTML", kinds.PAGE)
    beta: float | None = flag(None, "β of the reward; default: that of the run of --model, else 0.1", kinds.POSITIVE)
    jsonl: bool = flag(False, "one JSON object an answer, for machines")
    pairs: int | None = flag(None, "append so many answers of each model to --out, for dpo_min.labels", kinds.SIZE)
    out: Path = flag(Path("candidates.jsonl"), "with --pairs: the file; prompts answered by this model are skipped")


GROUPS = sections(
    SampleFlags,
    "model reference prompt prompts num_samples",
    ("how prompts are written", "one_prompt"),
    ("drawing", "temperature"),
    ("beams instead of drawing", "num_beams"),
    ("length", "min_new_tokens"),
    ("memory and speed", "device"),
    ("the reward of each token, against --reference", "credit"),
    ("output", "jsonl"),
    ("answers to choose between", "pairs"),
)
EXAMPLE = 'python sample.py --model runs/demo/model --prompt "a review of"'


def prepare(argv):
    """(flags, prompts, (tokenizer, template) by the model's name); a mistake ends the program with exit code 2.

    A prompt is a text or the messages of a dialogue.
    """
    with mistakes():
        flags, given = parse(SampleFlags, argv, "Ask a model: a prompt in, text out.", GROUPS, EXAMPLE)
        check_sampling(flags, given)
        check_credit(flags, given)
        check_pairs(flags, given)
        _ = flags.columns  # which checks them
        if flags.prompt is not None:
            refuse(given, ["prompts", "one_prompt", *NAMED], "with --prompt")
        prompts = [flags.prompt] if flags.prompt is not None or flags.pair else read_prompts(flags)
        reading = load_reading(flags)
        tokenizer, template = reading["model"]
        if flags.pair or flags.completion is not None:
            flags.pair, prompts = read_pair(flags, template)
        for prompt in prompts if not flags.pair else ():
            template.ask(prompt)
        if about := describe(template, tokenizer):
            print(about, file=sys.stderr)
        return flags, prompts, reading


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
        if len(flags.length_range) != 2 or not 1 <= flags.length_range[0] <= flags.length_range[1] <= kinds.MOST:
            words = " ".join(map(str, flags.length_range))
            raise ValueError(f"--length-range: expected LO HI with 1 <= LO <= HI <= 10^9, got {words}")
        limit, flags.max_new_tokens = "the LO of --length-range", flags.length_range[1]
    least = flags.length_range[0] if flags.length_range else flags.max_new_tokens
    if flags.min_new_tokens > least:
        raise ValueError(f"--min-new-tokens {flags.min_new_tokens} is above {limit}, which is {least}")


def read_prompts(flags):
    """The prompts of a file, or of standard input.

    A line is a prompt, or JSON: a text, which may have several lines, a list of messages, or a row that has a prompt.
    Where the file's name says JSON, every line has to be, or all of them are one array of these. With --one-prompt
    everything is one prompt, as text.

    Raises:
        ValueError: there is no text, or it cannot be read.
    """
    path, where = flags.prompts, f"--prompts {flags.prompts}" if flags.prompts else "standard input"
    check_kinds([path] if path else [])
    try:
        if path:
            with gzip.open(path) if is_gzip(path) else open(path, "rb") as file:
                content = file.read()
        else:
            content = sys.stdin.buffer.read()
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(where, error) from error
    text = decode(content, where).replace("\r\n", "\n").removesuffix("\n")
    if not content:
        raise ValueError("no prompt: use --prompt TEXT, --prompts FILE, or standard input, one prompt a line")
    if flags.one_prompt:
        return [text]
    strict = path and path.name.removesuffix(".gz").endswith((".jsonl", ".json"))
    try:
        whole = json.loads(text) if strict else None
    except (ValueError, RecursionError):
        whole = None
    if isinstance(whole, list) and not any(isinstance(part, dict) and ROLE_KEYS & part.keys() for part in whole):
        return [read_prompt(part, flags.columns) for part in whole]
    lines = [text] if whole is not None else text.split("\n")
    lines = [(number, line) for number, line in enumerate(lines, 1) if line.strip() or not strict]
    return [as_prompt(line, f"{path or where}:{number}", flags.columns, strict) for number, line in lines]


def as_prompt(line, where, columns, strict):
    """The prompt in a line of JSON; a line that holds none is a prompt itself, unless that is not allowed."""
    if not strict and not line.startswith(('"', "[{", "{")):
        return line
    try:
        return read_prompt(json.loads(line), columns)
    except (ValueError, RecursionError) as error:
        if not strict:
            return line
        raise ValueError(f"{where}: {error}") from error


def load_reading(flags):
    """Name → (tokenizer, template) of each model; a reference that reads as the model does is asked as it is."""
    tokenizer = load_tokenizer(flags.model)
    template = use_template(tokenizer, flags.template, flags.system)
    reading = {"model": (tokenizer, template)}
    if flags.reference:
        theirs = load_tokenizer(flags.reference)
        own_end, theirs.end_of_text = theirs.end_of_text, theirs.control.get(template.close, theirs.end_of_text)
        if theirs.fingerprint() != tokenizer.fingerprint():
            theirs.end_of_text = own_end
            template = use_template(theirs, flags.template, flags.system)
        reading["reference"] = theirs, template
    return reading


def read_pair(flags, template):
    """(the `Preference` of --pair, or of --prompt with --completion on both sides, [its prompt as text]).

    Raises:
        ValueError: --pair names no line of a file, or that line is not a preference.
    """
    if flags.completion is not None:
        return Preference(*template.sides(flags.prompt, flags.completion, flags.completion)), [flags.prompt]
    path, _, line = flags.pair.rpartition(":")
    if not path or not line.isdecimal():
        raise ValueError(f"--pair: expected FILE:LINE, got {flags.pair!r}")
    row = next((row for number, row, _ in read_rows(path) if str(number) == line.lstrip("0")), None)
    if row is None:
        raise ValueError(f"--pair: {path} has no row in line {line}")
    try:
        pair = parse_line(row, flags.pair, flags.columns, template)
    except BadRow as error:
        raise ValueError(f"--pair: {flags.pair}: {error}") from error
    flags.prompt = as_text(template.write_prompt(pair.prompt))
    return pair, [flags.prompt]


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
        refuse(given, ["prompt", "prompts", "completion", "one_prompt"], "with --pair, which has its own")
    elif flags.completion is not None and (flags.prompt is None or not flags.completion):
        raise ValueError("--completion needs --prompt TEXT, and a text of its own")
    if flags.pair or flags.completion is not None:
        shown = "model reference prompt prompts one_prompt completion pair credit html beta device dtype jsonl"
        shown = {*shown.split(), "template", "system", *NAMED}
        refuse(given, sorted(given - shown), "where nothing is drawn")
    if flags.reference and flags.beta is None:
        flags.beta = run_settings(flags.model)["beta"]


def check_pairs(flags, given):
    """Check sample.py's flags of candidates.

    Raises:
        ValueError: there would be nothing to choose between, or a flag would have no effect.
    """
    if flags.pairs is None:
        refuse(given, ["out"], "without --pairs")
        return
    refuse(given, ["num_samples", "num_beams", "credit", "beta", "jsonl"], "with --pairs, which draws candidates")
    if flags.pairs == 1 and not flags.reference:
        raise ValueError("--pairs 1: one answer is nothing to choose from; draw 2 or more, or add --reference")
    if flags.pairs > 1 and flags.temperature == 0:
        raise ValueError(f"--pairs {flags.pairs}: with --temperature 0 all answers of a model are the same")
