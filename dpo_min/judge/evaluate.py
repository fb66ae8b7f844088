"""Is the model better than its reference? Every figure with its n and its 95 % interval.

    python -m dpo_min.judge.evaluate --model runs/demo/model --reference runs/demo/reference --data held-out.jsonl

With `--scorer my_judge:score` it also reports how often the model's answers win by a function of yours, and with
`--scorer answers.jsonl:score` by scores that stand in a file.

Give it preferences that the model was not trained on. The seed and a row's own text decide the row's place in the order
in which rows are taken. --max-pairs says how many are taken; without it, as many as two CPU cores score in some
seconds.
"""

import json
import math
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

import dpo_min.system.packages
from dpo_min.data.chat_template import check_reference, use_template
from dpo_min.data.row_flags import RowFlags
from dpo_min.data.rows import digest, load_preferences
from dpo_min.data.templates import PLAIN
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.data.tokenizing import tokenize
from dpo_min.judge.scorers import load_scorer
from dpo_min.judge.trained_with import run_settings
from dpo_min.model.config_json import load_config
from dpo_min.system.flags import flag, parse, sections
from dpo_min.system.kinds import COUNT, PICTURE, POSITIVE, SEED, SIZE
from dpo_min.system.program import guard, mistakes
from dpo_min.system.signals import interrupt, on_signals, quit_at_once
from dpo_min.system.streams import steady
from dpo_min.system.text import one_line

WORK = 6 * 10**11  # weights × tokens that are scored by default
MOST_SAMPLES = 500
LABELS = {
    "accuracy": "accuracy of the implicit reward",
    "likelier": "chosen likelier than rejected",
    "likelier_reference": "the same under the reference",
    "margin": "reward margin",
    "log_ratio_chosen": "log π − log π_ref, chosen",
    "log_ratio_rejected": "log π − log π_ref, rejected",
    "length_correlation": "correlation of margin and length gap",
    "calibration_error": "expected calibration error",
    "kl_mean_log_ratio": "KL(π‖π_ref), mean log-ratio",
    "kl_sum_of_tokens": "KL(π‖π_ref), sum of each token's",
    "win_rate": "win rate against the reference",
}


@dataclass
class EvaluateFlags(RowFlags):
    """Every flag: its default, and when to change it."""

    model: Path = flag(MISSING, "model directory, such as a run's model/")
    reference: Path = flag(MISSING, "the model from before, a directory such as a run's reference/")
    data: list[str] = flag(MISSING, "preferences that were not trained on, .jsonl or .jsonl.gz")
    skip_bad_rows: bool = flag(False, "leave malformed rows out instead of stopping at them")
    max_pairs: int | None = flag(None, "pairs to score; default: as many as take some seconds", COUNT)
    samples: int | None = flag(None, "answers to draw for the KL; default: the same, 500 at most", SIZE)
    max_new_tokens: int = flag(64, "cut drawn answers here; the KL is that of this many tokens", COUNT)
    scorer: str | None = flag(None, "score answers for the win rate: module:function or FILE.jsonl:column")
    beta: float | None = flag(None, "β of the reward; default: that of the run of --model, else 0.1", POSITIVE)
    seed: int = flag(0, "another seed takes other rows and draws other answers", SEED)
    micro_batch_size: int = flag(16, "pairs per forward; lower it if memory runs out, the result stays", COUNT)
    device: str = flag("auto", "where to compute", ["auto", "cpu", "cuda", "mps"])
    dtype: str = flag("auto", "auto: bfloat16 on CUDA, float32 elsewhere", ["auto", "float32", "bfloat16", "float16"])
    json: bool = flag(False, "print JSON instead of a table")
    png: Path | None = flag(None, "also draw one page: margins, calibration, lengths", PICTURE)


GROUPS = sections(
    EvaluateFlags,
    "model reference data scorer json",
    ("how rows are read", "template"),
    ("what is measured", "skip_bad_rows"),
    ("memory and speed", "micro_batch_size"),
    ("output", "json"),
)
EXAMPLE = "python -m dpo_min.judge.evaluate --model MODEL --reference REFERENCE --data FILE"


