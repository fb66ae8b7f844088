"""The numbers of a run: sums that make exact means, metrics.jsonl for machines, a line for people."""

import json
import time
from pathlib import Path

import torch

from dpo_min.judge.trained_with import metric_lines
from dpo_min.run import distributed
from dpo_min.system.files import make_directory, write_atomically
from dpo_min.system.progress import Line, left


class Totals(dict):
    """Sums of metrics over pairs, so that a mean is exact however the pairs were divided into batches."""

    def add(self, metrics):
        """Add name → (B,) metrics, or a sum of them, a scalar; they stay on their device until `settle`."""
        for name, values in metrics.items():
            total = values.detach().sum(dtype=torch.promote_types(values.dtype, torch.float32))
            if total.device.type != "mps":  # which has no float64
                total = total.double()
            self[name] = self.get(name, 0.0) + total

    def count(self, pairs, denominator, chosen_only):
        """Count what was added: pairs, what the loss is a mean over (pairs, or tokens), and tokens seen.

        Several processes add their shares, but each sees all of a step's pairs: the first counts them.
        """
        if distributed.rank():
            return
        tokens = sum(p.num_tokens - chosen_only * sum(map(len, p.completions[1:])) for p in pairs)
        for name, number in (("pairs", len(pairs)), ("denominator", denominator), ("tokens", tokens)):
            self[name] = self.get(name, 0) + number

    def settle(self):
        """Name → number: itself, with every sum as a plain number; the device is waited for."""
        self.update({name: total.item() if torch.is_tensor(total) else total for name, total in self.items()})
        return dict(self)

    def means(self):
        """The mean of every metric; the sums start again from nothing."""
        pairs, denominator, loss = self.pop("pairs"), self.pop("denominator"), self.pop("loss")
        del self["tokens"]
        counts = {name: self.pop(f"{name}#") for name in [*self] if f"{name}#" in self}  # of means over some rows alone
        means = {name: total / (counts.get(name, pairs) or 1) for name, total in self.items()}
        self.clear()
        if counts:
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        return {"pairs": pairs, "loss": loss / denominator} | means


class Log:
    """metrics.jsonl for machines, and for people a line that rewrites itself on a terminal.

    A resumed run first drops the lines that it is about to write again. Of several processes the first writes the
    file; `dpo_min.system.launcher.print_once` keeps the others from printing.
    """

    SHOWN = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}  # noqa: RUF012

    def __init__(self, directory, label, steps, epoch_steps, first=0, closing=(), look=lambda line: None):
        """A run of `steps` steps, `epoch_steps` to the epoch, that begins or goes on after step `first`.

        closing: the splits whose line of step `first` was written only because a shorter run ended there;
        look: called with every line.
        """
        self.closing, self.look = closing if first < steps else (), look
        self.path = Path(directory) / "metrics.jsonl"
        self.label, self.steps, self.epoch_steps, self.first = label, steps, epoch_steps, first
        self.line, self.text = Line(), ""
        self.start = self.last = time.perf_counter()
        if distributed.rank() == 0:
            self.begin(first)

    def begin(self, first):
        """The file, empty or with the lines that were earned by step `first`."""
        make_directory(self.path.parent)
        damaged, lines = 0, metric_lines(self.path) if first and self.path.exists() else ()
        with write_atomically(self.path) as file:
            for line, values in lines:
                if values and earned(values, first, self.closing):
                    file.write(line)
                damaged += not values and line.endswith(b"\n")
        if damaged:
            print(f"resume: {self.path}: {damaged} damaged lines are left out")

    def write(self, split, step, totals, **more):
        """Write and show the means of `totals` over all processes; it starts again. Returns the line."""
        totals.update(distributed.sums(totals.settle()))
        now = time.perf_counter()
        more["tokens_per_second"] = round(totals["tokens"] / (now - self.last), 1)
        pace = totals["pairs"] / (now - self.last)
        self.last = now
        line = {"split": split, "step": step, "epoch": round(step / self.epoch_steps, 4)} | totals.means() | more
        if distributed.rank() == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        text = "  ".join(f"{short} {line[name]:.4f}" for name, short in self.SHOWN.items() if name in line)
        if split == "eval":
            self.show(step, f"held out: {text}", stays=True)
        else:
            self.text = f"{text}  {pace:.1f} pairs/s"
            self.show(step, self.text)
        self.look(line)
        return line

    def tick(self, step):
        """Count a step on a terminal's line; the last one stays."""
        if self.line.live:
            self.show(step, self.text, stays=step == self.steps)

    def show(self, step, text, stays=False):
        """Show label, step, figures, and the time left at the pace so far."""
        time_left = left(self.start, step - self.first, self.steps - self.first)
        self.line.show(f"{self.label} {step:>{len(str(self.steps))}}/{self.steps}  {text}{time_left}", stays)


def earned(values, step, closing=()):
    """Whether a line of metrics is of a step reached by `step`, and none of that step's `closing` lines."""
    return values["step"] < step or (values["step"] == step and values["split"] not in closing)
