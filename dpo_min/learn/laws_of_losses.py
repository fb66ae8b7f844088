"""What holds of the losses and their slopes, and of the gradient. Of a row, `yours` has a `value` and a `slope`."""

import math
from itertools import product

import torch
from torch import tensor
from torch.nn.functional import logsigmoid

from dpo_min.learn.laws_of_policies import BETAS, numbers
from dpo_min.learn.shown import shown
from dpo_min.learn.trial import UNREACHED, equal, holds, law, slope

MARGINS = numbers(0.0), numbers(2.0), numbers(-2.0), numbers(-1.5, 0.5, 4.5)
RATES = 0.1, 0.3  # ε
ROWS = '"sigmoid"', '"cdpo"', '"robust"', '"ipo"', '"hinge"'


def dpo(h, beta):
    """−log σ(βh)."""
    return -logsigmoid(beta * h)


@law('"sigmoid"')
def the_loss_starts_at_log_two(yours):
    """At h = 0 the loss is −log ½ = log 2 = 0.693, whatever β is."""
    for beta in BETAS:
        yield equal(yours.value(numbers(0.0), beta), numbers(math.log(2)))


@law('"sigmoid"')
def the_loss_falls_as_the_margin_grows(yours):
    """A larger margin has a smaller loss: it is the chosen answer that is to win."""
    for beta in BETAS:
        low, high = yours.value(numbers(-1.0), beta), yours.value(numbers(1.0), beta)
        given = f"h = [-1], then h = [1]; beta = {beta:g}"
        yield holds(high < low, f"{shown(low)}, then {shown(high)}", "a smaller loss at h = 1", given)


@law('"sigmoid"')
def a_hopeless_pair_costs_minus_beta_h(yours):
    """For βh → −∞ the loss is −βh, not ∞ and not NaN: σ(−1000) is 0 as a float, its logarithm is −1000."""
    for h in (-100.0, -1000.0):
        yield equal(yours.value(numbers(h), 1.0), numbers(-h))


@law('"cdpo"')
def it_is_the_mean_of_the_dpo_loss_over_flips(yours):
    """A label is wrong with probability ε: the loss is (1−ε) · [−log σ(βh)] + ε · [−log σ(−βh)]."""
    for rate, h in product(RATES, MARGINS):
        yield equal(yours.value(h, 0.5, rate), (1 - rate) * dpo(h, 0.5) + rate * dpo(-h, 0.5))


@law('"robust"')
def its_mean_over_flips_is_the_dpo_loss(yours):
    """Labels flipped at the rate ε do no harm on average: (1−ε) ℓ(h) + ε ℓ(−h) = −log σ(βh)."""
    for rate, h in product(RATES, MARGINS):
        mean = (1 - rate) * yours.value(h, 0.5, rate) + rate * yours.value(-h, 0.5, rate)
        given = f"h = {shown(h)} and {shown(-h)}, beta = 0.5, label_smoothing = {rate}"
        yield equal(mean, dpo(h, 0.5), given, f"{shown(dpo(h, 0.5))} as (1−ε) ℓ(h) + ε ℓ(−h)")


@law('"ipo"')
def it_is_zero_at_its_aim(yours):
    """The loss is 0 at h = 1/(2β), and nowhere else."""
    for beta in BETAS:
        yield equal(yours.value(numbers(1 / (2 * beta)), beta), numbers(0.0))
        out = yours.value(numbers(0.0), beta)
        yield holds(out > 0, out, "a number above 0")


@law('"hinge"')
def a_pair_that_is_right_by_one_costs_nothing(yours):
    """The loss is 0 where βh ≥ 1, 1 at h = 0, and grows by β for each nat that is missing."""
    for beta in BETAS:
        yield equal(yours.value(numbers(2 / beta), beta), numbers(0.0))
        yield equal(yours.value(numbers(0.0, -2 / beta), beta), numbers(1.0, 3.0))


