"""Train a language model on preferences, by DPO.

    python train.py --data prefs.jsonl                      fit a small GPT, then prefer
    python train.py --data prefs.jsonl --init gpt2/         start from a model directory
    python train.py --data prefs.jsonl --loss-type sft      the supervised stage alone

Read from top to bottom: the options, the data, then (from `import torch` on) models, step, loop.
"""

import copy
import functools
import itertools
import math
import sys
import time
from dataclasses import MISSING, asdict, dataclass, replace
from pathlib import Path

from dpo_min import options
from dpo_min.data import fingerprint, load_preferences, split_preferences, tokenize
from dpo_min.options import COUNT, FRACTION, LENGTH, NATURAL, NOISE_RATE, NOT_NEGATIVE, POSITIVE, SEED, flag
from dpo_min.tokenizer import load_tokenizer

PREFERENCE_LOSSES = ["sigmoid"]  # the keys of losses.LOSSES, known here without PyTorch


@dataclass
class Config:
    """Every flag: its default, and when to change it."""

    data: list[str] = flag(MISSING, "preferences, .jsonl or .jsonl.gz")
    eval_data: list[str] = flag([], "held-out preferences; instead of splitting some off --data")
    eval_fraction: float = flag(0.05, "share of --data held out; 0 for none", FRACTION)
    sft_data: list[str] = flag([], "fit the first model to the chosen side of these rows; default: of --data")
    skip_bad_rows: bool = flag(False, "leave malformed rows out instead of stopping at them")
    init: Path | None = flag(None, "model directory to start from; without it a small GPT is fitted first")
    reference: Path | None = flag(None, "model directory of the reference, if it is not --init")
    tokenizer: str | None = flag(None, "bytes, gpt2 or a directory; default: --init's own, bytes without --init")
    out: Path | None = flag(None, "run directory; default: runs/ and the name of the data")
    loss_type: str = flag("sigmoid", "sigmoid is DPO; sft only imitates the chosen side", [*PREFERENCE_LOSSES, "sft"])
    beta: float = flag(0.1, "lower: follow the preferences further from the reference; higher: stay", POSITIVE)
    label_smoothing: float | None = flag(None, "rate of wrong labels that the loss allows for", NOISE_RATE)
    reduce: str = flag("sum", "mean: score a completion by its mean token, blind to length", ["sum", "mean"])
    epochs: float = flag(1.0, "passes over the data", POSITIVE)
    max_steps: int | None = flag(None, "optimiser steps, instead of --epochs", COUNT)
    sft_steps: int | None = flag(None, "length of the first fit; default: as long as what follows", COUNT)
    batch_size: int = flag(32, "pairs per optimiser step; larger for noisier labels", COUNT)
    micro_batch_size: int = flag(8, "pairs per forward; smaller when memory runs out, same result", COUNT)
    learning_rate: float | None = flag(None, "default: 1e-4, 1e-3 for sft; with --init 5e-6, 2e-5 for sft", POSITIVE)
    warmup_steps: int | None = flag(None, "default: a tenth of the run, 150 at most", NATURAL)
    lr_schedule: str = flag("constant", "after the warm-up", ["constant", "linear", "cosine"])
    optimizer: str = flag("adamw", "rmsprop is the paper's, and holds half the state", ["adamw", "rmsprop"])
    weight_decay: float = flag(0.0, "pull of the matrices towards zero", NOT_NEGATIVE)
    max_grad_norm: float = flag(1.0, "gradients longer than this are shortened to it", POSITIVE)
    max_length: int | None = flag(None, "tokens of prompt + completion; default: 512, or --block-size", LENGTH)
    max_prompt_length: int | None = flag(None, "tokens a truncated prompt keeps; default: half of --max-length", COUNT)
    n_layer: int = flag(4, "blocks of the GPT that is fitted from scratch", COUNT)
    n_head: int = flag(4, "its attention heads", COUNT)
    n_embd: int = flag(128, "its width", COUNT)
    block_size: int | None = flag(None, "its longest sequence; default: --max-length", LENGTH)
    dtype: str = flag("auto", "auto: bfloat16 on CUDA, float32 elsewhere", ["auto", "float32", "bfloat16", "float16"])
    device: str = flag("auto", "where to compute", ["auto", "cpu", "cuda", "mps"])
    compile: bool = flag(False, "torch.compile both models: a slow start, then faster steps")
    seed: int = flag(0, "initial weights, split and order of the data", SEED)
    resume: bool = flag(False, "continue the run in --out from its checkpoint")
    log_every: int = flag(10, "steps between train lines of metrics.jsonl", COUNT)
    eval_every: int = flag(100, "steps between evaluations", COUNT)
    save_every: int = flag(200, "steps between checkpoints", COUNT)


