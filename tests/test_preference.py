"""preference.py: Bradley–Terry in its two forms, and the margin in which Z(x) has cancelled."""

from math import exp, log

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.testing import assert_close

from dpo_min.objective import implicit_reward, log_partition, optimal_policy
from dpo_min.preference import bradley_terry, log_bradley_terry, margin

rewards = st.floats(-1e4, 1e4)
logps = st.floats(-1e4, 0)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@given(st.floats(-300, 300), st.floats(-300, 300))
def test_the_two_forms_of_bradley_terry_are_equal(a, b):
    """p_A/(p_A + p_B) with p = e^r is σ(r_A − r_B). Kills: the two rewards swapped, a factor in front of either."""
    assert_close(bradley_terry(tensor(a), tensor(b)), tensor(exp(a) / (exp(a) + exp(b))), rtol=1e-11, atol=0)


def test_bradley_terry_worked_by_hand():
    """Strengths 3 and 1: the first wins three times in four."""
    assert_close(bradley_terry(tensor(log(3)), tensor(0.0)), tensor(0.75), rtol=1e-15, atol=0)
    assert_close(log_bradley_terry(tensor(log(3)), tensor(0.0)), tensor(log(0.75)), rtol=1e-15, atol=0)


@given(rewards, rewards, rewards)
def test_adding_f_of_x_to_both_rewards_changes_nothing(a, b, f):
    """Kills: a reward used alone, or the sum of the two."""
    shifted = bradley_terry(tensor(a + f), tensor(b + f))
    assert_close(shifted, bradley_terry(tensor(a), tensor(b)), rtol=0, atol=1e-11)
    shifted = log_bradley_terry(tensor(a + f), tensor(b + f))
    assert_close(shifted, log_bradley_terry(tensor(a), tensor(b)), rtol=0, atol=1e-11)


@given(rewards, rewards)
def test_one_of_the_two_answers_wins(a, b):
    """P(a ≻ b) + P(b ≻ a) = 1. Kills: any asymmetric shift, or a σ of something even."""
    both = bradley_terry(tensor(a), tensor(b)) + bradley_terry(tensor(b), tensor(a))
    assert_close(both, tensor(1.0), rtol=0, atol=1e-15)


@given(rewards, rewards)
@example(-1e4, 1e4)
@example(1e4, -1e4)
@example(0.0, 0.0)
def test_the_log_form_is_the_logarithm_where_there_is_one_and_finite_everywhere(a, b):
    """log P = −log(1 + e^{−(a−b)}) lies within log 2 of min(0, a − b). Kills: log(sigmoid(x)), a swap, a sign."""
    log_p = log_bradley_terry(tensor(a), tensor(b)).item()
    assert min(0.0, a - b) - log(2) - 1e-15 <= log_p <= min(0.0, a - b)
    if a - b > -700:
        assert log_p == pytest.approx(bradley_terry(tensor(a), tensor(b)).log().item(), rel=1e-12, abs=1e-15)


def test_the_log_form_keeps_what_the_probability_loses():
    assert bradley_terry(tensor(-1e4), tensor(1e4)) == 0.0
    assert log_bradley_terry(tensor(-1e4), tensor(1e4)) == -2e4


@given(rewards, rewards)
def test_the_log_form_pushes_both_rewards_by_the_chance_of_the_other_outcome(a, b):
    """∂ log P/∂r_w = 1 − P = −∂ log P/∂r_l. Kills: a detach, a factor."""
    both = tensor(a, b).requires_grad_()
    (slopes,) = torch.autograd.grad(log_bradley_terry(both[0], both[1]), both)
    (of_p,) = torch.autograd.grad(bradley_terry(both[0], both[1]), both)
    wrong = bradley_terry(tensor(b), tensor(a)).item()
    assert_close(slopes, tensor(wrong, -wrong), rtol=0, atol=1e-15)
    assert_close(of_p, tensor(wrong, -wrong) * (1 - wrong), rtol=0, atol=1e-15)


def test_rewards_broadcast():
    a, b = tensor(1.0, 2.0)[:, None], tensor(0.0, 1.0, 2.0)
    for function in (bradley_terry, log_bradley_terry):
        table = function(a, b)
        assert table.shape == (2, 3)
        assert table[1, 1] == function(a[1, 0], b[1])


# The margin


def test_margin_worked_by_hand():
    """y_w became 2 nats likelier, y_l 3 nats: the margin is −1, though both rose."""
    assert margin(tensor(-1.0), tensor(-2.0), tensor(-3.0), tensor(-5.0)) == -1.0


