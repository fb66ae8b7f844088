"""Stops a run before a step with a loss, gradient or weight that is not finite, and names the rows that made it so."""

import math
from contextlib import contextmanager

import torch

from dpo_min.run import distributed


def check_losses(losses):
    """Check (loss, names of its rows) of all processes' micro-batches.

    Raises:
        FloatingPointError: one is not finite; its rows are named.
    """
    finite = torch.stack([loss for loss, _ in losses]).isfinite().tolist() if losses else []
    trouble = [
        f"the loss is {loss.item()} on {rows}" for (loss, rows), fine in zip(losses, finite, strict=True) if not fine
    ]
    for first, *_ in filter(None, distributed.everyone(trouble)):
        raise FloatingPointError(first)


def check_step(norm, parameters, losses, pairs, scaler):
    """(the gradient's norm as a number, whether float16 overflowed) of a step that may be taken.

    The device is waited for once: here. Above scale 1 an infinite gradient is float16's overflow: the scaler skips
    the step and halves its scale.

    Args: norm, of the gradient; losses, of the step's micro-batches with the names of their rows; pairs, of the step.

    Raises:
        FloatingPointError: a loss, the gradient or the weights are not finite.
    """
    size = torch.nn.utils.get_total_norm(parameters)
    numbers = [*map(distributed.whole, (norm, size)), *(loss for loss, _ in losses)]
    norm, size, *rest = torch.stack([x.to(numbers[0].dtype) for x in numbers]).tolist()
    if not distributed.any_of(not all(map(math.isfinite, (norm, size, *rest)))):
        return norm, False
    check_losses(losses)
    overflow = not math.isfinite(norm) and scaler.get_scale() > 1
    if not math.isfinite(size) or not (math.isfinite(norm) or overflow):
        what = f"the gradient is {norm}" if math.isfinite(size) else f"the norm of the weights is {size}"
        raise FloatingPointError(f"{what} on {', '.join(pair.source for pair in pairs)}")
    return norm, overflow


@contextmanager
def named_step(stage):
    """Say after how many steps, `stage.taken`, it was that something was not finite, and what may be done then."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(f"step {stage.taken}: {error}; {way_on(stage.flags)}") from error


def way_on(flags):
    """What goes on from a run that diverged: not the run itself, which keeps its learning rate, but another one."""
    saved = [flags.out / name for name in ("best", "reference") if (flags.out / name / "config.json").exists()]
    if not saved:
        return "begin again with a lower --learning-rate and another --out"
    own = flags.reference or flags.init or flags.out / "reference"
    reference = "" if flags.loss_type == "sft" or own == saved[0] else f" --reference {own}"
    return f"begin another run from its weights: --init {saved[0]}{reference}, a lower --learning-rate, another --out"