# (when, the flags that then have no effect, why): giving one of them is an error.
WITHOUT_EFFECT = (
    (
        lambda c: c.loss_type == "sft",
        "beta label_smoothing reduce reference sft_steps sft_data",
        "with --loss-type sft",
    ),
    (lambda c: c.loss_type == "sigmoid", "label_smoothing", "with --loss-type sigmoid"),
    (lambda c: c.init, "n_layer n_head n_embd block_size sft_steps sft_data", "with --init, which is a fitted model"),
    (lambda c: not c.init, "reference", "without --init: the reference is the model that is fitted first"),
    (lambda c: c.max_steps, "epochs", "with --max-steps"),
    (lambda c: c.eval_data, "eval_fraction", "with --eval-data"),
    (lambda c: not c.eval_data and c.eval_fraction == 0, "eval_every", "without held-out rows"),
)


def read_options(argv):
    """The config of a command line; ValueError for a flag that is wrong, or that would have no effect."""
    config, given = options.parse(Config, argv, __doc__.split("\n")[0])
    for applies, flags, reason in WITHOUT_EFFECT:
        if applies(config):
            options.refuse(given, flags.split(), reason)
    if config.n_embd % config.n_head:
        raise ValueError(f"--n-embd {config.n_embd} must be a multiple of --n-head {config.n_head}")
    if config.learning_rate is None:
        scratch, init = (1e-3, 2e-5) if config.loss_type == "sft" else (1e-4, 5e-6)
        config.learning_rate = init if config.init else scratch
    config.out = config.out or Path("runs") / Path(config.data[0]).name.split(".")[0]
    return config


def read_rows(config):
    """The rows to train on, the held-out rows, and the rows of the first fit: three lists of `Preference`."""
    rows, skipped = load_preferences(config.data, config.skip_bad_rows)
    held_out, sft_rows = [], None
    if config.eval_data:
        held_out, more = load_preferences(config.eval_data, config.skip_bad_rows)
        skipped += more
    else:
        rows, held_out = split_preferences(rows, config.eval_fraction, config.seed)
    if config.sft_data:
        sft_rows, more = load_preferences(config.sft_data, config.skip_bad_rows)
        skipped += more
    if skipped:
        print(f"data: {skipped} bad rows skipped")
    return rows, held_out, sft_rows


def prepare(argv):
    """Options and rows; a mistake in either ends the program with one line and exit code 2."""
    try:
        config = read_options(argv)
        return config, read_rows(config)
    except ValueError as error:
        options.stop(error)


# Flags and rows are checked before PyTorch is imported, which takes seconds: a mistake is named at once.
PREPARED = prepare(sys.argv[1:]) if __name__ == "__main__" else None

import torch

from dpo_min import run
from dpo_min.evaluate import preference_metrics
from dpo_min.gpt import GPT, GPTConfig
from dpo_min.losses import LOSSES, sft_loss
from dpo_min.optimizer import make_optimizer, schedule
from dpo_min.packing import batch_logps, batches, pack
from dpo_min.preference import margin
from dpo_min.weights import load_model


def build_models(config, tokenizer):
    """(policy, reference), float32; the reference is None for sft, and where it has yet to be fitted."""
    if not config.init:
        config.block_size = config.block_size or config.max_length or 512
        sizes = GPTConfig(tokenizer.vocab_size, config.block_size, config.n_layer, config.n_head, config.n_embd)
        policy, reference = GPT(sizes, torch.Generator().manual_seed(config.seed)), None
    else:
        policy = load_model(config.init)
        reference = None if config.loss_type == "sft" else load_model(config.reference or config.init)
    for model, name in ((policy, config.init or "the model"), (reference, config.reference or config.init)):
        if model and tokenizer.vocab_size > model.config.vocab_size:
            ids = tokenizer.vocab_size
            raise ValueError(
                f"{name} knows {model.config.vocab_size} token ids, --tokenizer {config.tokenizer} makes {ids}"
            )
        if model and (config.max_length or 2) > model.config.block_size:
            raise ValueError(f"--max-length {config.max_length}: {name} has only {model.config.block_size} positions")
    return policy, reference