def prepare(argv):
    """(flags, settings of the run, tokenizer, pairs, rows that there are, scorer); a mistake ends the program."""
    with mistakes():
        about = "Is the model better than its reference? Every figure with its interval."
        flags, _ = parse(EvaluateFlags, argv, about, GROUPS, EXAMPLE)
        settings = run_settings(flags.model)
        flags.beta = flags.beta or settings["beta"]
        tokenizer = load_tokenizer(flags.model)
        template = use_template(tokenizer, flags.template, flags.system)
        check_reference(flags.reference, tokenizer, template, "--model")
        configs = [load_config(directory) for directory in (flags.model, flags.reference)]
        known, positions = (min(getattr(c, name) for c in configs) for name in ("vocab_size", "block_size"))
        if tokenizer.vocab_size > known:
            raise ValueError(f"the tokenizer makes {tokenizer.vocab_size} token ids, a model knows only {known}")
        scorer = flags.scorer and load_scorer(flags.scorer)
        preferences, _ = load_preferences(flags.data, flags.skip_bad_rows, flags.columns, template)
        if unread := dict.fromkeys(name for preference in preferences for name in preference.unread):
            print(f"data: columns that are not read: {', '.join(map(one_line, unread))}", file=sys.stderr)
        preferences = [preference for preference in preferences if not preference.tie]
        limits = min(settings["max_length"] or 512, positions), settings["max_prompt_length"]
        flags.max_new_tokens = min(flags.max_new_tokens, positions // 2)  # the rest is room for the prompt
        weights = configs[0].parameters()  # each token takes twice as many operations
        pairs = choose(preferences, tokenizer, limits, flags.seed, flags.max_pairs, WORK / weights, template)
        if flags.samples is None:
            cost = weights * sum(len(pair.prompt_ids) + flags.max_new_tokens for pair in pairs) / len(pairs)
            flags.samples = max(2, min(MOST_SAMPLES, int(WORK / 3 / cost)))
        return flags, settings | {"positions": positions}, tokenizer, pairs, len(preferences), scorer


def choose(preferences, tokenizer, limits, seed, max_pairs, tokens, template=PLAIN):
    """The first pairs in the order of the seed: `max_pairs` of them or, if that is None, as many as have `tokens`.

    Where a row stands in its file does not matter. A row that truncation leaves without an answer, or without a
    difference, is skipped.
    """
    pairs = []
    for row in sorted(preferences, key=lambda p: digest(f"evaluate {seed}", p.prompt, p.chosen, p.rejected)):
        if len(pairs) >= max_pairs if max_pairs else tokens <= 0 and len(pairs) > 1:
            break
        found = tokenize([row], tokenizer, *limits, template)[0]
        pairs += found
        tokens -= sum(pair.num_tokens for pair in found)
    if not pairs:
        raise ValueError(f"--data: no row leaves room for an answer in {limits[0]} tokens")
    return pairs


def as_json(flags, settings, rows, figures, bins):
    """The report as one JSON object; what is unknown, or infinite, is null."""

    def known(values):
        return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}

    about = {"model": str(flags.model), "reference": str(flags.reference), "data": flags.data, "rows": rows}
    about |= settings | {name: getattr(flags, name) for name in ("beta", "seed", "max_new_tokens")}
    numbers = {name: known(f._asdict() | standard_error(name, f)) for name, f in figures.items()}
    return json.dumps({**about, "figures": numbers, "calibration": [known(b._asdict()) for b in bins]}, indent=2)


def standard_error(name, f):
    """What is said of the KL beside its interval."""
    return {"standard_error": f.standard_error} if name.startswith("kl") else {}


def as_table(flags, settings, rows, figures, bins):
    """The report as text."""
    pairs = next(iter(figures.values())).n
    drawn = f"{flags.samples} answers of at most {flags.max_new_tokens} tokens"
    lines = [f"{pairs} of {rows} pairs, β = {flags.beta:g}; {drawn}", ""]
    lines.append(f"{'':40}  {'value':>8}  {'95 % interval':^20}  {'n':>6}")
    for name, f in figures.items():
        error = "".join(f"  s.e. {value:.4f}" for value in standard_error(name, f).values())
        lines.append(f"{LABELS[name]:40}  {f.value:8.4f}  [{f.low:8.4f}, {f.high:8.4f}]  {f.n:6}{error}")
    lines += ["", "calibration: how sure, how often right"]
    lines += [f"  {b.low:.2f} to {b.high:.2f}  {b.confidence:.3f}  {b.accuracy:.3f}  n {b.n:6}" for b in bins if b.n]
    return "\n".join(lines)


def evaluate(flags, settings, tokenizer, pairs, rows, scorer):
    """Measure, print and draw; returns the exit code."""
    from dpo_min.judge.measure import measure  # flags and rows are checked before PyTorch is loaded

    if flags.png:
        from dpo_min.judge import pictures  # that matplotlib is missing is said before minutes of work
    with mistakes():
        figures, bins, margins, gaps = measure(flags, settings, tokenizer, pairs, scorer)
    print((as_json if flags.json else as_table)(flags, settings, rows, figures, bins))
    if flags.png:
        pictures.draw_evaluation({LABELS[name]: f for name, f in figures.items()}, bins, margins, gaps, flags.png)
    return 0


if __name__ == "__main__":
    steady()
    PREPARED = guard(prepare, sys.argv[1:])
    on_signals(quit_at_once)  # modules that are being loaded take no exception
    import dpo_min.judge.measure  # noqa: F401

    on_signals(interrupt)
    sys.exit(guard(evaluate, *PREPARED))
