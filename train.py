"""Train a language model on preferences, by DPO.

    python train.py --data prefs.jsonl                      fit a small GPT, then prefer
    python train.py --data prefs.jsonl --init gpt2/         start from a model directory
    torchrun --nproc_per_node=8 train.py --data …           on eight devices

Read downwards: the models; one stage of training: its loss, step and loop; the stages of a run. --help lists flags.
"""

from dpo_min.run.start import JOB  # the first import: flags and rows are checked there before PyTorch is loaded

# isort: split
import functools
import sys
from itertools import chain, islice

import torch

from dpo_min.data.batch import ahead, batches, pack
from dpo_min.metrics import preference_metrics
from dpo_min.model import lora
from dpo_min.model.gpt import GPT, GPTConfig
from dpo_min.preference import log_ratios
from dpo_min.run import distributed
from dpo_min.run.answers import criterion_of
from dpo_min.run.calendar import Calendar, count_steps
from dpo_min.run.checkpoint import load_checkpoint, save_checkpoint
from dpo_min.run.finite import check_losses, check_step, named_step
from dpo_min.run.interrupt import Interrupt
from dpo_min.run.log import Log, Totals
from dpo_min.run.models import load_models, save_outcome
from dpo_min.run.optimizer import make_optimizer, set_learning_rate
from dpo_min.run.session import draw_curves, identity_of, kept_best, note_reference, opened, save_model_directory
from dpo_min.run.stored_reference import ReferenceLogps, follow, settings_of
from dpo_min.run.train_flags import first_fit_flags
from dpo_min.run.watch import Watch, sampled_kl
from dpo_min.system.devices import choose_device, keep_heap
from dpo_min.system.program import beside, guard, mistakes


def build_models(flags, tokenizer):
    """(policy, reference), which may be one model; no reference where the loss has none or it has yet to be fitted."""
    if flags.init:
        return load_models(flags)
    sizes = GPTConfig(tokenizer.vocab_size, flags.block_size, flags.n_layer, flags.n_head, flags.n_embd)
    return GPT(sizes, torch.Generator().manual_seed(flags.seed)), None


