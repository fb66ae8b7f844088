"""Losses that see the two log-ratios apart: each row gives ℓ(a, b) and, below it, its slopes ∂ℓ/∂a and ∂ℓ/∂b.

a = log π(y_w) − log π_ref(y_w), b the same for y_l, h = a − b. Rows with `reference=False` have no reference: there
a and b are log π(y_w) and log π(y_l) themselves, per token where `reduce="mean"`. Arguments without a default are facts
of the pair, (B,), or of the run: `shift`. Those with one are parameters, each a flag: `--loss-alpha`. A row is a loss.

Which of them see Z(x)? The reward is r = βa + β log Z(x). In a function of h the last term cancels. Where a and b enter
apart, adding f(x) to both moves the optimum: `nca`, `bco`, `sppo`, `apo_zero`, `apo_down`, `dpop`, `orpo` and the three
divergences take Z(x) to be 1. The other rows see h, constants of the pair, and −log π(y_w) beside it, which has no Z.

What couples the pairs of a batch is left out, such as sorting margins (AOT, arXiv:2406.05882) or a β that the batch
decides (β-DPO, arXiv:2407.08639): the same step in other micro-batches would then have another gradient.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf

from torch import expm1, finfo, sigmoid, where
from torch.nn.functional import logsigmoid

from dpo_min.objective import check_beta

MOST = 1_000_000  # for a parameter


@dataclass(frozen=True)
class RatioLoss:
    """A row of `RATIO_LOSSES`: ℓ and both slopes as functions of (a, b, β, …), source, use, and what it reads."""

    formula: Callable
    derivatives: Callable
    source: str
    about: str
    reference: bool = True  # whether there is one
    reduce: str | float | None = None  # of tokens: "mean"; a weight of those past the shorter length; None: as --reduce

    def value(self, a, b, beta, **more):
        """ℓ(a, b), elementwise: a, b and each fact (B,), β > 0, parameters ≥ 0. Raises as `check` says."""
        return self.formula(a, b, beta, **self.check(beta, more))

    def slopes(self, a, b, beta, **more):
        """(∂ℓ/∂a, ∂ℓ/∂b), (B,) each; a fact that is log π(y_w) moves with a. Arguments and errors as for `value`."""
        return self.derivatives(a, b, beta, **self.check(beta, more))

    @property
    def arguments(self):
        """What the row takes after a, b and β: name → default of a parameter, or None of a fact that it needs."""
        taken = list(inspect.signature(self.formula).parameters.values())[3:]
        return {one.name: None if one.default is one.empty else one.default for one in taken}

    def check(self, beta, more):
        """Return `more`. Raises ValueError for a number out of range, a name without effect, a fact that is missing."""
        check_beta(beta)
        known = self.arguments
        for name in more.keys() - known:
            raise ValueError(f"{name} has no effect under this loss: leave it out")
        for name in known.keys() - more:
            if known[name] is None:
                raise ValueError(f"this loss needs {name}")
        for name in more:
            if known[name] is not None and not 0 <= more[name] <= MOST:
                raise ValueError(f"{name} must be a number from 0 to {MOST:,}, got {more[name]}")
        return more


# −log σ(x) of a margin x that grows by β with a and falls by β with b, below it its slopes −βσ(−x) and βσ(−x)
def margin_slopes(x, beta):
    """Both slopes of −log σ(x): x (B,) → (B,) twice."""
    return -beta * sigmoid(-x), beta * sigmoid(-x)


# log(p/(1−p)) = a − log(1 − e^a) of p = e^a, below it its slope 1/(1−p); a is kept off 0, where p = 1 has infinite odds
def log_odds(a):
    """The log-odds of an answer whose log-probability per token is a: (B,) ≤ 0 → (B,)."""
    a = a.clamp(max=-finfo(a.dtype).eps)
    return a - (-expm1(a)).log()


def log_odds_slope(a):
    """The slope of `log_odds`: (B,) → (B,)."""
    certain = -finfo(a.dtype).eps
    return (a <= certain) / -expm1(a.clamp(max=certain))


# With an f-divergence for the KL the implicit reward is βf′(u) + c(x), u = π/π_ref = e^a; for the KL f′(u) is a + 1.
# Here f is the α-divergence: f′(u) less a constant is (1 − u^−α)/α, which is a at α = 0; below it its slope by a, u^−α
STEEPEST = 30.0  # from e^30 on the exponential is continued by its tangent
NONE = 1e-9  # an α that is no longer told from 0


def alpha_transform(a, alpha):
    """What takes the place of a under an α-divergence: (B,) → (B,)."""
    if alpha < NONE:
        return a
    t = -alpha * a
    return -(expm1(t.clamp(max=STEEPEST)) + exp(STEEPEST) * (t - STEEPEST).relu()) / alpha


def alpha_slope(a, alpha):
    """The slope of `alpha_transform`: (B,) → (B,)."""
    return (-alpha * a).clamp(max=STEEPEST).exp()


def alpha_margin(a, b, beta, alpha):
    """The margin β[f′(e^a) − f′(e^b)] under an α-divergence: (B,)."""
    return beta * (alpha_transform(a, alpha) - alpha_transform(b, alpha))


def alpha_slopes(a, b, beta, alpha=0.5):
    """Both slopes of −log σ(x) under an α-divergence: (B,) twice."""
    by_a, by_b = margin_slopes(alpha_margin(a, b, beta, alpha), beta)
    return by_a * alpha_slope(a, alpha), by_b * alpha_slope(b, alpha)


def bump(x, beta):
    """The slope of σ(x) for an x that grows by β: (B,) → (B,)."""
    return beta * sigmoid(x) * sigmoid(-x)


RATIO_LOSSES = {
    "nca": RatioLoss(
        lambda a, b, beta: -logsigmoid(beta * a) - (logsigmoid(-beta * a) + logsigmoid(-beta * b)) / 2,
        lambda a, b, beta: (beta * (sigmoid(beta * a) / 2 - sigmoid(-beta * a)), beta * sigmoid(beta * b) / 2),
        "NCA for pairs, arXiv:2402.05369, Section 4.1; β is its α",
        "log π(y_w) must not fall: a is drawn to log(2)/β, b falls for ever, ever more slowly",
    ),
    "bco": RatioLoss(
        lambda a, b, beta, shift: -logsigmoid(beta * a - shift) - logsigmoid(shift - beta * b),
        lambda a, b, beta, shift: (-beta * sigmoid(shift - beta * a), beta * sigmoid(beta * b - shift)),
        "BCO, arXiv:2404.04656, Section 4; the shift is its δ, the mean reward of the pairs before this step",
        "the two answers are judged one by one: a rises and b falls without end, each pushed until it has passed δ/β",
    ),
    "sppo": RatioLoss(
        lambda a, b, beta: (a - 1 / (2 * beta)) ** 2 + (b + 1 / (2 * beta)) ** 2,
        lambda a, b, beta: (2 * (a - 1 / (2 * beta)), 2 * (b + 1 / (2 * beta))),
        "SPPO, arXiv:2405.00675, Section 3, with hard labels; β is 1/η",
        "rounds of self-play, with answers that the policy drew: a is drawn to 1/(2β), b to −1/(2β)",
    ),
    "apo_zero": RatioLoss(
        lambda a, b, beta: sigmoid(beta * b) - sigmoid(beta * a),
        lambda a, b, beta: (-bump(beta * a, beta), bump(beta * b, beta)),
        "APO-zero, arXiv:2408.06266, Section 4",
        "the chosen answers are better than the model's own: a rises, b falls, pushed hardest at 0, less further out",
    ),
    "apo_down": RatioLoss(
        lambda a, b, beta: sigmoid(beta * a) - sigmoid(beta * (a - b)),
        lambda a, b, beta: (bump(beta * a, beta) - bump(beta * (a - b), beta), bump(beta * (a - b), beta)),
        "APO-down, arXiv:2408.06266, Section 4",
        "the model is better than the chosen answers: b falls, and a after it",
    ),
    "dpop": RatioLoss(
        lambda a, b, beta, penalty=50.0: -logsigmoid(beta * (a - b - penalty * (-a).relu())),
        lambda a, b, beta, penalty=50.0: (
            -beta * (1 + penalty * (a < 0).to(a.dtype)) * sigmoid(-beta * (a - b - penalty * (-a).relu())),
            beta * sigmoid(-beta * (a - b - penalty * (-a).relu())),
        ),
        "DPO-Positive, arXiv:2402.13228, Eq. 3; the penalty is its λ",
        "the two answers differ in few tokens: below the reference, a is pushed up 1 + λ times as hard as b down",
    ),
    "rpo": RatioLoss(
        lambda a, b, beta, policy_chosen_logps, chosen_lengths, alpha=1.0: (
            -logsigmoid(beta * (a - b)) - alpha * policy_chosen_logps / chosen_lengths
        ),
        lambda a, b, beta, policy_chosen_logps, chosen_lengths, alpha=1.0: (
            -beta * sigmoid(-beta * (a - b)) - alpha / chosen_lengths,
            beta * sigmoid(-beta * (a - b)),
        ),
        "DPO + NLL, arXiv:2404.19733, Eq. 1",
        "answers that are right or wrong, as in mathematics: y_w is imitated too, with weight α per token",
    ),
    "simpo": RatioLoss(
        lambda a, b, beta, gamma=0.5: -logsigmoid(beta * (a - b) - gamma),
        lambda a, b, beta, gamma=0.5: margin_slopes(beta * (a - b) - gamma, beta),
        "SimPO, arXiv:2405.14734, Eq. 6",
        "no memory for a reference; give --beta 2 or more: log π per token of y_w is to exceed that of y_l by γ/β",
        reference=False,
        reduce="mean",
    ),
    "cpo": RatioLoss(
        lambda a, b, beta, alpha=1.0: -logsigmoid(beta * (a - b)) - alpha * a,
        lambda a, b, beta, alpha=1.0: (-beta * sigmoid(-beta * (a - b)) - alpha, beta * sigmoid(-beta * (a - b))),
        "CPO, arXiv:2401.08417, Section 3; α is 1 there",
        "chosen answers that are good enough to imitate, and no reference: log π(y_w) never stops rising",
        reference=False,
    ),
    "orpo": RatioLoss(
        lambda a, b, beta: -a - beta * logsigmoid(log_odds(a) - log_odds(b)),
        lambda a, b, beta: (
            -1 - beta * sigmoid(log_odds(b) - log_odds(a)) * log_odds_slope(a),
            beta * sigmoid(log_odds(b) - log_odds(a)) * log_odds_slope(b),
        ),
        "ORPO, arXiv:2403.07691, Eq. 6 and 7; β is its λ",
        "in place of supervised fine-tuning: y_w is imitated, and the odds of y_l are held below those of y_w",
        reference=False,
        reduce="mean",
    ),
    "slic": RatioLoss(
        lambda a, b, beta, alpha=1.0: (1 / beta - a + b).relu() - alpha * a,
        lambda a, b, beta, alpha=1.0: (-(a - b < 1 / beta).to(a.dtype) - alpha, (a - b < 1 / beta).to(b.dtype)),
        "SLiC-HF, arXiv:2305.10425, with y_w as its y_ref; β is 1/δ and α its λ",
        "as `hinge` without a reference: log π(y_w) never stops rising, log π(y_l) falls while the margin is below 1/β",
        reference=False,
    ),
    "ld": RatioLoss(
        lambda a, b, beta: -logsigmoid(beta * (a - b)),
        lambda a, b, beta: margin_slopes(beta * (a - b), beta),
        "LD-DPO, arXiv:2409.06411; in a and b, tokens past the shorter answer's length count α times (--loss-tail)",
        "long answers win by length alone: tokens past the length of the shorter answer are trained less",
        reduce=0.5,
    ),
    "r-dpo": RatioLoss(
        lambda a, b, beta, chosen_lengths, rejected_lengths, alpha=0.01: (
            -logsigmoid(beta * (a - b) + alpha * (chosen_lengths - rejected_lengths))
        ),
        lambda a, b, beta, chosen_lengths, rejected_lengths, alpha=0.01: margin_slopes(
            beta * (a - b) + alpha * (chosen_lengths - rejected_lengths), beta
        ),
        "R-DPO, arXiv:2403.19159, Section 3",
        "answers grow too long: each token of an answer costs it α of reward",
    ),
    "odpo": RatioLoss(
        lambda a, b, beta, offset: -logsigmoid(beta * (a - b) - offset),
        lambda a, b, beta, offset: margin_slopes(beta * (a - b) - offset, beta),
        "ODPO, arXiv:2402.10571, Section 3; the offset is its Δ, a rising function of the gap of two scores",
        "rows say how much better: βh is to exceed the number in the row's column `offset`",
    ),
    "forward_kl": RatioLoss(
        lambda a, b, beta: -logsigmoid(alpha_margin(a, b, beta, 1)),
        lambda a, b, beta: alpha_slopes(a, b, beta, 1),
        "f-DPO, arXiv:2309.16240, with KL(π_ref‖π): f′(u) = −1/u",
        "every answer of the reference is to stay possible: a and b are pushed e^−a and e^−b times as hard",
    ),
    "jensen_shannon": RatioLoss(
        lambda a, b, beta: -logsigmoid(beta * (logsigmoid(a) - logsigmoid(b))),
        lambda a, b, beta: (
            -beta * sigmoid(-beta * (logsigmoid(a) - logsigmoid(b))) * sigmoid(-a),
            beta * sigmoid(-beta * (logsigmoid(a) - logsigmoid(b))) * sigmoid(-b),
        ),
        "f-DPO, arXiv:2309.16240, with the Jensen–Shannon divergence: f′(u) = log(2u/(1 + u))",
        "between the two KLs: a side is pushed σ(−a) or σ(−b) times as hard: less, if it has become likelier",
    ),
    "alpha_divergence": RatioLoss(
        lambda a, b, beta, alpha=0.5: -logsigmoid(alpha_margin(a, b, beta, alpha)),
        alpha_slopes,
        "f-DPO, arXiv:2309.16240, with an α-divergence: f′(u) = (1 − u^−α)/α",
        "from DPO (α = 0) to forward_kl (α = 1): a and b are pushed e^−αa and e^−αb times as hard",
    ),
}


# Σ_k −log[e^{x_k} / Σ_{j≥k} e^{x_j}] with x = βa, best first: who comes next, again and again; for K = 2, `sigmoid`
def plackett_luce(ratios, beta, present):
    """−log P(this order) of ranked lists (DPO, arXiv:2305.18290, Appendix A.3), (B,); below it, its slopes.

    Args: ratios (B, K), log π − log π_ref of each answer, best first; present (B, K) boolean, False on padding.
    """
    ahead, contested, _ = worse_answers(ratios, beta, present)
    return where(contested, -logsigmoid(-ahead), 0.0).sum(dim=-1)


def plackett_luce_slopes(ratios, beta, present):
    """∂ℓ/∂a of every answer, (B, K): β times the chances of losing a rank to it, less that of losing its own."""
    ahead, contested, worse = worse_answers(ratios, beta, present)
    lost = where(contested, sigmoid(ahead), 0.0)  # (B, K) the chance that rank k goes to a worse answer
    return beta * ((lost[..., None] * worse.softmax(dim=-1)).sum(dim=-2) - lost)


def worse_answers(ratios, beta, present):
    """(log Σ_{j>k} e^{x_j − x_k} (B, K), whether there is such a j (B, K), its terms x_j − x_k (B, K, K))."""
    terms = beta * (ratios[..., None, :] - ratios[..., None])  # (B, k, j)
    later = (present[..., None, :] & present[..., None]).triu(diagonal=1)
    contested = later.any(dim=-1)
    terms = where(later, terms, where(contested[..., None], -inf, 0.0))
    return terms.logsumexp(dim=-1), contested, terms


# λ − v = λ σ(±β(z − a)), + for a thumb up and − for a thumb down; below it its slope
def kto(a, beta, label, shift, weight):
    """ℓ of single thumbs (KTO, arXiv:2402.01306, Section 4): a, label (B,) boolean, λ (B,), shift z a number → (B,)."""
    sign = 2 * label.to(a.dtype) - 1
    return weight * sigmoid(sign * beta * (shift - a))


def kto_slope(a, beta, label, shift, weight):
    """∂ℓ/∂a, (B,): arguments as for `kto`."""
    sign = 2 * label.to(a.dtype) - 1
    return -weight * sign * bump(beta * (shift - a), beta)


# z = max(0, mean of log π(y′|x) − log π_ref(y′|x)), with y′ the next row's answer: about KL(π ‖ π_ref), and no gradient
def kto_shift(mismatched):
    """KTO's reference point, a number: mismatched (m,) log-ratios of each prompt with the answer of another."""
    return mismatched.mean().clamp(min=0).item()
