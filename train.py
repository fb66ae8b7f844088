"""Train a language model on preferences, by DPO.

    python train.py --data prefs.jsonl                      fit a small GPT, then prefer
    python train.py --data prefs.jsonl --init gpt2/         start from a model directory
    python train.py --data prefs.jsonl --loss-type sft      the supervised stage alone
    torchrun --nproc_per_node=8 train.py --data …           on eight devices

Read from top to bottom: models, step, loop; dpo_min/config.py has the flags.
"""

import signal

if __name__ == "__main__":  # until the flags are read: no traceback out of a half-loaded module
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import functools
import importlib
import math
import sys
from dataclasses import replace
from itertools import chain, islice

from dpo_min import options
from dpo_min.cache import data_hash, read_pairs
from dpo_min.config import SFT_LEARNING_RATE, read_options
from dpo_min.resume import HASHES, check_flags, flags_of, versions


def prepare(argv):
    """(config, tokenizer, sets of pairs); a mistake in flags or rows ends the program with one line and exit code 2."""
    options.print_once()
    try:
        config, given = read_options(argv, __doc__.split("\n")[0])
        tokenizer = options.resolve_lengths(config)
        if config.resume:
            check_flags(config, tokenizer)
        if config.device not in ("auto", "cpu"):  # not after minutes of data; PyTorch is loaded for this one answer
            importlib.import_module("dpo_min.run").choose_device(config.device, config.dtype)
        sets = read_pairs(config, tokenizer)
        if not sets[1]:
            options.refuse(given, ["eval_every", "max_kl"], "without held-out rows, and none fell to --eval-fraction")
        return config, tokenizer, sets
    except ValueError as error:
        options.stop(error)
    except OSError as error:
        options.stop(f"preparing the data: {error}", code=1)
    except KeyboardInterrupt:
        options.stop("stopped before anything was trained", code=130)


# Flags and rows are checked before PyTorch is imported, which takes seconds: a mistake is named at once.
if __name__ == "__main__":
    sys.stdout = options.Steady(sys.stdout)
    options.on_signals(options.interrupt)
    PREPARED = prepare(sys.argv[1:])
    options.claim(PREPARED[0].out)
    options.on_signals(options.quit_at_once)

import torch