@law('"cdpo"', '"robust"')
def the_loss_is_finite_at_any_margin(yours):
    """The loss is finite at h = ±1000: there s or 1 − s is 0 as a float, but its logarithm is −1000 and not −∞."""
    for h in (1000.0, -1000.0):
        out = yours.value(numbers(h), 1.0)
        yield holds(torch.isfinite(out), out, "a finite number")


@law(*ROWS)
def the_value_is_that_of_the_formula(yours):
    """ℓ(h) is what the formula above the row gives."""
    for beta, h in product(BETAS, MARGINS):
        yield equal(yours.value(h, beta), yours.value.real(h, beta))


@law(*ROWS)
def the_slope_is_the_derivative_of_the_value(yours):
    """ℓ′(h) is how fast ℓ(h) grows with h. It is compared with what PyTorch derives from your ℓ."""
    for beta, h in product(BETAS, MARGINS):
        derived = slope(lambda h, beta=beta: yours.value(h, beta), h)
        if derived is None:
            yield holds(False, "no gradient", UNREACHED)
        yield equal(yours.slope(h, beta), derived)


@law("sft_loss")
def it_counts_nats_per_token(yours):
    """Two answers of −3 and −5 nats over 4 tokens in all cost 2 nats per token: less likely is more loss."""
    yield equal(yours(numbers(-3.0, -5.0), 4), tensor(2.0, dtype=torch.float64))


@law("sft_loss")
def the_parts_of_a_step_add_up(yours):
    """Rows in two parts, each with the number of tokens of the whole step, add up to the loss of all rows."""
    logps = numbers(-3.0, -5.0, -1.0)
    whole, parts = yours(logps, 6), yours(logps[:1], 6) + yours(logps[1:], 6)
    given = "policy_chosen_logps = [-3], then [-5, -1]; num_tokens = 6 for each"
    yield equal(parts, whole, given, f"a sum of {shown(whole)}, as for [-3, -5, -1]")


@law("gradient_weight")
def an_undecided_pair_has_half_the_weight(yours):
    """At h = 0 the weight is ½."""
    for beta in BETAS:
        yield equal(yours(numbers(0.0), beta), numbers(0.5))


@law("gradient_weight")
def the_more_wrong_the_heavier(yours):
    """The weight is near 1 where the pair is ranked wrongly by far, and near 0 where it is ranked rightly."""
    for beta in BETAS:
        out = yours(numbers(-20 / beta, 20 / beta), beta)
        yield holds((out[0] > 0.99) & (out[1] < 0.01), out, "near 1, then near 0")


@law("dpo_gradient")
def a_step_downhill_raises_the_chosen_answer(yours):
    """∂ℓ/∂log π(y_w) < 0 and ∂ℓ/∂log π(y_l) > 0: what makes y_w likelier makes the loss smaller."""
    for beta in BETAS:
        chosen, rejected = yours(numbers(0.0), beta)
        yield holds((chosen < 0) & (rejected > 0), (chosen, rejected), "a number below 0, then one above 0")


@law("dpo_gradient")
def both_answers_are_pushed_equally(yours):
    """The margin h sees only the difference: ∂ℓ/∂log π(y_l) = −∂ℓ/∂log π(y_w)."""
    for h in MARGINS:
        chosen, rejected = yours(h, 0.5)
        yield holds(torch.isclose(chosen, -rejected), (chosen, rejected), "the second minus the first")


@law("dpo_gradient")
def it_is_the_derivative_of_the_loss(yours):
    """∂ℓ/∂log π(y_w) is the derivative of −log σ(βh), and h rises by 1 with log π(y_w)."""
    for beta, h in product(BETAS, MARGINS):
        chosen, _ = yours(h, beta)
        want = slope(lambda h, beta=beta: dpo(h, beta), h)
        yield holds(torch.isclose(chosen, want), chosen, f"{shown(want)} for the chosen answer")
