"""Train a language model on preferences, by DPO.

    python train.py --data prefs.jsonl                      fit a small GPT, then prefer
    python train.py --data prefs.jsonl --init gpt2/         start from a model directory
    python train.py --data prefs.jsonl --loss-type sft      the supervised stage alone
    torchrun --nproc_per_node=8 train.py --data …           on eight devices

Read from top to bottom: the options, the data, then (from `import torch` on) models, step, loop.
"""

import functools
import math
import sys
from dataclasses import MISSING, asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from dpo_min import options
from dpo_min.cache import data_hash, read_pairs
from dpo_min.options import (
    COUNT,
    FRACTION,
    LENGTH,
    NATURAL,
    NOISE_RATE,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    RATE,
    SEED,
    SIZE,
    flag,
)

# The keys of losses.LOSSES, known here without PyTorch, and those of them that have an ε.
PREFERENCE_LOSSES = ["sigmoid", "cdpo", "robust", "ipo", "hinge", "exo_pair", "discopop"]
SMOOTHED = ["cdpo", "robust", "exo_pair"]
SFT_LEARNING_RATE = 2e-3  # of a small GPT from scratch


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
    reference_refresh: int | None = flag(None, "steps after which the reference takes a step towards the policy", COUNT)
    reference_alpha: float = flag(0.6, "length of that step; 1 makes it the policy", PROBABILITY)
    tokenizer: str | None = flag(None, "bytes, gpt2 or a directory; default: --init's own, bytes without --init")
    out: Path | None = flag(None, "run directory; default: runs/ and the name of the data")
    loss_type: str = flag("sigmoid", "losses.py says when to use which; sft imitates", [*PREFERENCE_LOSSES, "sft"])
    beta: float = flag(0.1, "lower: follow the preferences further from the reference; higher: stay", POSITIVE)
    label_smoothing: float | None = flag(None, "rate of wrong labels to allow for; default: 0.1", NOISE_RATE)
    reduce: str = flag("sum", "mean: score a completion by its mean token, blind to length", ["sum", "mean"])
    epochs: float = flag(1.0, "passes over the data", POSITIVE)
    max_steps: int | None = flag(None, "optimiser steps, instead of --epochs", COUNT)
    sft_steps: int | None = flag(None, "length of the first fit; default: as long as what follows", COUNT)
    batch_size: int = flag(32, "pairs per optimiser step; larger for noisier labels", COUNT)
    micro_batch_size: int = flag(4, "pairs per forward; smaller when memory runs out, same result", COUNT)
    learning_rate: float | None = flag(None, "default: 1e-4, 2e-3 for sft; with --init 5e-6, 2e-5 for sft", RATE)
    warmup_steps: int | None = flag(None, "default: a tenth of the run, 150 at most", NATURAL)
    lr_schedule: str = flag("constant", "after the warm-up", ["constant", "linear", "cosine"])
    optimizer: str = flag("adamw", "rmsprop is the paper's, and holds half the state", ["adamw", "rmsprop"])
    weight_decay: float = flag(0.0, "pull of the matrices towards zero", NOT_NEGATIVE)
    max_grad_norm: float = flag(1.0, "gradients longer than this are shortened to it", POSITIVE)
    max_length: int | None = flag(None, "tokens of prompt + completion; default: 512, or --block-size", LENGTH)
    max_prompt_length: int | None = flag(None, "tokens a truncated prompt keeps; default: half of --max-length", COUNT)
    n_layer: int = flag(4, "blocks of the GPT that is fitted from scratch", SIZE)
    n_head: int = flag(4, "its attention heads", SIZE)
    n_embd: int = flag(128, "its width", SIZE)
    block_size: int | None = flag(None, "its longest sequence; default: --max-length", LENGTH)
    dtype: str = flag("auto", "auto: bfloat16 on CUDA, float32 elsewhere", ["auto", "float32", "bfloat16", "float16"])
    device: str = flag("auto", "where to compute", ["auto", "cpu", "cuda", "mps"])
    checkpoint_activations: bool = flag(False, "compute each block twice to hold only its input: less memory, slower")
    compile: bool = flag(False, "torch.compile both models: a slow start, then faster steps")
    shard: bool = flag(False, "under torchrun, FSDP instead of DDP: when one device cannot hold the training state")
    seed: int = flag(0, "initial weights, split and order of the data", SEED)
    resume: bool = flag(False, "continue the run in --out from its checkpoint")
    log_every: int = flag(10, "steps between train lines of metrics.jsonl", COUNT)
    eval_every: int = flag(100, "steps between evaluations", COUNT)
    save_every: int = flag(200, "steps between checkpoints", COUNT)

    @property
    def cache(self):
        """Where the data's pairs are kept, beside the run: the next run on the same data finds them there."""
        return self.out.parent / "cache"


