"""Is the model better than its reference? Every figure with its n and its 95 % interval.

    python -m dpo_min.judge.evaluate --model runs/demo/model --reference runs/demo/reference --data held-out.jsonl
    python -m dpo_min.judge.evaluate … --scorer my_judge:score        and how often its answers win
    python -m dpo_min.judge.evaluate … --scorer answers.jsonl:score   the same, with scores that are in a file

Give it preferences that the model was not trained on. Rows are taken in an order that the seed and their own text
decide, as many as --max-pairs says, or as some seconds of two CPU cores can score with models of this size.
"""

import importlib
import json
import math
import sys
from collections import defaultdict
from dataclasses import MISSING, dataclass
from pathlib import Path

from dpo_min.data.rows import load_preferences, read_rows, split_digest, tokenize
from dpo_min.data.tokenizer import load_tokenizer
from dpo_min.judge import trained_with
from dpo_min.model import sizes
from dpo_min.system import flags, program, signals
from dpo_min.system.files import read_json
from dpo_min.system.flags import COUNT, POSITIVE, SEED, flag

WORK = 6 * 10**11  # weights × tokens that are scored by default
MOST_SAMPLES = 500
LABELS = {
    "accuracy": "accuracy of the implicit reward",
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
class EvaluateFlags:
    """Every flag: its default, and when to change it."""

    model: Path = flag(MISSING, "model directory, such as a run's model/")
    reference: Path = flag(MISSING, "model directory of what it was before, such as a run's reference/")
    data: list[str] = flag(MISSING, "preferences that were not trained on, .jsonl or .jsonl.gz")
    skip_bad_rows: bool = flag(False, "leave malformed rows out instead of stopping at them")
    max_pairs: int | None = flag(None, "pairs to score; default: by the model's size, some seconds' worth", COUNT)
    samples: int | None = flag(None, "answers to draw for the KL; default: likewise, 500 at most", COUNT)
    max_new_tokens: int = flag(64, "the longest answer that is drawn; the KL is that of so many tokens", COUNT)
    scorer: str | None = flag(None, "what answers are worth, for the win rate: module:function or FILE.jsonl:column")
    beta: float | None = flag(None, "of the reward; default: the run's that --model is in, else 0.1", POSITIVE)
    micro_batch_size: int = flag(16, "pairs per forward; smaller when memory runs out, same result", COUNT)
    seed: int = flag(0, "other rows, other answers", SEED)
    device: str = flag("auto", "where to compute", ["auto", "cpu", "cuda", "mps"])
    dtype: str = flag("auto", "auto: bfloat16 on CUDA, float32 elsewhere", ["auto", "float32", "bfloat16", "float16"])
    json: bool = flag(False, "print JSON instead of a table")
    png: Path | None = flag(None, "also draw one page: margins, calibration, lengths")


def prepare(argv):
    """(config, settings of the run, tokenizer, pairs, rows that there are, scorer); a mistake ends the program."""
    try:
        config, _ = flags.parse(EvaluateFlags, argv, __doc__.split("\n")[0])
        settings = trained_with.run_settings(config.model)
        config.beta = config.beta or settings["beta"]
        tokenizer, theirs = (load_tokenizer(directory) for directory in (config.model, config.reference))
        if tokenizer.fingerprint() != theirs.fingerprint():
            raise ValueError(f"--reference {config.reference}: its tokenizer is not that of --model")
        sizes = [sizes.model_sizes(directory) for directory in (config.model, config.reference)]
        known, positions = (min(numbers) for numbers in zip(*sizes, strict=True))
        if tokenizer.vocab_size > known:
            raise ValueError(f"the tokenizer makes {tokenizer.vocab_size} token ids, a model knows only {known}")
        if config.png and (config.png.suffix != ".png" or not config.png.absolute().parent.is_dir()):
            raise ValueError(f"--png {config.png}: expected a file NAME.png in a directory that exists")
        scorer = config.scorer and load_scorer(config.scorer)
        preferences, _ = load_preferences(config.data, config.skip_bad_rows)
        limits = min(settings["max_length"] or 512, positions), settings["max_prompt_length"]
        config.max_new_tokens = min(config.max_new_tokens, positions // 2)  # the rest is room for the prompt
        weights = count_weights(config.model)
        pairs = choose(preferences, tokenizer, limits, config.seed, config.max_pairs, WORK / weights)
        if config.samples is None:
            cost = weights * sum(len(pair.prompt_ids) + config.max_new_tokens for pair in pairs) / len(pairs)
            config.samples = max(2, min(MOST_SAMPLES, int(WORK / 3 / cost)))
        return config, settings | {"positions": positions}, tokenizer, pairs, len(preferences), scorer
    except ValueError as error:
        program.stop(error)
    except KeyboardInterrupt:
        program.stop("stopped before anything was scored", code=130)


def count_weights(directory):
    """About how many weights a GPT-2 has by its config.json: each token takes twice as many operations."""
    config = read_json(directory / "config.json")
    layers, width = (config.get(name) for name in ("n_layer", "n_embd"))
    if type(layers) is not int or type(width) is not int or min(layers, width) < 1:
        raise ValueError(f"{directory / 'config.json'}: n_layer is {layers!r} and n_embd {width!r}, not whole numbers")
    return 12 * layers * width**2 + config["vocab_size"] * width


def choose(preferences, tokenizer, limits, seed, max_pairs, tokens):
    """The first pairs in the order of the seed: `max_pairs` of them or, if that is None, as many as have `tokens`.

    Where a row stands in its file does not matter. A row that truncation leaves without an answer is passed over.
    """
    pairs = []
    for preference in sorted(preferences, key=lambda p: split_digest(p, f"evaluate {seed}")):
        if len(pairs) >= max_pairs if max_pairs else tokens <= 0 and len(pairs) > 1:
            break
        found = tokenize([preference], tokenizer, *limits)[0]
        pairs += found
        tokens -= sum(pair.num_tokens for pair in found)
    if not pairs:
        raise ValueError(f"--data: no row leaves room for an answer in {limits[0]} tokens")
    return pairs


def load_scorer(name):
    """The function (prompt, answer) → number called module:function, or the wins in a column of a file: 0, ½ and 1.

    The file has rows as `sample.py --reference --jsonl` writes them, with one column more. Two answers to one prompt
    and of one number, the model's and the reference's, are compared.
    """
    place, _, what = name.rpartition(":")
    if not Path(place).is_file():
        try:
            scorer = getattr(importlib.import_module(place), what)
        except (Exception, SystemExit) as error:  # whatever the module raises when it is run
            raise ValueError(f"--scorer {name}: {one_line(error)}") from error
        if not callable(scorer):
            raise ValueError(f"--scorer {name}: {what} is not a function")
        return scorer
    scores = {"model": defaultdict(list), "reference": defaultdict(list)}
    for number, line, _ in read_rows(place):
        try:
            row = json.loads(line)
            scores[row["model"]][row["prompt"], row.get("sample", 0)].append(worth(row[what]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"--scorer {place}:{number}: {one_line(error)}") from error
    ours, theirs = scores.values()
    if not ours or {key: len(s) for key, s in ours.items()} != {key: len(s) for key, s in theirs.items()}:
        raise ValueError(f"--scorer {place}: the answers of model and reference do not go together")
    return [((a > b) + (a >= b)) / 2 for key in ours for a, b in zip(ours[key], theirs[key], strict=True)]


def one_line(error):
    """The type and the message of an exception that is not ours."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def worth(score):
    """A score as a finite number."""
    if isinstance(score, bool) or not math.isfinite(score := float(score)):
        raise ValueError(f"a score is {score}, not a finite number")
    return score


# Flags and rows are checked before PyTorch is imported, which takes seconds: a mistake is named at once.
if __name__ == "__main__":
    PREPARED = prepare(sys.argv[1:])
    signals.on_signals(signals.quit_at_once)  # modules that are being loaded take no exception

import torch

from dpo_min.judge.scoring import draw, groups, kl_estimates, pair_logps
from dpo_min.judge.statistics import calibration, correlation, mean, rate
from dpo_min.metrics import wins
from dpo_min.model.weights import load_model
from dpo_min.system import devices


def measure(config, settings, tokenizer, pairs, scorer):
    """({figure: `Figure`}, the bins of the calibration, reward margins (N,), length gaps (N,)) of the two models."""
    device, dtype = devices.choose_device(config.device, config.dtype)
    policy, reference = (
        load_model(d).to(device).eval().requires_grad_(False) for d in (config.model, config.reference)
    )
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        logps = pair_logps(policy, reference, pairs, settings["reduce"], config.micro_batch_size).double()  # (2, 2, N)
        change = logps[0] - logps[1]  # (2, N)
        margins = config.beta * (change[0] - change[1])
        gaps = torch.tensor([len(pair.chosen_ids) - len(pair.rejected_ids) for pair in pairs], dtype=torch.float64)
        error, bins = calibration(margins)
        figures = {
            "accuracy": rate(wins(margins, torch.zeros_like(margins))),
            "margin": mean(margins),
            "log_ratio_chosen": mean(change[0]),
            "log_ratio_rejected": mean(change[1]),
            "length_correlation": correlation(margins, gaps),
            "calibration_error": error,
        }
        length = config.max_new_tokens
        asked = [pair.prompt_ids[length - settings["positions"] :] for pair in pairs]
        asked = [asked[i % len(asked)] for i in range(config.samples)]
        limits = tokenizer.end_of_text, length
        ours = draw(policy, asked, *limits, config.seed, config.micro_batch_size)
        estimates = kl_estimates(policy, reference, asked, ours, config.micro_batch_size)
        figures["kl_mean_log_ratio"], figures["kl_sum_of_tokens"] = map(mean, estimates)
        if callable(scorer):  # another seed: the two answers to a prompt are to be independent
            theirs = draw(reference, asked, *limits, config.seed ^ 1, config.micro_batch_size)
            prompts, *texts = ([tokenizer.decode(ids) for ids in column] for column in (asked, ours, theirs))
            scores = (score_all(config.scorer, scorer, prompts, answers) for answers in texts)
            figures["win_rate"] = rate(wins(*scores))
        elif scorer:
            figures["win_rate"] = rate(torch.tensor(scorer))
    return figures, bins, margins, gaps


def score_all(name, scorer, prompts, answers):
    """The scores of answers to prompts, (n,); ValueError where the scorer fails or returns no number."""
    scores = []
    for (i,) in groups("answers scored", [0] * len(prompts), 1):
        try:
            scores.append(worth(scorer(prompts[i], answers[i])))
        except (Exception, SystemExit) as error:  # whatever a function that is not ours may raise
            raise ValueError(f"--scorer {name}: on {answers[i][:60]!r}: {one_line(error)}") from error
    return torch.tensor(scores, dtype=torch.float64)


def as_json(config, settings, rows, figures, bins):
    """The report as one JSON object; what is unknown, or infinite, is null."""

    def known(values):
        return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in values.items()}

    about = {"model": str(config.model), "reference": str(config.reference), "data": config.data, "rows": rows}
    about |= settings | {name: getattr(config, name) for name in ("beta", "seed", "max_new_tokens")}
    numbers = {name: known(f._asdict() | standard_error(name, f)) for name, f in figures.items()}
    return json.dumps({**about, "figures": numbers, "calibration": [known(b._asdict()) for b in bins]}, indent=2)


def standard_error(name, f):
    """What is said of the KL beside its interval."""
    return {"standard_error": f.standard_error} if name.startswith("kl") else {}


def as_table(config, settings, rows, figures, bins):
    """The report as text."""
    pairs = next(iter(figures.values())).n
    drawn = f"{config.samples} answers of at most {config.max_new_tokens} tokens"
    lines = [f"{pairs} of {rows} pairs, β = {config.beta:g}; {drawn}", ""]
    lines.append(f"{'':40}  {'value':>8}  {'95 % interval':^20}  {'n':>6}")
    for name, f in figures.items():
        error = "".join(f"  s.e. {value:.4f}" for value in standard_error(name, f).values())
        lines.append(f"{LABELS[name]:40}  {f.value:8.4f}  [{f.low:8.4f}, {f.high:8.4f}]  {f.n:6}{error}")
    lines += ["", "calibration: how sure, how often right"]
    lines += [f"  {b.low:.2f} to {b.high:.2f}  {b.confidence:.3f}  {b.accuracy:.3f}  n {b.n:6}" for b in bins if b.n]
    return "\n".join(lines)


def evaluate(config, settings, tokenizer, pairs, rows, scorer):
    """Measure, print and draw; returns the exit code."""
    try:
        plots = importlib.import_module("dpo_min.judge.pictures") if config.png else None
        figures, bins, margins, gaps = measure(config, settings, tokenizer, pairs, scorer)
    except ImportError as error:
        program.stop(f"--png needs matplotlib ({error})")
    except ValueError as error:
        program.stop(error)
    print((as_json if config.json else as_table)(config, settings, rows, figures, bins))
    if plots:
        plots.draw_evaluation({LABELS[name]: f for name, f in figures.items()}, bins, margins, gaps, config.png)
    return 0


if __name__ == "__main__":
    signals.on_signals(signals.interrupt)
    sys.exit(program.guard(evaluate, *PREPARED))
