"""Every loss of the margin: its value and its slope, against autograd, differences and float64."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dpo_min.losses import LOSSES, sft_loss

LOG_2 = math.log(2)
X = st.floats(-1e4, 1e4)
BETA = st.floats(1e-3, 1e3)
NAMES = pytest.mark.parametrize("name", LOSSES)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@NAMES
@given(x=X, beta=BETA)
@example(x=0.0, beta=0.1)
@example(x=1e4, beta=0.1)
@example(x=-1e4, beta=1e3)
def test_the_slope_is_the_derivative_of_the_value(name, x, beta):
    """Kills: a sign, a β dropped or squared, chosen and rejected swapped in either formula."""
    h = tensor(x / beta).requires_grad_()
    (slope,) = torch.autograd.grad(LOSSES[name].value(h, beta).sum(), h)
    torch.testing.assert_close(LOSSES[name].slope(h.detach(), beta), slope, rtol=1e-9, atol=1e-12 * beta)


@NAMES
@given(x=st.floats(-30, 30), beta=st.floats(0.01, 10))
def test_the_slope_agrees_with_central_differences(name, x, beta):
    """Kills: a value and a slope that are wrong together, where autograd would agree with both."""
    step = 1e-5 / beta
    h = tensor(x / beta)
    difference = (LOSSES[name].value(h + step, beta) - LOSSES[name].value(h - step, beta)) / (2 * step)
    torch.testing.assert_close(LOSSES[name].slope(h, beta), difference, rtol=1e-4, atol=1e-5 * beta)


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(x=X)
@example(x=1e4)
@example(x=-1e4)
@example(x=100.0)
@example(x=-100.0)
def test_value_and_slope_are_finite_and_equal_to_float64_far_out(name, dtype, x):
    """Kills: −log(σ(x)) spelled out, which is infinite from x = −104 on in float32."""
    h = torch.tensor([x], dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for part in (LOSSES[name].value, LOSSES[name].slope):
        assert torch.isfinite(part(h, 1.0)).all()
        torch.testing.assert_close(part(h, 1.0).double(), part(h.double(), 1.0), rtol=tolerance, atol=tolerance)


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
    bad = (0.0, 0.5, -0.1, math.nan) if LOSSES[name].smoothing else (0.1, -0.1, math.nan)
    for epsilon in bad:
        for part in (LOSSES[name].value, LOSSES[name].slope):
            with pytest.raises(ValueError, match="label_smoothing"):
                part(tensor(0.0), 0.1, epsilon)


@given(logps=st.lists(st.floats(-500, 0), min_size=1, max_size=8), cut=st.integers(0, 8), tokens=st.integers(1, 100))
@example(logps=[-2.0, -6.0], cut=1, tokens=4)
def test_sft_is_the_mean_per_token_and_parts_of_a_step_add_up(logps, cut, tokens):
    """Kills: the mean over rows; each part divided by its own tokens."""
    whole = sft_loss(tensor(*logps), tokens)
    assert whole.item() == pytest.approx(-sum(logps) / tokens, abs=1e-9)
    parts = sft_loss(tensor(*logps[:cut]), tokens) + sft_loss(tensor(*logps[cut:]), tokens)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    assert sft_loss(tensor(-2.0, -6.0), 4).item() == 2.0
