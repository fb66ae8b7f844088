"""One trial of a law: what came out, what the law says, and whether the two agree.

A law is a generator of trials. It calls the function that it is about on inputs from small to large, so that the first
trial that fails is a small counterexample; its docstring is what it says.
"""

from dataclasses import dataclass

import torch

from dpo_min.learn.shown import apart, shown

LAWS = {}  # name of an exercise → its laws, in the order in which they are tried


def law(*exercises):
    """Say of which exercises a generator of trials is a law."""

    def register(function):
        for name in exercises:
            LAWS.setdefault(name, []).append(function)
        return function

    return register


@dataclass(frozen=True)
class Trial:
    """What came out, a value or words; what the law says of it; whether they agree; the input of several calls."""

    got: object
    says: str
    holds: bool
    given: str | None = None
    more: bool = False  # whether the equation's own number says more than the law


def close(got, want):
    """Whether two results are equal up to rounding, NaN being equal to NaN; of anything but numbers, whether equal."""
    if isinstance(got, torch.Tensor) and isinstance(want, torch.Tensor):
        if got.shape != want.shape or got.dtype != want.dtype:
            return False
        got, want = got.detach(), want.detach()
        if not got.dtype.is_floating_point:
            return torch.equal(got, want)
        exact = got.dtype == torch.float64
        return torch.allclose(got, want, rtol=1e-8 if exact else 1e-4, atol=1e-10 if exact else 1e-5, equal_nan=True)
    if isinstance(got, tuple | list) and isinstance(want, tuple | list):
        return len(got) == len(want) and all(map(close, got, want))
    return type(got) is type(want) and got == want


def equal(got, want, given=None, words=""):
    """The law gives the very value; `words` say it in its place."""
    right = close(got, want)
    got_words, want_words = (got, shown(want)) if right else apart(got, want)
    return Trial(got_words, words or want_words, right, given)


def holds(condition, got, says, given=None):
    """The law is a condition; a tensor of conditions holds where all do."""
    condition = bool(condition.all() if isinstance(condition, torch.Tensor) else condition)
    return Trial(got, says, condition, given, more=given is None and not isinstance(got, str))


def slope(function, x):
    """The derivative of each output by its own x, both (B,), or None where no gradient reaches x."""
    x = x.detach().clone().requires_grad_()
    y = function(x)
    y = sum(part.sum() for part in y) if isinstance(y, tuple) else y.sum()
    return torch.autograd.grad(y, x, allow_unused=True)[0] if y.requires_grad else None


UNREACHED = "a gradient: training needs one, and .item(), .detach(), .tolist() and torch.tensor(...) stop it"
