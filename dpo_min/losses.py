"""Every loss ℓ(h) of the margin alone, on the line above its slope ℓ′(h).

x = βh, s = σ(x); ε is `label_smoothing`, the rate at which labels are believed to be flipped. A loss that
sees only h leaves Z(x) cancelled, and ∂ℓ/∂log π(y_w) = ℓ′(h) = −∂ℓ/∂log π(y_l). A new loss is a new row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from torch import sigmoid
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class Loss:
    """A row of `LOSSES`; `smoothing` is its default ε, or None where it has no ε."""

    formula: Callable
    derivative: Callable
    about: str
    smoothing: float | None = None

    def value(self, h, beta, label_smoothing=None):
        """ℓ(h), elementwise: h (B,) in nats, β > 0, ε in (0, ½). Raises ValueError as `check` says."""
        return self.formula(h, beta, self.check(beta, label_smoothing))

    def slope(self, h, beta, label_smoothing=None):
        """ℓ′(h) = dℓ/dh, elementwise; arguments, shape and errors as for `value`."""
        return self.derivative(h, beta, self.check(beta, label_smoothing))

    def check(self, beta, label_smoothing=None):
        """Return ε. Raises ValueError for a β or an ε out of range, or an ε that would have no effect."""
        if not 0 < beta < inf:
            raise ValueError(f"beta must be a positive number, got {beta}")
        if label_smoothing is None or (self.smoothing is None and label_smoothing == 0):
            return self.smoothing
        if self.smoothing is None:
            raise ValueError(f"label_smoothing ({label_smoothing}) has no effect under this loss: leave it out")
        if not 0 < label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must lie between 0 and 0.5, got {label_smoothing}")
        return label_smoothing


LOSSES = {
    "sigmoid": Loss(
        lambda h, beta, _: -logsigmoid(beta * h),
        lambda h, beta, _: -beta * sigmoid(-beta * h),
        "DPO, arXiv:2305.18290, Eq. 7: start here",
    ),
}


def sft_loss(policy_chosen_logps, num_tokens):
    """Mean −log π(y_w|x) per token, in nats: supervised fine-tuning, which DPO starts from.

    policy_chosen_logps (B,) are sums over tokens; num_tokens counts the scored tokens of the whole
    optimiser step, of which these B rows may be a part: the parts then add up to the whole.
    """
    return -policy_chosen_logps.sum() / num_tokens