def tokenize_rows(config, tokenizer, rows, block_size):
    """The three lists of `read_rows` as lists of `TokenizedPair`, saying what was cut."""
    config.max_length = config.max_length or min(block_size, 512)
    config.max_prompt_length = config.max_prompt_length or config.max_length // 2
    if config.max_prompt_length >= config.max_length:
        raise ValueError(f"--max-prompt-length must stay below --max-length, which is {config.max_length}")
    sets, truncated, dropped = zip(
        *(tokenize(part or [], tokenizer, config.max_length, config.max_prompt_length) for part in rows), strict=True
    )
    print(
        f"data: {len(sets[0])} pairs to train on, {len(sets[1])} held out; "
        f"{sum(truncated)} truncated to {config.max_length} tokens, {sum(dropped)} dropped"
    )
    if not sets[0]:
        raise ValueError(f"{', '.join(config.data)}: no row is left to train on")
    return sets[0], sets[1], sets[2] or sets[0]


def measure(config, policy, reference, pairs, weight):
    """One micro-batch: its share of the step's loss (a scalar), and its metrics, name → (B,).

    `weight` counts the pairs of the whole step (for sft its scored tokens), so that the shares of
    micro-batches of any sizes add up to the loss of the full batch.
    """
    device = policy.wte.weight.device
    if config.loss_type == "sft":
        batch = pack(pairs, chosen_only=True).to(device)
        logps = batch_logps(policy, batch)  # (B,)
        return sft_loss(logps, weight), {"logps/chosen": logps.detach()}
    batch = pack(pairs).to(device)
    policy_logps = batch_logps(policy, batch, config.reduce).chunk(2)  # chosen, rejected: (B,) each
    with torch.no_grad():
        reference_logps = batch_logps(reference, batch, config.reduce).chunk(2)
    h = margin(*policy_logps, *reference_logps)  # (B,)
    losses = LOSSES[config.loss_type].value(h, config.beta, config.label_smoothing)  # (B,)
    policy_logps = [logps.detach() for logps in policy_logps]
    return losses.sum() / weight, preference_metrics(policy_logps, reference_logps, config.beta)


def accumulate(config, policy, reference, pairs, autocast, totals, backward=None):
    """Run `measure`, and `backward` if given, over the micro-batches of `pairs`; add to `totals`."""
    weight = sum(len(pair.chosen_ids) for pair in pairs) if config.loss_type == "sft" else len(pairs)
    for start in range(0, len(pairs), config.micro_batch_size):
        micro = pairs[start : start + config.micro_batch_size]
        with autocast:
            loss, metrics = measure(config, policy, reference, micro, weight)
        if not torch.isfinite(loss):
            rows = ", ".join(pair.source for pair in micro)
            raise FloatingPointError(f"the loss is {loss.item()} on these rows: {rows}")
        if backward:
            backward(loss)
        for name, values in (metrics | {"loss": loss.detach()[None] * weight}).items():
            totals[name] = totals.get(name, 0.0) + values.double().sum().item()
    for name, number in (("pairs", len(pairs)), ("weight", weight), ("tokens", sum(p.num_tokens for p in pairs))):
        totals[name] = totals.get(name, 0) + number


def training_step(config, policy, reference, pairs, autocast, optimizer, scaler, totals):
    """One optimiser step on `pairs`; returns the gradient's norm, before it was clipped."""
    accumulate(config, policy, reference, pairs, autocast, totals, backward=lambda loss: scaler.scale(loss).backward())
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm).item()
    if (
        not math.isfinite(norm) and scaler.get_scale() <= 1
    ):  # above 1 it is float16's overflow: the scaler skips the step
        rows = ", ".join(pair.source for pair in pairs)
        raise FloatingPointError(f"the gradient's norm is {norm} on these rows: {rows}")
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


def count_steps(config, pairs):
    """Optimiser steps of the run; the last batch of an epoch may be a small one."""
    return config.max_steps or math.ceil(config.epochs * math.ceil(len(pairs) / config.batch_size))