from dpo_min import distributed, run
from dpo_min.checkpoint import load_checkpoint, save_checkpoint
from dpo_min.gpt import GPT, GPTConfig
from dpo_min.losses import LOSSES, sft_loss
from dpo_min.metrics import preference_metrics
from dpo_min.optimizer import make_optimizer, schedule
from dpo_min.packing import ahead, batch_logps, batches, pack
from dpo_min.preference import margin
from dpo_min.reference import ReferenceLogps, follow, model_fingerprint
from dpo_min.watch import Watch, sampled_kl
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
        self.sft, self.stored, self.kl = reference is None, None, None
        self.overflows = 0  # steps that float16's scaler skipped
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

    def loss(self, pairs, batch, denominator):
        """The share of these pairs in the loss of a step, a scalar, and their metrics: name → (B,).

        `denominator` counts the pairs of the whole step (for sft its scored tokens), so that the shares
        of micro-batches of any sizes add up to the loss of the full batch.
        """
        config = self.config
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

    def packed(self, pairs):
        """Yield this process's micro-batches of a step: (pairs, their batch, weight, the last?)."""
        for micro, *rest in distributed.micro_batches(pairs, self.config.micro_batch_size):
            yield micro, pack(micro, chosen_only=self.sft), *rest

    def accumulate(self, pairs, packed, totals, backward=lambda loss: None):
        """`loss` and `backward` over micro-batches; sums over pairs are added to `totals`. Returns the losses."""
        denominator = sum(len(pair.chosen_ids) for pair in pairs) if self.sft else len(pairs)
        losses = []  # of every micro-batch, on its device, with the rows that it is of
        for micro, batch, weight, last in packed:
            with distributed.sync(self.logps, last):
                with self.autocast:
                    loss, metrics = self.loss(micro, batch.to(self.device), denominator)
                backward(loss * weight)
            losses.append((loss.detach(), ", ".join(pair.source for pair in micro)))
            if weight:
                totals.add(metrics, loss * denominator)
        totals.count(pairs, denominator, chosen_only=self.sft)
        return losses

    def store_reference(self, pairs, held_out, directory):
        """Score with the reference, once, every pair that this run will see, and let the model go."""
        config, total = self.config, len(pairs) + len(held_out)
        steps = islice(batches(pairs, config.batch_size, config.seed), min(count_steps(config, pairs)))
        size = config.micro_batch_size
        groups = (group for step in chain(steps, [held_out]) for group, *_ in distributed.micro_batches(step, size))
        names = ("batch_size", "micro_batch_size", "seed", "compile", "dtype")
        key = {name: getattr(config, name) for name in names} | {"device": self.device}
        key |= {"weights": model_fingerprint(self.reference), "threads": torch.get_num_threads()}
        self.stored = ReferenceLogps(directory, key)
        self.stored.fill(self.reference, groups, self.device, self.autocast, total)
        self.reference = None

    def step(self, pairs, packed, totals):
        """One optimiser step; returns the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.accumulate(pairs, packed, totals, backward=lambda loss: self.scaler.scale(loss).backward())
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        size = torch.nn.utils.get_total_norm(self.policy.parameters())
        numbers = [*map(distributed.whole, (norm, size)), *(loss for loss, _ in losses)]
        norm, size, *rest = torch.stack([x.to(norm.dtype) for x in numbers]).tolist()  # here it waits for the device
        if distributed.any_of(not all(map(math.isfinite, (norm, size, *rest)))):
            run.check_losses(losses)
            # Above scale 1 an infinite gradient is float16's overflow: the scaler skips the step and halves itself.
            overflow = not math.isfinite(norm) and self.scaler.get_scale() > 1
            self.overflows += overflow
            if not math.isfinite(size) or not (math.isfinite(norm) or overflow):
                what = f"the gradient is {norm}" if math.isfinite(size) else f"the norm of the weights is {size}"
                raise FloatingPointError(f"{what} on {', '.join(pair.source for pair in pairs)}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm

    def evaluate(self, held_out, log, step):
        """Write the metrics of the held-out pairs; returns their loss."""
        totals = run.Totals()
        with torch.no_grad():
            run.check_losses(self.accumulate(held_out, self.packed(held_out), totals))
            with self.autocast:
                kl = {"kl": self.kl()} if self.kl else {}
        return log.write("eval", step, totals, **kl)["loss"]

    def fit(self, pairs, held_out, label, save_best=lambda: None):
        """Train to the last step; False when it was interrupted, and saved, before."""
        config, parts = self.config, {"policy": self.policy, "optimizer": self.optimizer, "scaler": self.scaler}
        if config.reference_refresh:
            parts["reference"] = self.reference
        steps, epoch_steps = count_steps(config, pairs)
        state = load_checkpoint(self.directory, parts) if config.resume else None
        state = state or {"step": 0, "best": math.inf, "totals": {}, "closing": [], "overflows": 0}
        first, best, totals = state["step"], state["best"], run.Totals(state["totals"])
        self.overflows = state["overflows"]
        if first > steps:
            raise ValueError(f"--resume: the run has taken {first} steps, more than the {steps} it is now to have")
        log = run.Log(self.directory, label, steps, epoch_steps, first, state["closing"], Watch(config).look)
        step, order = first, islice(batches(pairs, config.batch_size, config.seed), first, steps)
        ready = ahead(lambda chunk: (chunk, list(self.packed(chunk))), order)
        try:
            if held_out and step == 0:
                self.evaluate(held_out, log, step)
            with run.Interrupt() as interrupt:
                for step, (chunk, packed) in enumerate(ready, first + 1):
                    rate = config.learning_rate * schedule(config.lr_schedule, step, steps, config.warmup_steps)
                    for group in self.optimizer.param_groups:
                        group["lr"] = rate
                    norm = self.step(chunk, packed, totals)
                    if config.reference_refresh and step % config.reference_refresh == 0:
                        follow(self.reference, self.policy, config.reference_alpha)
                    # The last step has both lines. What a longer run would not have there is its closing: such a
                    # run goes on from sums and a best loss that know nothing of it.
                    due = {"train": step == 1 or step % config.log_every == 0, "eval": step % config.eval_every == 0}
                    closing = [split for split, now in due.items() if step == steps and not now]
                    kept = totals.settle() if "train" in closing else totals
                    if due["train"] or step == steps:
                        more = {"overflows": self.overflows} if self.scaler.is_enabled() else {}
                        log.write("train", step, totals, grad_norm=norm, learning_rate=rate, **more)
                    log.tick(step)
                    if held_out and (due["eval"] or step == steps):
                        loss = self.evaluate(held_out, log, step)
                        if loss < best:
                            best = best if "eval" in closing else loss
                            save_best()
                    stopping = distributed.any_of(interrupt.requested)
                    if step % config.save_every == 0 or step == steps or stopping:
                        state = {"step": step, "best": best, "totals": run.Totals(kept).settle()}
                        state |= {"closing": closing, "overflows": self.overflows}
                        save_checkpoint(self.directory, parts, state)
                    if stopping:
                        return False
        except FloatingPointError as error:
            raise FloatingPointError(f"step {step}: {error}") from error
        return True


def settings_of(config, tokenizer, pairs, policy, reference):
    """What determines a run, name → value, as its config.json keeps it."""
    steps = count_steps(config, pairs)[0]
    if not config.init and config.loss_type != "sft":
        config.sft_steps = config.sft_steps or steps
    device, dtype = run.choose_device(config.device, config.dtype)
    hashes = [data_hash(paths, config.cache) for paths in (config.data, config.eval_data, config.sft_data)]
    hashes += [tokenizer.fingerprint(), config.init and model_fingerprint(policy)]
    now = dict(zip(HASHES, hashes, strict=False))  # the reference comes last
    if reference or config.loss_type == "sft" or config.init:  # one that is fitted here has no hash yet
        now["reference_sha256"] = reference and model_fingerprint(reference)
    where = {"device": device, "dtype": str(dtype).removeprefix("torch."), "versions": versions()}
    where |= {"processes": distributed.world_size(), "threads": torch.get_num_threads(), "steps": steps}
    return flags_of(config) | where | now


def train(config, tokenizer, sets):
    """Models, their settings compared with the run's if it goes on, and the run; returns the exit code."""
    run.keep_heap()
    try:
        distributed.start(run.choose_device(config.device, config.dtype)[0])
        policy, reference = build_models(config, tokenizer)
        settings = settings_of(config, tokenizer, sets[0], policy, reference)
        with run.opened(config, settings):
            return train_models(config, tokenizer, sets, policy, reference)
    except ValueError as error:
        options.stop(error)


