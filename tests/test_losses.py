"""Every loss of the margin: its value and its slope, against autograd, differences and float64."""

import dataclasses
import math
import re

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dpo_min.losses import sft_loss
from dpo_min.margin_losses import MARGIN_LOSSES as LOSSES

LOG_2 = math.log(2)
X = st.floats(-1e4, 1e4)
BETA = st.floats(1e-3, 1e3)
NOISE = st.floats(1e-3, 0.499)
NAMES = pytest.mark.parametrize("name", LOSSES)
NOISY = ("cdpo", "robust", "exo_pair")


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def noise(name, epsilon):
    """ε where the loss has one."""
    return epsilon if name in NOISY else None


def logit(p):
    return math.log(p / (1 - p))


def test_the_table_holds_the_seven_losses_each_with_source_and_use():
    assert list(LOSSES) == ["sigmoid", "cdpo", "robust", "ipo", "hinge", "exo_pair", "discopop"]
    smoothed = {"label_smoothing": 0.1}
    assert all(loss.arguments == (smoothed if name in NOISY else {}) for name, loss in LOSSES.items())
    assert all(re.search(r"arXiv:\d{4}\.\d{5}|Mitchell 2023", loss.source) and loss.about for loss in LOSSES.values())


def test_a_row_of_the_table_cannot_be_changed():
    """Kills: a default that one caller sets for all."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        LOSSES["cdpo"].smoothing = 0.2


# What each loss is, spelled out from the papers in plain float arithmetic, where that does not overflow.
def oracle(name, h, beta, e):
    x = beta * h
    s = 1 / (1 + math.exp(-x))
    m = 1 / (1 + math.exp(-x / 0.05))
    return {
        "sigmoid": lambda: -math.log(s),
        "cdpo": lambda: -(1 - e) * math.log(s) - e * math.log(1 - s),
        "robust": lambda: (-(1 - e) * math.log(s) + e * math.log(1 - s)) / (1 - 2 * e),
        "ipo": lambda: (h - 1 / (2 * beta)) ** 2,
        "hinge": lambda: max(0.0, 1 - x),
        "exo_pair": lambda: s * (math.log(s) - math.log(1 - e)) + (1 - s) * (math.log(1 - s) - math.log(e)),
        "discopop": lambda: (1 - m) * -math.log(s) + m * math.exp(-x),
    }[name]()


@NAMES
@given(x=st.floats(-20, 20), beta=BETA, epsilon=NOISE)
@example(x=0.0, beta=0.1, epsilon=0.1)
@example(x=1.0, beta=1.0, epsilon=0.25)
def test_the_value_is_the_papers_formula(name, x, beta, epsilon):
    """Kills: any term of any value, ε on the wrong side, a β that is not where the paper has it."""
    h = x / beta
    value = LOSSES[name].value(tensor(h), beta, noise(name, epsilon)).item()
    assert value == pytest.approx(oracle(name, h, beta, epsilon), rel=1e-6, abs=1e-7)


@NAMES
@given(x=X, beta=BETA, epsilon=NOISE)
@example(x=0.0, beta=0.1, epsilon=0.1)
@example(x=0.01, beta=1.0, epsilon=0.1)
@example(x=1.0, beta=1.0, epsilon=0.1)  # hinge's kink, where autograd's slope is 0
@example(x=1e4, beta=0.1, epsilon=0.1)
@example(x=-1e4, beta=1e3, epsilon=0.1)
def test_the_slope_is_the_derivative_of_the_value(name, x, beta, epsilon):
    """Kills: a sign, a β dropped or squared, chosen and rejected swapped in either formula."""
    h = tensor(x / beta).requires_grad_()
    e = noise(name, epsilon)
    (slope,) = torch.autograd.grad(LOSSES[name].value(h, beta, e).sum(), h)
    torch.testing.assert_close(LOSSES[name].slope(h.detach(), beta, e), slope, rtol=1e-9, atol=1e-12 * beta)


@NAMES
@given(x=st.floats(-30, 30), beta=st.floats(0.01, 10), epsilon=NOISE)
@example(x=0.01, beta=1.0, epsilon=0.1)
def test_the_slope_agrees_with_central_differences(name, x, beta, epsilon):
    """Kills: a value and a slope that are wrong together, where autograd would agree with both."""
    assume(name != "hinge" or abs(x - 1) > 1e-4)  # its kink
    step, e = 1e-5 / beta, noise(name, epsilon)
    h = tensor(x / beta)
    difference = (LOSSES[name].value(h + step, beta, e) - LOSSES[name].value(h - step, beta, e)) / (2 * step)
    tolerance = 1e-5 * max(beta, 1 / beta)  # of order ℓ″ · step² and of rounding in ℓ; ipo's slope goes like 1/β
    torch.testing.assert_close(LOSSES[name].slope(h, beta, e), difference, rtol=1e-4, atol=tolerance)


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(x=X)
@example(x=1e4)
@example(x=-1e4)
@example(x=100.0)
@example(x=-100.0)
@example(x=0.05)
def test_value_and_slope_are_finite_and_equal_to_float64_far_out(name, dtype, x):
    """Kills: −log(σ(x)) spelled out, which is infinite from x = −104 on in float32; m · e^{−x}, which is 0 · ∞."""
    h = torch.tensor([x], dtype=dtype)
    assume(name != "hinge" or h.item() == 1 or abs(h.item() - 1) > 1e-6)
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    for part in (LOSSES[name].value, LOSSES[name].slope):
        assert torch.isfinite(part(h, 1.0)).all()
        torch.testing.assert_close(part(h, 1.0).double(), part(h.double(), 1.0), rtol=tolerance, atol=tolerance)


# Shape: convex or not, and where it is least. (name: convex, least value, the x where it is taken; None: nowhere)
SHAPES = {
    "sigmoid": (True, lambda e: 0.0, None),
    "cdpo": (True, lambda e: -e * math.log(e) - (1 - e) * math.log(1 - e), lambda e, beta: logit(1 - e)),
    "robust": (True, lambda e: -math.inf, None),
    "ipo": (True, lambda e: 0.0, lambda e, beta: 0.5),
    "hinge": (True, lambda e: 0.0, lambda e, beta: 1.5),
    "exo_pair": (False, lambda e: 0.0, lambda e, beta: logit(1 - e)),
    "discopop": (False, lambda e: 0.0, None),
}


@pytest.mark.parametrize("name", [name for name, (convex, *_) in SHAPES.items() if convex])
@given(x=X, y=X, beta=BETA, epsilon=NOISE)
def test_convex_losses_lie_above_their_tangents(name, x, y, beta, epsilon):
    """ℓ(g) ≥ ℓ(h) + ℓ′(h)(g − h). Kills: a concave mixture, such as ε in place of −ε in `robust`."""
    h, g, e = tensor(x / beta), tensor(y / beta), noise(name, epsilon)
    value, slope = LOSSES[name].value, LOSSES[name].slope
    tangent = value(h, beta, e) + slope(h, beta, e) * (g - h)
    scale = 1 + value(g, beta, e).abs() + value(h, beta, e).abs() + (slope(h, beta, e) * (g - h)).abs()
    assert (value(g, beta, e) >= tangent - 1e-12 * scale).all()


@pytest.mark.parametrize("name", [name for name, (convex, *_) in SHAPES.items() if not convex])
@given(beta=BETA, epsilon=NOISE)
def test_the_other_losses_are_not_convex(name, beta, epsilon):
    """Their slope falls somewhere, so that a pair that is wrong enough, or only just right, is pushed less."""
    h = torch.linspace(-10, 10, 401, dtype=torch.float64) / beta
    assert (LOSSES[name].slope(h, beta, noise(name, epsilon)).diff() < -1e-6 * beta).any()


@NAMES
@given(x=X, beta=BETA, epsilon=NOISE)
def test_bounds_below_are_kept_and_reached(name, x, beta, epsilon):
    """Kills: a constant left out, a minimum elsewhere; `robust` alone falls for ever."""
    _, least, where = SHAPES[name]
    e = noise(name, epsilon)
    value, slope = LOSSES[name].value, LOSSES[name].slope
    assert value(tensor(x / beta), beta, e).item() >= least(epsilon) - 1e-12
    if where:
        h = tensor(where(epsilon, beta) / beta)
        torch.testing.assert_close(value(h, beta, e), tensor(least(epsilon)), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(slope(h, beta, e), tensor(0.0), rtol=0, atol=1e-12 * max(beta, 1 / beta))
    elif name == "robust":
        far = 1e4 / beta
        expected = -beta * epsilon / (1 - 2 * epsilon)  # the slope that it keeps
        torch.testing.assert_close(slope(tensor(far), beta, e), tensor(expected), rtol=1e-9, atol=0)
    else:
        assert value(tensor(1e4 / beta), beta, e).item() == pytest.approx(0, abs=1e-12)


@given(beta=BETA)
def test_the_push_on_a_hopeless_pair_and_on_one_long_since_right(beta):
    """What each slope tends to as x → −∞ and +∞. Kills: ε on the wrong side, a tail that overflows."""
    left, right = tensor(-1e4 / beta), tensor(1e4 / beta)
    tails = {name: [LOSSES[name].slope(h, beta).item() / beta for h in (left, right)] for name in LOSSES}
    assert tails["sigmoid"] == tails["hinge"] == [-1, 0]
    assert tails["cdpo"] == pytest.approx([-0.9, 0.1])
    assert tails["robust"] == pytest.approx([-0.9 / 0.8, -0.1 / 0.8])
    assert tails["exo_pair"] == [0, 0]
    assert tails["discopop"] == [-1, 0]
    assert tails["ipo"] == pytest.approx([2 * (-1e4 - 0.5) / beta**2, 2 * (1e4 - 0.5) / beta**2])


def test_discopop_pushes_an_undecided_pair_the_wrong_way():
    """ℓ′(0)/β = −log 2/(4τ) − ¼ + ½(1/(2τ) − 1) = 0.784, and a minimum lies at x < 0. Kills: τ, a sign in the blend."""
    slope = LOSSES["discopop"].slope(tensor(0.0, -0.5), 2.0)
    assert slope[0].item() == pytest.approx(2 * (-5 * LOG_2 - 0.25 + 4.5), abs=1e-12)
    assert slope[1] < 0 < slope[0]


@given(p=st.floats(0.02, 0.98), beta=BETA, epsilon=NOISE)
@example(p=0.9, beta=0.1, epsilon=0.1)
def test_where_each_loss_is_least_for_one_pair(p, beta, epsilon):
    """Seen y_w ≻ y_l with probability p: only sigmoid, and robust on flipped labels, end at βh = logit p."""
    flipped = (1 - epsilon) * p + epsilon * (1 - p)
    least = {
        "sigmoid": (logit(p), p),
        "cdpo": (logit(flipped), p),
        "robust": (logit(p), flipped),
        "ipo": (p - 0.5, p),
        "exo_pair": ((2 * p - 1) * logit(1 - epsilon), p),
    }
    for name, (u, seen) in least.items():
        h, e = tensor(u / beta), noise(name, epsilon)
        slope = seen * LOSSES[name].slope(h, beta, e) - (1 - seen) * LOSSES[name].slope(-h, beta, e)
        scale = LOSSES[name].slope(h, beta, e).abs() + LOSSES[name].slope(-h, beta, e).abs()
        assert (slope.abs() <= 1e-9 * (scale + beta)).all(), name


@given(p=st.floats(0.51, 0.99), u=st.floats(-3, 3))
def test_hinge_is_least_at_one_for_every_pair_that_is_not_a_tie(p, u):
    value = LOSSES["hinge"].value
    mean = lambda u: p * value(tensor(u), 1.0) + (1 - p) * value(tensor(-u), 1.0)  # noqa: E731
    assert (mean(u) >= mean(1.0) - 1e-12).all()


# The two identities that tell cDPO and robust DPO apart


@given(x=X, beta=BETA, epsilon=NOISE | st.just(0.0))
@example(x=3.0, beta=0.1, epsilon=0.0)
def test_cdpo_is_the_mean_of_the_dpo_loss_over_flips_of_the_label(x, beta, epsilon):
    """cdpo(h) = (1−ε)ℓ(h) + εℓ(−h). Kills: ε on the wrong side, the name given to `robust`."""
    h, dpo = tensor(x / beta), LOSSES["sigmoid"]
    mean = (1 - epsilon) * dpo.value(h, beta) + epsilon * dpo.value(-h, beta)
    torch.testing.assert_close(LOSSES["cdpo"].value(h, beta, epsilon), mean, rtol=1e-12, atol=1e-12)
    slope = (1 - epsilon) * dpo.slope(h, beta) - epsilon * dpo.slope(-h, beta)
    torch.testing.assert_close(LOSSES["cdpo"].slope(h, beta, epsilon), slope, rtol=1e-12, atol=1e-12 * beta)


@given(x=X, beta=BETA, epsilon=NOISE | st.just(0.0))
@example(x=3.0, beta=0.1, epsilon=0.0)
def test_the_mean_of_robust_over_flips_of_the_label_is_the_dpo_loss(x, beta, epsilon):
    """(1−ε)·robust(h) + ε·robust(−h) = ℓ(h): unbiased. Kills: 1−2ε left out, a sign, the name given to `cdpo`."""
    h, robust, dpo = tensor(x / beta), LOSSES["robust"], LOSSES["sigmoid"]
    mean = (1 - epsilon) * robust.value(h, beta, epsilon) + epsilon * robust.value(-h, beta, epsilon)
    rounding = 1e-15 * (1 + abs(x)) / (1 - 2 * epsilon)  # of terms that cancel
    torch.testing.assert_close(mean, dpo.value(h, beta), rtol=0, atol=4 * rounding + 1e-12)
    slope = (1 - epsilon) * robust.slope(h, beta, epsilon) - epsilon * robust.slope(-h, beta, epsilon)
    torch.testing.assert_close(slope, dpo.slope(h, beta), rtol=0, atol=1e-12 * beta / (1 - 2 * epsilon))


@given(x=st.floats(0.5, 30), beta=BETA)
def test_the_default_smoothing_is_one_label_in_ten(x, beta):
    """Kills: another default than the one that the documentation states."""
    h = tensor(x / beta)
    for name in NOISY:
        assert torch.equal(LOSSES[name].value(h, beta), LOSSES[name].value(h, beta, 0.1))
        assert not torch.equal(LOSSES[name].value(h, beta), LOSSES[name].value(h, beta, 0.2))


def test_dpo_starts_at_log_2_and_not_at_rest():
    """Kills: "the loss is log 2, so there is no gradient"."""
    for beta in (0.01, 0.1, 5.0):
        assert LOSSES["sigmoid"].value(tensor(0.0), beta).item() == pytest.approx(LOG_2, abs=1e-15)
        assert LOSSES["sigmoid"].slope(tensor(0.0), beta).item() == -beta / 2


@given(x=X, beta=BETA)
def test_dpo_is_minus_log_sigma_and_not_minus_sigma(x, beta):
    """Kills: −σ(βh), which several texts print; it is bounded below by −1 and has no convexity."""
    value = LOSSES["sigmoid"].value(tensor(x / beta), beta).item()
    expected = math.log1p(math.exp(-x)) if x > -30 else -x
    assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(x=st.floats(-30, 30), beta=BETA)
def test_dpo_worked_against_the_preference_probability(x, beta):
    """e^{−ℓ(h)} + e^{−ℓ(−h)} = 1: the two ways to judge a pair. Kills: log base 2, a stray factor."""
    h = tensor(x / beta)
    total = (-LOSSES["sigmoid"].value(h, beta)).exp() + (-LOSSES["sigmoid"].value(-h, beta)).exp()
    torch.testing.assert_close(total, tensor(1.0), rtol=0, atol=1e-12)


@NAMES
@pytest.mark.parametrize("beta", [0.0, -0.1, math.inf, math.nan])
def test_a_beta_that_is_not_a_positive_number_is_refused(name, beta):
    for part in (LOSSES[name].value, LOSSES[name].slope):
        with pytest.raises(ValueError, match=f"beta must be a positive number, got {beta}"):
            part(tensor(0.0), beta)


@NAMES
def test_a_label_smoothing_without_effect_or_out_of_range_is_refused(name):
    """Kills: a bound that is moved or left out; ε = 0 is plain DPO for two losses and log 0 for `exo_pair`."""
    bad = (
        [0.5, 0.7, -0.1, math.inf, math.nan] + [0.0] * (name == "exo_pair") if name in NOISY else [0.1, -0.1, math.nan]
    )
    fine = [0.25, 0.4999, 1e-9] + [0.0] * (name != "exo_pair") if name in NOISY else [0.0, None]
    said = f"must be {'above' if name == 'exo_pair' else 'at least'} 0 and below 0.5, got " if name in NOISY else r"\("
    for part in (LOSSES[name].value, LOSSES[name].slope):
        for epsilon in bad:
            with pytest.raises(ValueError, match=f"^label_smoothing {said}{epsilon}"):
                part(tensor(0.0), 0.1, epsilon)
        for epsilon in fine:
            assert torch.isfinite(part(tensor(0.0), 0.1, epsilon)).all()


@given(logps=st.lists(st.floats(-500, 0), min_size=1, max_size=8), cut=st.integers(0, 8), tokens=st.integers(1, 100))
@example(logps=[-2.0, -6.0], cut=1, tokens=4)
def test_sft_is_the_mean_per_token_and_parts_of_a_step_add_up(logps, cut, tokens):
    """Kills: the mean over rows; each part divided by its own tokens."""
    whole = sft_loss(tensor(*logps), tokens)
    assert whole.item() == pytest.approx(-sum(logps) / tokens, abs=1e-9)
    parts = sft_loss(tensor(*logps[:cut]), tokens) + sft_loss(tensor(*logps[cut:]), tokens)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    assert sft_loss(tensor(-2.0, -6.0), 4).item() == 2.0
