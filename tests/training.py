"""What the tests of the command line share: rows, a run of train.py in this process, and what it leaves."""

import json
import signal
from contextlib import contextmanager

import pytest
import torch

import train
from dpo_min.model.weights import load_model
from dpo_min.run.job import prepare
from dpo_min.system import program

LOG_2 = 0.6931471805599453
TINY = "--n-layer 1 --n-head 2 --n-embd 16 --max-length 48".split()


def rows(n):
    """n preferences of unequal lengths: more exclamation marks are better."""
    return [
        {"prompt": f"q{i * i}:", "chosen": f" {'a' * (i % 7)}!!", "rejected": f" {'bc' * (i % 11)}?"} for i in range(n)
    ]


def write(path, values):
    """A file with one JSON object a line; its path."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def fit(*argv):
    """The exit code of train.py with these arguments."""
    return program.guard(train.train, prepare([str(a) for a in argv]))


@contextmanager
def stopped_in(step, number=signal.SIGINT):
    """The run in this block hears Ctrl-C, or another signal, in the middle of a step; all of its steps are counted."""
    whole, count = train.Stage.step, iter(range(1, 100))

    def interrupted(self, *arguments):
        if next(count) == step:
            signal.raise_signal(number)
        return whole(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Stage, "step", interrupted)
        yield


def metrics(directory, split=None):
    """The lines of a run, or of one split of it, less what a clock measured."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["tokens_per_second"]
    return [line for line in lines if split in (None, line["split"])]


def weights(directory):
    """The tensors of a model's directory, by name."""
    return load_model(directory).state_dict()


def equal(a, b):
    """Whether the tensors of two models are the same to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