@given(st.lists(st.tuples(logps, logps, logps, logps), min_size=1, max_size=4))
def test_margin_row_by_row(rows):
    """(π_w − ref_w) − (π_l − ref_l). Kills: any one sign, any two arguments swapped, rows mixed."""
    h = margin(*(tensor(*column) for column in zip(*rows, strict=True)))
    assert h.tolist() == [(w - ref_w) - (lose - ref_l) for w, lose, ref_w, ref_l in rows]


def test_margin_rises_with_the_chosen_log_probability_and_falls_with_the_rejected_one():
    """The derivatives are 1, −1, −1, 1. Kills: a detach, a mean for the difference."""
    four = [tensor(x, x).requires_grad_() for x in (-1.0, -2.0, -3.0, -4.0)]
    slopes = torch.autograd.grad(margin(*four).sum(), four)
    assert [slope.tolist() for slope in slopes] == [[1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0], [1.0, 1.0]]


@given(logps, logps, logps, logps)
def test_swapping_chosen_and_rejected_negates_the_margin_exactly(w, lose, ref_w, ref_l):
    """Kills: an absolute value, an offset, one side weighted differently."""
    w, lose, ref_w, ref_l = (tensor(x) for x in (w, lose, ref_w, ref_l))
    assert torch.equal(margin(w, lose, ref_w, ref_l), -margin(lose, w, ref_l, ref_w))


@given(logps, logps)
@example(-1e-8, -1e4)
def test_a_policy_equal_to_its_reference_has_margin_exactly_zero(w, lose):
    """So the first loss is log 2 exactly, in float32 too. Kills: w − l − ref_w + ref_l, which rounds."""
    for dtype in (torch.float32, torch.float64):
        w_, l_ = (tensor(x).to(dtype) for x in (w, lose))
        assert margin(w_, l_, w_, l_) == 0.0


@given(
    st.lists(st.tuples(rewards, st.floats(-30, 30)), min_size=2, max_size=6),
    st.floats(-3, 3).map(lambda exponent: 10.0**exponent),
    st.data(),
)
def test_z_cancels_beta_times_the_optimums_margin_is_the_difference_of_the_rewards(rows, beta, data):
    """Eq. 6. Kills: β on one side only, log Z left in one of the two, chosen and rejected swapped."""
    reward, log_ref = tensor(*(r for r, _ in rows)), tensor(*(z for _, z in rows)).log_softmax(-1)
    w, lose = (data.draw(st.integers(0, len(rows) - 1)) for _ in "wl")
    log_optimum = optimal_policy(log_ref, reward, beta)
    picked = [x[i][None] for x in (log_optimum, log_ref) for i in (w, lose)]  # π_w, π_l, ref_w, ref_l
    scale = 1e-12 * (reward.abs().max().item() + beta * (1 + log_ref.abs().max().item()))
    difference = reward[w] - reward[lose]
    assert_close(beta * margin(*picked), difference[None], rtol=0, atol=10 * scale)
    implied = implicit_reward(log_optimum, log_ref, beta) + beta * log_partition(log_ref, reward, beta)
    with_z = bradley_terry(implied[w], implied[lose])
    assert_close(torch.sigmoid(beta * margin(*picked))[0], with_z, rtol=0, atol=10 * scale)
    assert_close(with_z, bradley_terry(reward[w], reward[lose]), rtol=0, atol=10 * scale)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(("odd", "others"), [((1,), (3,)), ((3, 1), (3,)), ((), (1,)), ((2,), (3,))], ids=str)
def test_margin_refuses_four_that_differ_in_shape_and_names_the_shapes(place, odd, others):
    """Kills: a door that looks at some of the four; (3, 1) against (3,) would broadcast to nine pairs."""
    four = [torch.zeros(odd if i == place else others) for i in range(4)]
    shapes = [tuple(x.shape) for x in four]
    with pytest.raises(ValueError, match=r"^margin: the four log-probabilities must share one shape") as raised:
        margin(*four)
    assert str(shapes) in str(raised.value)


@pytest.mark.parametrize("shape", [(), (2, 3), (1, 1, 1)])
def test_margin_refuses_anything_but_one_axis(shape):
    """Kills: a door that only compares the four with each other; per-token log-probabilities would pass."""
    with pytest.raises(ValueError, match=r"^margin: the four log-probabilities must share one shape"):
        margin(*[torch.zeros(shape)] * 4)


def test_margin_of_no_pairs_is_empty():
    assert margin(*[torch.zeros(0)] * 4).shape == (0,)
