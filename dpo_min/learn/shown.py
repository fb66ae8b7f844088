"""Values in words, short enough to check by hand."""

import math

import torch

MOST = 400  # characters of one value
MANY = 20  # more values than these in one list are only counted, after the first


def shown(value, digits=4):
    """A number, a tensor, or a list of them as one reads it: [0.5, -inf]."""
    if isinstance(value, torch.Tensor):
        value = value.detach().tolist()
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return number(value, digits)
    if isinstance(value, list | tuple):
        parts = [shown(part, digits) for part in (value if len(value) <= MANY else value[:3])]
        parts += [f"… ({len(value)} in all)"] if len(value) > MANY else []
        text = "[]" if isinstance(value, list) else "()"
        text = text[0] + ", ".join(parts) + text[1]
    else:
        segments = getattr(value, "segments", "")  # what a Batch is told by
        text = f"a {type(value).__name__}, segments {shown(segments)}" if segments != "" else str(value)
    return text if len(text) <= MOST else text[:MOST] + " …"


def apart(got, want):
    """Two values that differ, with as many digits as it takes to see it."""
    digits = next((n for n in (4, 10) if shown(got, n) != shown(want, n)), 17)
    return shown(got, digits), shown(want, digits)


def number(value, digits):
    """So many digits, and as many as it takes to tell a number from a simple one that it is not."""
    value += 0.0  # −0 is 0
    whole = math.isfinite(value) and abs(value - round(value)) < 1e-3
    return f"{value:.{max(digits, 10) if whole else digits}g}"


def arguments(named):
    """Name → value of a call as words; a logarithm of probabilities is shown by the probabilities."""
    return ", ".join(f"{name} = {argument(name, value)}" for name, value in named.items())


def argument(name, value):
    """One of them."""
    if name.startswith("log_") and isinstance(value, torch.Tensor) and value.is_floating_point():
        return f"log {shown(value.detach().exp())}"
    return shown(value)


def kind(value):
    """What sort of thing a result is: a float64 tensor of shape (2,), a tuple, an int."""
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}: " + "; ".join(map(kind, value))
    return "None" if value is None else f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"