def fit(config, policy, reference, pairs, held_out, directory, label, save_best=None):
    """Train `policy` on `pairs`; True when all steps are done, False when it was interrupted and saved."""
    device, dtype = run.choose_device(config.device, config.dtype)
    autocast = torch.autocast(device, dtype, enabled=dtype != torch.float32)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    optimizer = make_optimizer(config.optimizer, policy, config.learning_rate, config.weight_decay)
    steps, epoch_steps = count_steps(config, pairs), math.ceil(len(pairs) / config.batch_size)
    warmup = min(150, steps // 10) if config.warmup_steps is None else config.warmup_steps
    first, totals, best = 0, {}, math.inf
    if config.resume and (state := run.load_checkpoint(directory)):
        for part, name in ((policy, "policy"), (optimizer, "optimizer"), (scaler, "scaler")):
            part.load_state_dict(state[name])
        first, totals, best = state["step"], state["totals"], state["best"]
    metrics, progress = run.Metrics(directory, first), run.Progress(label, steps, first)

    def evaluate(step):
        sums, start = {}, time.perf_counter()
        with torch.no_grad():
            accumulate(config, policy, reference, held_out, autocast, sums)
        line = run.summarise(sums, "eval", step, step / epoch_steps, time.perf_counter() - start)
        metrics.write(line)
        progress.show(step, f"held out: {run.describe(line)}", keep=True)
        return line["loss"]

    if held_out and first == 0:
        evaluate(0)
    data = itertools.islice(batches(pairs, config.batch_size, config.seed), first, steps)
    with run.Interrupt() as interrupt:
        start = time.perf_counter()
        for step, chunk in enumerate(data, start=first + 1):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule(config.lr_schedule, step - 1, steps, warmup)
            try:
                norm = training_step(config, policy, reference, chunk, autocast, optimizer, scaler, totals)
            except FloatingPointError as error:
                raise FloatingPointError(f"step {step}: {error}; lower --learning-rate or look at the rows") from None
            if step == 1 or step % config.log_every == 0 or step == steps:
                line = run.summarise(totals, "train", step, step / epoch_steps, time.perf_counter() - start)
                start = time.perf_counter()
                metrics.write(line | {"grad_norm": norm, "learning_rate": group["lr"]})
                progress.show(step, run.describe(line))
            progress.tick(step)
            if held_out and (step % config.eval_every == 0 or step == steps) and (loss := evaluate(step)) < best:
                best = loss
                if save_best:
                    save_best()
            if step % config.save_every == 0 or step == steps or interrupt.requested:
                state = {
                    "policy": policy.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                }
                path = run.save_checkpoint(directory, step, state | {"totals": totals, "best": best})
            if interrupt.requested and step < steps:
                print(f"\nstopped after step {step}, saved in {path}; the same command with --resume goes on")
                return False
    return True


def train(config, rows):
    """Everything after the rows are known to be good; returns the exit code."""
    device, _ = run.choose_device(config.device, config.dtype)
    tokenizer = load_tokenizer(config.tokenizer or str(config.init or "bytes"))
    policy, reference = build_models(config, tokenizer)
    block_size = min(model.config.block_size for model in (policy, reference) if model)
    pairs, held_out, sft_pairs = tokenize_rows(config, tokenizer, rows, block_size)
    settings = {name: value for name, value in asdict(config).items() if name not in ("resume", "out")}
    settings["data_sha256"] = fingerprint([*config.data, *config.eval_data, *config.sft_data])
    run.open_run(config.out, settings, config.resume)
    policy.to(device)
    if reference is None and config.loss_type != "sft":
        directory = config.out / "reference"
        steps = config.sft_steps or count_steps(config, pairs)
        first_fit = replace(config, loss_type="sft", max_steps=steps, learning_rate=1e-3, lr_schedule="cosine")
        if config.resume and (directory / "config.json").exists():
            policy = load_model(directory).to(device)
        elif fit(first_fit, policy, None, sft_pairs, held_out, directory, "first fit"):
            run.save_model_directory(policy, tokenizer, directory)
        else:
            return 130
        reference = copy.deepcopy(policy)
    if reference is not None:
        reference.to(device).requires_grad_(False)
    if config.compile:
        for model in filter(None, (policy, reference)):
            model.compile(dynamic=True)
    save_best = functools.partial(run.save_model_directory, policy, tokenizer, config.out / "best")
    finished = fit(config, policy, reference, pairs, held_out, config.out, config.loss_type, save_best)
    run.save_model_directory(policy, tokenizer, config.out / "model")
    run.draw_curves(config.out)
    print(f"model: {config.out / 'model'}")
    return 0 if finished else 130


def main(config, rows):
    """`train`, with what can go wrong as one line: exit code 2 for a mistake, 1 for trouble in the numbers."""
    try:
        return train(config, rows)
    except ValueError as error:
        options.stop(error)
    except (FloatingPointError, OSError) as error:
        options.stop(error, code=1)


if __name__ == "__main__":
    sys.exit(main(*PREPARED))