# (when, the flags that then have no effect, why): giving one of them is an error.
WITHOUT_EFFECT = (
    (lambda c: c.loss_type == "sft", "beta label_smoothing reduce reference reference_refresh", "with --loss-type sft"),
    (lambda c: not c.reference_refresh, "reference_alpha", "without --reference-refresh"),
    (lambda c: c.loss_type == "sft", "sft_steps sft_data", "with --loss-type sft, which is that fit itself"),
    (lambda c: c.loss_type not in SMOOTHED, "label_smoothing", f"except with --loss-type {', '.join(SMOOTHED)}"),
    (lambda c: c.init, "n_layer n_head n_embd block_size sft_steps sft_data", "with --init, which is a fitted model"),
    (lambda c: not c.init, "reference", "without --init: the reference is the model that is fitted first"),
    (lambda c: c.max_steps, "epochs", "with --max-steps"),
    (lambda c: c.eval_data, "eval_fraction", "with --eval-data"),
    (lambda c: not c.eval_data and c.eval_fraction == 0, "eval_every", "without held-out rows"),
    (lambda c: options.processes() == 1, "shard", "in one process: torchrun starts more"),
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
        scratch, init = (SFT_LEARNING_RATE, 2e-5) if config.loss_type == "sft" else (1e-4, 5e-6)
        config.learning_rate = init if config.init else scratch
    config.out = config.out or Path("runs") / Path(config.data[0]).name.split(".")[0]
    options.check_out(config.out, config.resume)
    return config


def prepare(argv):
    """(config, tokenizer, sets of pairs); a mistake in flags or rows ends the program with one line and exit code 2."""
    options.print_once()
    try:
        config = read_options(argv)
        tokenizer = options.resolve_lengths(config)
        return config, tokenizer, read_pairs(config, tokenizer)
    except ValueError as error:
        options.stop(error)
    except OSError as error:
        options.stop(f"preparing the data: {error}", code=1)
    except KeyboardInterrupt:
        options.stop("stopped before anything was trained", code=130)


# Flags and rows are checked before PyTorch is imported, which takes seconds: a mistake is named at once.
PREPARED = prepare(sys.argv[1:]) if __name__ == "__main__" else None

import torch

from dpo_min import distributed, run
from dpo_min.checkpoint import load_checkpoint, save_checkpoint
from dpo_min.gpt import GPT, GPTConfig
from dpo_min.losses import LOSSES, sft_loss
from dpo_min.metrics import preference_metrics
from dpo_min.optimizer import make_optimizer, schedule
from dpo_min.packing import batch_logps, batches, pack
from dpo_min.preference import margin
from dpo_min.reference import ReferenceLogps, follow, model_fingerprint
from dpo_min.weights import load_model


def build_models(config, tokenizer):
    """(policy, reference); the reference is None for sft, and where it has yet to be fitted."""
    if config.init:
        policy = load_model(config.init)
        return policy, None if config.loss_type == "sft" else load_model(config.reference or config.init)
    sizes = GPTConfig(tokenizer.vocab_size, config.block_size, config.n_layer, config.n_head, config.n_embd)
    return GPT(sizes, torch.Generator().manual_seed(config.seed)), None


def count_steps(config, pairs):
    """(steps of the run, steps of an epoch); the last step of an epoch takes what is left of it."""
    epoch_steps = math.ceil(len(pairs) / config.batch_size)
    return config.max_steps or math.ceil(config.epochs * epoch_steps), epoch_steps


class Stage:
    """One fit of a policy: the step, the evaluation and the loop. DPO is a stage, and so is the SFT before it."""

    def __init__(self, config, policy, reference, directory):
        """The reference is None for sft; metrics and checkpoint go to `directory`."""
        self.config, self.policy, self.reference, self.directory = config, policy, reference, directory
        self.sft, self.stored = reference is None, None
        self.device, dtype = run.choose_device(config.device, config.dtype)
        self.autocast = torch.autocast(self.device, dtype, enabled=dtype != torch.float32)
        self.scaler = torch.amp.GradScaler(self.device, enabled=dtype == torch.float16)
        policy.checkpoint_activations = config.checkpoint_activations
        if reference:
            reference.requires_grad_(False)
        for model in filter(None, (policy, reference)):
            model.to(self.device)
            if config.compile:
                model.compile(dynamic=True)
        self.logps = distributed.wrap(policy, config.shard)  # before the optimizer: FSDP makes new parameters
        self.optimizer = make_optimizer(config.optimizer, policy, config.learning_rate, config.weight_decay)

    def loss(self, pairs, denominator):
        """The share of these pairs in the loss of a step, a scalar, and their metrics: name → (B,).

        `denominator` counts the pairs of the whole step (for sft its scored tokens), so that the shares
        of micro-batches of any sizes add up to the loss of the full batch.
        """
        config = self.config
        batch = pack(pairs, chosen_only=self.sft).to(self.device)
        if self.sft:
            logps = self.logps(batch)  # (B,)
            return sft_loss(logps, denominator), {"logps/chosen": logps.detach()}
        policy_logps = self.logps(batch, config.reduce).chunk(2)  # chosen and rejected, (B,) each
        if self.stored:
            reference_logps = self.stored.look_up(pairs, policy_logps[0], config.reduce)
        else:
            with torch.no_grad():
                reference_logps = batch_logps(self.reference, batch, config.reduce).chunk(2)
        h = margin(*policy_logps, *reference_logps)  # (B,)
        losses = LOSSES[config.loss_type].value(h, config.beta, config.label_smoothing)  # (B,)
        return losses.sum() / denominator, preference_metrics(policy_logps, reference_logps, config.beta)

    def accumulate(self, pairs, totals, backward=lambda loss: None):
        """`loss` and `backward` over this process's micro-batches; sums over pairs are added to `totals`."""
        denominator = sum(len(pair.chosen_ids) for pair in pairs) if self.sft else len(pairs)
        for micro, weight in distributed.micro_batches(self.logps, pairs, self.config.micro_batch_size):
            with self.autocast:
                loss, metrics = self.loss(micro, denominator)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} on {', '.join(pair.source for pair in micro)}")
            backward(loss * weight)
            if weight:
                totals.add(metrics, loss * denominator)
        totals.count(pairs, denominator, chosen_only=self.sft)

    def store_reference(self, pairs, held_out, directory):
        """Score with the reference, once, every pair that this run will see, and let the model go."""
        config = self.config
        steps, epoch_steps = count_steps(config, pairs)
        chunks = islice(batches(pairs, config.batch_size, config.seed), min(steps, epoch_steps))
        size = config.micro_batch_size
        groups = [m for chunk in (*chunks, held_out) for m, _ in distributed.micro_batches(self.logps, chunk, size)]
        names = ("batch_size", "micro_batch_size", "seed", "compile", "dtype")
        key = {name: getattr(config, name) for name in names} | {"device": self.device}
        key |= {"weights": model_fingerprint(self.reference), "threads": torch.get_num_threads()}
        self.stored = ReferenceLogps(directory, key)
        self.stored.fill(self.reference, groups, self.device, self.autocast)
        self.reference = None

    def step(self, pairs, totals):
        """One optimiser step; returns the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        self.accumulate(pairs, totals, backward=lambda loss: self.scaler.scale(loss).backward())
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        norm = distributed.whole(norm).item()
        # Above scale 1 an infinite gradient is float16's overflow: the scaler skips the step and halves itself.
        if not math.isfinite(norm) and self.scaler.get_scale() <= 1:
            raise FloatingPointError(f"the gradient is {norm} on {', '.join(pair.source for pair in pairs)}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def evaluate(self, held_out, log, step):
        """Write the metrics of the held-out pairs; returns their loss."""
        totals = run.Totals()
        with torch.no_grad():
            self.accumulate(held_out, totals)
        return log.write("eval", step, totals)["loss"]

    def fit(self, pairs, held_out, label, save_best=lambda: None):
        """Train to the last step; False when it was interrupted, and saved, before."""
        config, parts = self.config, {"policy": self.policy, "optimizer": self.optimizer, "scaler": self.scaler}
        if config.reference_refresh:
            parts["reference"] = self.reference
        steps, epoch_steps = count_steps(config, pairs)
        state = load_checkpoint(self.directory, parts) if config.resume else None
        state = state or {"step": 0, "best": math.inf, "totals": {}}
        first, best, totals = state["step"], state["best"], run.Totals(state["totals"])
        log = run.Log(self.directory, label, steps, epoch_steps, first)
        step, order = first, islice(batches(pairs, config.batch_size, config.seed), first, steps)
        try:
            if held_out and step == 0:
                self.evaluate(held_out, log, step)
            with run.Interrupt() as interrupt:
                for step, chunk in enumerate(order, first + 1):
                    rate = config.learning_rate * schedule(config.lr_schedule, step, steps, config.warmup_steps)
                    for group in self.optimizer.param_groups:
                        group["lr"] = rate
                    norm = self.step(chunk, totals)
                    if config.reference_refresh and step % config.reference_refresh == 0:
                        follow(self.reference, self.policy, config.reference_alpha)
                    if step == 1 or step % config.log_every == 0 or step == steps:
                        log.write("train", step, totals, grad_norm=norm, learning_rate=rate)
                    log.tick(step)
                    if held_out and (step % config.eval_every == 0 or step == steps):
                        loss = self.evaluate(held_out, log, step)
                        if loss < best:
                            best = loss
                            save_best()
                    stopping = distributed.any_of(interrupt.requested)
                    if step % config.save_every == 0 or step == steps or stopping:
                        state = {"step": step, "best": best, "totals": dict(totals)}
                        save_checkpoint(self.directory, parts, state)
                    if stopping:
                        return False
        except FloatingPointError as error:
            raise FloatingPointError(f"step {step}: {error}") from error
        return True


def train(config, tokenizer, sets):
    """Models, the first fit where one is needed, and the run; returns the exit code."""
    pairs, held_out, sft_pairs = sets
    run.keep_heap()
    try:
        distributed.start(run.choose_device(config.device, config.dtype)[0])
        policy, reference = build_models(config, tokenizer)
        settings = {name: value for name, value in asdict(config).items() if name not in ("resume", "out", "shard")}
        settings["data_sha256"] = data_hash(config.data + config.eval_data + config.sft_data, config.cache)
        settings["reference_sha256"] = model_fingerprint(reference) if reference else None
        run.open_run(config.out, settings)
    except ValueError as error:
        options.stop(error)
    save = functools.partial(run.save_model_directory, tokenizer=tokenizer)
    finished = True
    if reference is None and config.loss_type != "sft":
        fitted = config.out / "reference"
        if not (fitted / "config.json").exists():
            steps = config.sft_steps or count_steps(config, pairs)[0]
            sft = replace(
                config,
                loss_type="sft",
                max_steps=steps,
                learning_rate=SFT_LEARNING_RATE,
                lr_schedule="cosine",
                reference_refresh=None,
            )
            finished = Stage(sft, policy, None, fitted).fit(sft_pairs, held_out, "first fit")
            if finished:
                save(policy, directory=fitted)
        if finished:
            policy, reference = load_model(fitted), load_model(fitted)
    if finished:
        stage = Stage(config, policy, reference, config.out)
        del reference  # the stage lets it go once its log-probabilities are stored
        if not stage.sft and not config.reference_refresh:
            stage.store_reference(pairs, held_out, config.cache)
        finished = stage.fit(pairs, held_out, config.loss_type, lambda: save(policy, directory=config.out / "best"))
        save(policy, directory=config.out / "model")
        run.draw_curves(config.out)
    if not finished:
        print(f"stopped and saved in {config.out}: the same command with --resume goes on")
        return 130
    print(f"done: {config.out / 'model'}")
    return 0


if __name__ == "__main__":
    sys.exit(run.guard(train, *PREPARED))