def train_models(config, tokenizer, sets, policy, reference):
    """The first fit where one is needed, and the run; returns the exit code."""
    pairs, held_out, sft_pairs = sets
    save = functools.partial(run.save_model_directory, tokenizer=tokenizer)
    finished = True
    if reference is None and config.loss_type != "sft":
        fitted = config.out / "reference"
        if not (fitted / "config.json").exists():
            # A fit of its own, which knows nothing of the flags of what follows.
            sft = replace(
                config,
                loss_type="sft",
                max_steps=config.sft_steps,
                learning_rate=SFT_LEARNING_RATE,
                lr_schedule="cosine",
                warmup_steps=config.sft_steps // 10,
                optimizer="adamw",
                weight_decay=0.0,
                reference_refresh=None,
            )
            finished = Stage(sft, policy, None, fitted).fit(sft_pairs, held_out, "first fit")
            if finished:
                save(policy, directory=fitted)
        if finished:
            policy, reference = load_model(fitted), load_model(fitted)
            run.note_reference(config.out, model_fingerprint(reference))
    if finished:
        stage = Stage(config, policy, reference, config.out)
        if config.max_kl:
            asked = sampled_kl, policy, reference, held_out, tokenizer.end_of_text, config.seed
            stage.kl = functools.partial(*asked)
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
