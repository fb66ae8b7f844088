"""The run directory: its config, its metrics, its checkpoint; and the line that shows how a run is going."""

import importlib
import json
import platform
import signal
import sys
import time
from pathlib import Path

import torch

from dpo_min.weights import read_json, save_model, write_atomically


def open_run(directory, settings, resume):
    """Make a run directory and write its config.json, or check that it is the run that is to be resumed.

    Args: settings, a JSON object that says everything that determines the run.

    Raises:
        ValueError: the directory holds a run and `resume` is off; it holds none and `resume` is on; or
            its settings differ from these, with the differences named.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not resume:
        if path.exists():
            raise ValueError(f"--out {directory} already holds a run: choose another, or continue it with --resume")
        if directory.exists() and not directory.is_dir():
            raise ValueError(f"--out {directory} is not a directory")
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, settings | {"versions": versions()})
        return
    if not path.exists():
        raise ValueError(f"--resume: {directory} holds no run")
    before = read_json(path)
    for key, value in json.loads(json.dumps(settings, default=str)).items():
        if before.get(key) != value:
            name = "--" + key.replace("_", "-")
            raise ValueError(f"--resume: {name} was {before.get(key)!r} when the run began and is {value!r} now")


def versions():
    """What the run was made with."""
    return {"python": platform.python_version(), "torch": torch.__version__}


def write_json(path, value):
    """Write a value as indented JSON, complete or not at all."""
    with write_atomically(path) as file:
        file.write(json.dumps(value, indent=2, default=str).encode() + b"\n")


def save_model_directory(model, tokenizer, directory):
    """A model with its tokenizer's files: what `--init` and `sample.py --model` take."""
    save_model(model, directory, tokenizer.end_of_text)
    tokenizer.save(directory)


def choose_device(device, dtype):
    """(device, autocast dtype) for the flags --device and --dtype.

    Raises:
        ValueError: the machine does not have the device.
    """
    backends = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name, there in backends.items() if there)
    if not backends[device]:
        there = ", ".join(name for name, there in backends.items() if there)
        raise ValueError(f"--device {device} is not there; this machine has {there}")
    if dtype == "auto":
        return device, torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return device, getattr(torch, dtype)


class Metrics:
    """metrics.jsonl: one JSON object a line. A resumed run first drops what it is about to write again."""

    def __init__(self, directory, step):
        """Open the file; of what it holds, keep the lines that a run resumed at `step` has already earned."""
        path = Path(directory) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if step and path.exists() else []
        with write_atomically(path) as file:
            for line in lines:
                if line.endswith("\n") and json.loads(line)["step"] <= step:
                    file.write(line.encode())
        self.path = path

    def write(self, values):
        """Append one line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def summarise(totals, split, step, epoch, seconds):
    """A line of metrics.jsonl from sums over pairs, which are cleared; the loss of sft is a mean over tokens."""
    pairs, weight, tokens, loss = (totals.pop(name) for name in ("pairs", "weight", "tokens", "loss"))
    line = {"split": split, "step": step, "epoch": round(epoch, 4), "pairs": pairs, "loss": loss / weight}
    line |= {name: total / pairs for name, total in totals.items()}
    totals.clear()
    return line | {"tokens_per_second": round(tokens / seconds, 1), "pairs_per_second": round(pairs / seconds, 3)}


def describe(line):
    """The figures of a line of metrics that a person watches."""
    names = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
    figures = "  ".join(f"{short} {line[name]:.4f}" for name, short in names.items() if name in line)
    return f"{figures}  {line['pairs_per_second']:.1f} pairs/s"


def save_checkpoint(directory, step, state):
    """Write checkpoint/step-N.pt, then remove the one before it: at any instant one is whole."""
    directory = Path(directory) / "checkpoint"
    directory.mkdir(exist_ok=True)
    path = directory / f"step-{step:08d}.pt"
    with write_atomically(path) as file:
        torch.save(state | {"step": step}, file)
    for old in directory.glob("step-*.pt"):
        if old != path:
            old.unlink()
    return path


def load_checkpoint(directory):
    """The newest checkpoint of a run as plain tensors and numbers, or None; nothing in it can execute."""
    paths = sorted((Path(directory) / "checkpoint").glob("step-*.pt"))
    return torch.load(paths[-1], map_location="cpu", weights_only=True) if paths else None


class Interrupt:
    """Ctrl-C and SIGTERM asked for: the step is finished and saved first; a second Ctrl-C stops at once."""

    def __enter__(self):
        """Catch the signals."""
        self.requested = False
        self.previous = {s: signal.signal(s, self.request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def request(self, number, frame):
        """Note the wish, and let the next signal through."""
        self.requested = True
        self.__exit__()

    def __exit__(self, *error):
        """Restore what the signals did before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class Progress:
    """How far a run is and when it ends: one line that rewrites itself on a terminal, plain lines in a pipe."""

    def __init__(self, label, steps, first=0):
        """A run of `steps` steps that begins, or is resumed, after step `first`."""
        self.label, self.steps, self.first, self.text = label, steps, first, ""
        self.start = time.perf_counter()
        self.live = sys.stdout.isatty()

    def show(self, step, text, keep=False):
        """Show the figures of `step`; on a terminal the next ones replace them unless `keep`."""
        if not keep:
            self.text = text
        if not self.live:
            print(self.line(step, text), flush=True)
        elif keep:
            print(f"\r\x1b[K{self.line(step, text)}", flush=True)

    def tick(self, step):
        """Count a step on a terminal's line."""
        if self.live:
            print(f"\r\x1b[K{self.line(step, self.text)}", end="" if step < self.steps else "\n", flush=True)

    def line(self, step, text):
        """Label, step, figures, and the time left at the pace so far."""
        line = f"{self.label} {step:>{len(str(self.steps))}}/{self.steps}  {text}"
        if self.first < step < self.steps:
            left = (time.perf_counter() - self.start) / (step - self.first) * (self.steps - step)
            line += f"  {int(left) // 60}:{int(left) % 60:02d} left"
        return line


def draw_curves(directory):
    """curves.png, where matplotlib is installed; a run needs no picture to be complete."""
    try:
        plots = importlib.import_module("dpo_min.tools.plots")
    except ImportError as error:
        print(f"no curves.png: {error}; pip install matplotlib, then python -m dpo_min.tools.plots {directory}")
    else:
        plots.draw_curves(directory)
