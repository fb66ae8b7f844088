"""Values in words, short enough to check by hand."""

import math

import torch

MOST = 400  # characters of one value


def shown(value):
    """A number, a tensor, or a list of them as one reads it: [0.5, -inf]; four digits."""
    if isinstance(value, torch.Tensor):
        value = value.detach().tolist()
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list):
        text = "[" + ", ".join(map(shown, value)) + "]"
    elif isinstance(value, tuple):
        text = "(" + ", ".join(map(shown, value)) + ")"
    else:
        segments = getattr(value, "segments", "")  # what a Batch is told by
        text = f"a {type(value).__name__}, segments {shown(segments)}" if segments != "" else str(value)
    return text if len(text) <= MOST else text[:MOST] + " …"


def number(value):
    """Four digits, and as many as it takes to tell a number from a simple one that it is not."""
    value += 0.0  # −0 is 0
    whole = math.isfinite(value) and abs(value - round(value)) < 1e-3
    return f"{value:.10g}" if whole else f"{value:.4g}"


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