class Stage:
    """One fit of a policy. DPO is a stage, and so is the supervised fit (SFT) before it, which compares nothing."""

    def __init__(self, flags, policy, reference, directory):
        """The reference is None where the loss has none, and may be the policy: as it begins, or its adapters off."""
        self.flags, self.policy, self.reference, self.directory = flags, policy, reference, directory
        self.sft, self.criterion = flags.loss_type == "sft", criterion_of(flags)
        self.stored, self.kl = None, None  # log π_ref of all pairs, once stored; what estimates the KL, under --max-kl
        self.taken, self.overflows = 0, 0  # steps so far, and those of them that float16's scaler skipped
        self.device, dtype = choose_device(flags.device, flags.dtype)
        self.autocast = torch.autocast(self.device, dtype, enabled=dtype != torch.float32)
        self.scaler = torch.amp.GradScaler(self.device, enabled=dtype == torch.float16)
        policy.checkpoint_activations = flags.checkpoint_activations
        if reference and reference is not policy:
            reference.requires_grad_(False)
        lora.narrow_frozen(policy, dtype)
        for model in {policy, reference} - {None}:
            model.to(self.device)
            if flags.compile:
                model.compile(dynamic=True)
        self.score = distributed.wrap(policy, flags.shard)  # before the optimizer: FSDP makes new parameters
        self.score_ref = self.score if reference is policy else distributed.Logps(reference)
        self.trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(flags.optimizer, policy, flags.learning_rate, flags.weight_decay)
        self.parts = {"policy": policy, "optimizer": self.optimizer, "scaler": self.scaler}  # of a checkpoint
        self.parts |= {"reference": reference} if flags.reference_refresh else {}

    def store_reference(self, pairs, held_out, directory, fingerprint):
        """Score every pair that this run will see with the reference, once; then free its memory, if it has its own."""
        flags, size, reduce = self.flags, self.flags.micro_batch_size, self.criterion.reduce
        epoch = islice(batches(pairs, flags.batch_size, flags.seed), min(count_steps(flags, pairs)))  # or a shorter run
        groups = (group for step in chain(epoch, [held_out]) for group, *_ in distributed.micro_batches(step, size))
        with lora.adapters_off(self.reference):
            self.stored = ReferenceLogps(directory, settings_of(flags, fingerprint, self.device, reduce))
            self.stored.fill(self.score_ref, groups, self.device, self.autocast, len(pairs) + len(held_out), reduce)
        self.reference = self.score_ref = None

    def reference_logps(self, pairs, batch, like):
        """Log π_ref of both answers of every pair, (B,) twice: stored, or asked of the model now; 0 without one."""
        if not self.flags.has_reference:
            return torch.zeros_like(like), torch.zeros_like(like)
        if self.stored:
            return self.stored.look_up(pairs, like, self.criterion.reduce)
        with torch.no_grad(), lora.adapters_off(self.reference):
            return self.score_ref(batch, self.criterion.reduce).chunk(2)

    def loss(self, pairs, batch, denominator):
        """The share of these pairs in the loss of a step, a scalar, and their metrics: name → (B,).

        `denominator` counts the pairs of the whole step (for sft its scored tokens), so that the shares
        of micro-batches of any sizes add up to the loss of the full batch.
        """
        if self.criterion.loss:  # sft, ranked lists, thumbs: run/answers.py
            return self.criterion.loss(self, pairs, batch, denominator)
        policy_logps = self.score(batch, self.criterion.reduce).chunk(2)  # chosen and rejected, (B,) each
        reference_logps = self.reference_logps(pairs, batch, policy_logps[0])
        a, b = log_ratios(*policy_logps, *reference_logps)  # (B,) each; a − b is the margin h
        losses = self.criterion.value(a, b, policy_logps, pairs, batch, self.score)  # (B,)
        return losses.sum() / denominator, preference_metrics(policy_logps, reference_logps, self.flags.beta)

    def packed(self, pairs):
        """Yield this process's micro-batches of a step: (pairs, their batch, weight, the last?)."""
        for micro, *rest in distributed.micro_batches(pairs, self.flags.micro_batch_size):
            yield micro, pack(micro, chosen_only=self.sft), *rest

    def share(self, micro, batch, weight, denominator, totals):
        """`loss` of one micro-batch, with the names of its rows; its metrics are added to `totals`."""
        with self.autocast:
            loss, metrics = self.loss(micro, batch.to(self.device), denominator)
        if weight:  # 0: another process has these pairs, and counts them
            totals.add(metrics | {"loss": loss * denominator})  # a sum again, as the metrics are
            self.criterion.after_batch(metrics)
        return loss, ", ".join(pair.source for pair in micro)

    def count_step(self, pairs, totals):
        """Count a step in `totals`; returns what its loss is a mean over: its pairs, or for sft its scored tokens."""
        number = sum(len(pair.chosen_ids) for pair in pairs) if self.sft else len(pairs)
        totals.count(pairs, number, chosen_only=self.sft)
        return number

    def step(self, pairs, packed, totals):
        """One optimiser step; returns the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        denominator, losses = self.count_step(pairs, totals), []
        self.criterion.before_step(self, pairs)
        for micro, batch, weight, last in packed:
            with distributed.sync(self.score, last):
                loss, sources = self.share(micro, batch, weight, denominator, totals)
                self.scaler.scale(loss * weight).backward()  # these add up; `weight` undoes DDP's mean
            losses.append((loss.detach(), sources))
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.flags.max_grad_norm)
        norm, overflow = check_step(norm, self.trained, losses, pairs, self.scaler)
        self.overflows += overflow
        self.criterion.after_step()
        self.scaler.step(self.optimizer)  # does nothing where float16 overflowed
        self.scaler.update()
        return norm

    def evaluate(self, held_out, log):
        """Write the metrics of the held-out pairs; returns their loss."""
        totals = Totals()
        denominator = self.count_step(held_out, totals)
        self.criterion.before_step(self, held_out)
        with torch.no_grad():
            check_losses([self.share(*packed, denominator, totals) for *packed, last in self.packed(held_out)])
            with self.autocast:
                kl = {"kl": self.kl()} if self.kl else {}
        return log.write("eval", self.taken, totals, **kl)["loss"]

    def begin(self):
        """Take up the newest checkpoint, or begin; returns its (sums of metrics not yet logged, `Calendar.closing`)."""
        state = self.flags.resume and load_checkpoint(self.directory, self.parts)
        state = state or {"step": 0, "best": float("inf"), "totals": {}, "closing": [], "overflows": 0}
        self.taken, self.overflows = state["step"], state["overflows"]
        self.best = kept_best(self.directory, state["best"])
        self.criterion.seen |= state.get("seen", {})
        return Totals(state["totals"]), state["closing"]

    def fit(self, pairs, held_out, label, save_best=lambda: None):
        """Train to the last step; False when it was interrupted, and saved, before."""
        flags, (steps, epoch_steps) = self.flags, count_steps(self.flags, pairs)
        totals, closing = self.begin()
        log = Log(self.directory, label, steps, epoch_steps, self.taken, closing, Watch(flags).look)
        due = Calendar(steps, flags.log_every, flags.eval_every, flags.save_every)
        chunks = islice(batches(pairs, flags.batch_size, flags.seed), self.taken, steps)  # the pairs of each step
        ready = ahead(lambda chunk: (chunk, list(self.packed(chunk))), chunks)  # the next step's, while this one runs
        with named_step(self), Interrupt() as interrupt:
            if held_out and self.taken == 0:
                self.evaluate(held_out, log)
            for chunk, packed in ready:
                self.taken += 1
                rate = set_learning_rate(self.optimizer, flags, self.taken, steps)
                norm = self.step(chunk, packed, totals)
                if flags.reference_refresh and self.taken % flags.reference_refresh == 0:
                    follow(self.reference, self.policy, flags.reference_alpha)
                closing, best = due.closing(self.taken), self.best  # a longer run takes back what only ends this one,
                kept = totals.settle() if "train" in closing else totals  # and goes on from these
                if due.logs(self.taken):
                    more = {"overflows": self.overflows} if self.scaler.is_enabled() else {}
                    log.write("train", self.taken, totals, grad_norm=norm, learning_rate=rate, **more)
                log.tick(self.taken)
                if held_out and due.evaluates(self.taken):
                    loss = self.evaluate(held_out, log)
                    if loss < self.best:
                        self.best = loss
                        save_best()
                stopping = distributed.any_of(interrupt.requested)
                if due.saves(self.taken) or stopping:
                    best = best if "eval" in closing else self.best
                    state = {"step": self.taken, "best": best, "totals": Totals(kept).settle(), "closing": closing}
                    state |= {"overflows": self.overflows, "seen": self.criterion.seen}
                    save_checkpoint(self.directory, self.parts, state)
                if stopping:
                    return False
        return True


def first_fit(job, policy):
    """Imitate before preferring: fit the policy to chosen answers, in reference/. Returns whether it was finished."""
    place, finished = job.flags.out / "reference", True
    if (place / "config.json").exists():  # which is written last
        return True
    if not job.flags.adapter:  # with --adapter that fit was made before: base and adapter are merged here
        stage = Stage(first_fit_flags(job.flags), policy, None, place)
        finished = stage.fit(job.sft_pairs, job.held_out, "first fit")
    if finished:
        save_model_directory(policy, job.tokenizer, place)
    return finished


def main_fit(job, stage, fingerprint):
    """The stage that the run is for; saves its model. Returns whether it was finished."""
    flags, held_out = job.flags, job.held_out
    if flags.max_kl:
        stage.kl = functools.partial(sampled_kl, stage.policy, stage.reference, held_out, job.tokenizer, flags.seed)
    stage.criterion.before_run(job.pairs)
    if flags.stores_reference:
        stage.store_reference(job.pairs, held_out, flags.cache, fingerprint)
    save = functools.partial(save_outcome, stage.policy, job.tokenizer, flags)
    finished = stage.fit(job.pairs, held_out, flags.loss_type, lambda: save("best"))
    with beside(draw_curves, flags.out):  # takes a second
        save("model")
    return finished


def train(job):
    """The run; returns the exit code."""
    flags, finished = job.flags, True
    keep_heap()  # what glibc frees serves the next step
    with mistakes():  # a ValueError in here is the user's: one line, and the end
        device, _ = choose_device(flags.device, flags.dtype)
    with distributed.joined(device):
        with mistakes():
            policy, reference = build_models(flags, job.tokenizer)
            lora.linear_layers(policy, flags.lora_targets)  # an unknown one is an error now, not after the first fit
            identity = identity_of(job, policy, reference)
        with opened(flags, identity):
            alone = flags.loss_type == "sft" or (flags.init and not flags.adapter)  # no fit has to come before
            if not alone and (finished := first_fit(job, policy)):
                with mistakes():
                    policy, reference = load_models(flags, flags.out / "reference")
                    identity["reference_sha256"] = note_reference(flags.out, policy)
            if finished:
                stage, reference = Stage(flags, policy, reference, flags.out), None  # so that the stage can free it
                finished = main_fit(job, stage, identity.get("reference_sha256"))
    print(f"done: {flags.outcome}" if finished else f"stopped and saved in {flags.out}: --resume goes on")
    return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(guard(train, JOB))
