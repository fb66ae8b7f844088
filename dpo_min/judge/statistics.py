"""Estimates with their n and their 95 % interval: means, rates, correlations, calibration."""

import math
from typing import NamedTuple

import torch

from dpo_min.judge.intervals import Z_95, wilson_interval
from dpo_min.metrics import wins

BINS = 10  # of confidence, from ½ to 1


class Figure(NamedTuple):
    """A number that was estimated from n values, and its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    @property
    def standard_error(self):
        """Of a mean: the half-width of the interval over 1.96."""
        return (self.high - self.low) / (2 * Z_95)


class Bin(NamedTuple):
    """The n rows whose confidence lies between low and high: the mean of it, and how often it was right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def mean_interval(values):
    """(mean, low, high): the mean of a (n,) tensor and its 95 % interval by the normal approximation.

    One value says nothing of how far others lie: its interval is (−∞, ∞). The mean of none is nan.
    """
    values = values.double()
    mean = values.mean().item()
    half = Z_95 * values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return mean, mean - half if len(values) else -math.inf, mean + half if len(values) else math.inf


def mean(values):
    """The `Figure` of the mean of a (n,) tensor."""
    return Figure(*mean_interval(values), len(values))


def rate(values):
    """The `Figure` of the mean of a (n,) tensor of wins, each 0, ½ or 1; ties only make Wilson's interval too wide."""
    total, n = values.double().sum().item(), len(values)
    return Figure(total / n if n else math.nan, *wilson_interval(total, n), n)


def correlation(x, y):
    """Pearson's r of two (n,) tensors with Fisher's interval (1921), tanh(artanh r ± 1.96/√(n − 3)).

    Where one of them is constant there is no r: nan. Up to three points say nothing of it: (−1, 1).
    """
    n = len(x)
    x, y = (v.double() - v.double().mean() for v in (x, y))
    scale = (x.norm() * y.norm()).item()
    if scale == 0:
        return Figure(math.nan, -1.0, 1.0, n)
    r = max(-1.0, min(1.0, (x @ y).item() / scale))
    if n <= 3:
        return Figure(r, -1.0, 1.0, n)
    z, half = math.atanh(max(-1 + 1e-15, min(1 - 1e-15, r))), Z_95 / math.sqrt(n - 3)
    return Figure(r, min(r, math.tanh(z - half)), max(r, math.tanh(z + half)), n)


def calibration(reward_margins):
    """How often the side that the model prefers is the preferred one, against how sure it was: (`Figure`, `Bin`s).

    The chosen side of a row was preferred by definition, so the question is asked of the side that the model picks. The
    model is sure of this side with c = σ(|βh|) ∈ [½, 1], and it is right if h > 0 (a tie is half right). There are ten
    bins of equal width, and from them comes the expected calibration error (Guo et al., arXiv:1706.04599).

    Noise alone makes the error larger, never smaller, because every bin counts with its absolute difference. By the
    triangle inequality the error is off by no more than Σ_b n_b/N |noise_b|. Each noise is normal, so this sum has the
    mean and the variance of half-normals. The interval extends so far to both sides; it reaches 0 if the model is
    calibrated.

    Args: reward_margins βh, (N,).
    """
    h = reward_margins.double()
    confidence, right = torch.sigmoid(h.abs()), wins(h, torch.zeros_like(h))
    place = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)  # (N,) the bin of each row
    bins, error, mean_noise, variance = [], 0.0, 0.0, 0.0
    for b in range(BINS):
        inside = place == b
        n = int(inside.sum())
        c, a = (x[inside].mean().item() if n else math.nan for x in (confidence, right))
        bins.append(Bin(0.5 + b / (2 * BINS), 0.5 + (b + 1) / (2 * BINS), n, c, a))
        if n:
            noise = n / len(h) * math.sqrt(max(c * (1 - c), a * (1 - a)) / n)
            error += n / len(h) * abs(a - c)
            mean_noise, variance = mean_noise + math.sqrt(2 / math.pi) * noise, variance + (1 - 2 / math.pi) * noise**2
    half = mean_noise + Z_95 * math.sqrt(variance)
    return Figure(error, max(0.0, error - half), min(1.0, error + half), len(h)), bins
