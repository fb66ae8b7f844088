"""Seven losses of the margin h alone: each row gives ℓ(h) and, on the line below, its slope ℓ′(h).

x = βh, s = σ(x); ε, in code e, is `label_smoothing`, the rate at which labels are believed to be flipped. A loss that
sees only h leaves Z(x) cancelled, and ∂ℓ/∂log π(y_w) = ℓ′(h) = −∂ℓ/∂log π(y_l). A new row is a new loss; those that see
more than h stand in ratio_losses.py.

With unlimited data `sigmoid` on true labels, and `robust` on labels flipped at the rate ε, end in the optimal
policy π_r of objective.py. The others end elsewhere: `make proof` measures where.

Written with log s = logsigmoid(x) and 1 − s = σ(−x), which stay exact where s itself rounds to 0 or 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log

from torch import sigmoid
from torch.nn.functional import logsigmoid

from dpo_min.objective import check_beta


@dataclass(frozen=True)
class Loss:
    """A row of `MARGIN_LOSSES`: ℓ and ℓ′ as functions of (h, β, ε or None), source, use, and a default ε if any."""

    formula: Callable
    derivative: Callable
    source: str
    about: str
    smoothing: float | None = None
    noise_free: bool = True  # whether it is defined at ε = 0
    reference, reduce = True, None  # of every row, so no fields: π_ref is there; --reduce says how log π is added up

    @property
    def arguments(self):
        """What the row takes after h and β: `label_smoothing` → its default where it has an ε, else nothing."""
        return {} if self.smoothing is None else {"label_smoothing": self.smoothing}

    def value(self, h, beta, label_smoothing=None):
        """ℓ(h) in nats (`ipo`: nats²), elementwise: h (B,) in nats, β > 0, 0 ≤ ε < ½. Raises as `check` says."""
        return self.formula(h, beta, self.check(beta, label_smoothing))

    def slope(self, h, beta, label_smoothing=None):
        """ℓ′(h) = dℓ/dh, elementwise; arguments, shape and errors as for `value`."""
        return self.derivative(h, beta, self.check(beta, label_smoothing))

    def check(self, beta, label_smoothing=None):
        """Return ε. Raises ValueError for a β or an ε out of range, or an ε that would have no effect."""
        check_beta(beta)
        if label_smoothing is None:
            return self.smoothing
        if self.smoothing is None and label_smoothing != 0:  # 0 is what every loss without an ε has
            raise ValueError(f"label_smoothing ({label_smoothing}) has no effect under this loss: leave it out")
        if not 0 <= label_smoothing < 0.5 or (label_smoothing == 0 and not self.noise_free):
            least = "at least 0" if self.noise_free else "above 0"
            raise ValueError(f"label_smoothing must be {least} and below 0.5, got {label_smoothing}")
        return label_smoothing


# s[log s − log(1−ε)] + (1−s)[log(1−s) − log ε] = KL(Bernoulli(s) ‖ Bernoulli(1−ε)); ∂/∂s is x − logit(1−ε), because
# x = logit(s) = log(s/(1−s)), and ds/dh = βs(1−s): below it their product
def exo_pair(h, beta, e):
    """ℓ(h) of EXO on one pair: h (B,) in nats → (B,)."""
    right, wrong = logsigmoid(beta * h), logsigmoid(-beta * h)
    return right.exp() * (right - log(1 - e)) + wrong.exp() * (wrong - log(e))


def exo_pair_slope(h, beta, e):
    """ℓ′(h) of EXO on one pair: h (B,) in nats → (B,)."""
    return beta * sigmoid(beta * h) * sigmoid(-beta * h) * (beta * h - log((1 - e) / e))


# (1−m)(−log s) + m e^{−x} with m = σ(x/τ), below it the product rule with dm/dx = m(1−m)/τ
TAU = 0.05


def discopop(h, beta, _):
    """ℓ(h) of DiscoPOP, h (B,) in nats → (B,); m e^{−x} is one exponential, so that it cannot overflow."""
    x = beta * h
    return -sigmoid(-x / TAU) * logsigmoid(x) + (logsigmoid(x / TAU) - x).exp()


def discopop_slope(h, beta, _):
    """ℓ′(h) of DiscoPOP: h (B,) in nats → (B,)."""
    x = beta * h
    m, rest, decay = sigmoid(x / TAU), sigmoid(-x / TAU), (logsigmoid(x / TAU) - x).exp()
    return beta * (m * rest / TAU * logsigmoid(x) - rest * sigmoid(-x) + decay * (rest / TAU - 1))


MARGIN_LOSSES = {
    "sigmoid": Loss(
        lambda h, beta, _: -logsigmoid(beta * h),
        lambda h, beta, _: -beta * sigmoid(-beta * h),
        "DPO, arXiv:2305.18290, Eq. 7",
        "start here",
    ),
    "cdpo": Loss(
        lambda h, beta, e: -(1 - e) * logsigmoid(beta * h) - e * logsigmoid(-beta * h),
        lambda h, beta, e: beta * (e * sigmoid(beta * h) - (1 - e) * sigmoid(-beta * h)),
        "conservative DPO, Mitchell 2023, A note on DPO with noisy preferences",
        "labels are noisy and margins must stay bounded: it is least at x = logit(1 − ε)",
        smoothing=0.1,
    ),
    "robust": Loss(
        lambda h, beta, e: (e * logsigmoid(-beta * h) - (1 - e) * logsigmoid(beta * h)) / (1 - 2 * e),
        lambda h, beta, e: -beta * ((1 - e) * sigmoid(-beta * h) + e * sigmoid(beta * h)) / (1 - 2 * e),
        "robust DPO, arXiv:2403.00409",
        "labels are flipped at a known rate ε: its mean over flips is sigmoid on the true label; unbounded below",
        smoothing=0.1,
    ),
    "ipo": Loss(
        lambda h, beta, _: (h - 1 / (2 * beta)) ** 2,
        lambda h, beta, _: 2 * (h - 1 / (2 * beta)),
        "IPO, arXiv:2310.12036, Eq. 17; β is its τ",
        "preferences are nearly certain, where sigmoid would widen the margin for ever: it aims at h = 1/(2β)",
    ),
    "hinge": Loss(
        lambda h, beta, _: (1 - beta * h).relu(),
        lambda h, beta, _: -beta * (beta * h < 1).to(h.dtype),
        "SLiC-HF, arXiv:2305.10425, with the margin normalised by the reference as in RSO, arXiv:2309.06657",
        "a pair ranked right with x ≥ 1 is to be left alone",
    ),
    "exo_pair": Loss(
        exo_pair,
        exo_pair_slope,
        "EXO, arXiv:2402.00856, Eq. 16",
        "a pair that is hopelessly wrong may be given up: the reverse KL, whose slope vanishes in both tails",
        smoothing=0.1,
        noise_free=False,
    ),
    "discopop": Loss(
        discopop,
        discopop_slope,
        "DiscoPOP, arXiv:2406.08414, Eq. 5",
        "found by search, not derived. Not convex: at h = 0 it slopes upwards, and first pushes pairs the wrong way",
    ),
}
