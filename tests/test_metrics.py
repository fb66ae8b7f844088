"""Metrics, figures and intervals by their definitions, and how often an interval holds a truth that is known."""

import math

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dpo_min.judge.statistics import BINS, Z_95, calibration, correlation, mean, mean_interval, rate, wilson_interval
from dpo_min.losses import LOSSES
from dpo_min.metrics import preference_metrics, wins
from dpo_min.preference import margin

nats = st.floats(-1000, 0)
betas = st.floats(1e-3, 10)


def columns(width, element=nats, max_rows=5):
    """`width` tensors (B,) in float64."""
    row = st.lists(element, min_size=width, max_size=width)
    return st.lists(row, min_size=1, max_size=max_rows).map(lambda rows: torch.tensor(rows, dtype=torch.float64).T)


# ---- metrics of a preference ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_tie_is_half_a_win(dtype):
    """Kills: `ours > theirs`, which reads 0 at step 0."""
    ours, theirs = torch.tensor([2, 1, 1], dtype=dtype), torch.tensor([1, 1, 2], dtype=dtype)
    assert torch.equal(wins(ours, theirs), torch.tensor([1, 0.5, 0], dtype=dtype))


@given(columns(2, st.integers(-3, 3).map(float)))
def test_one_sides_wins_are_the_other_sides_losses(scores):
    """Kills: a tie counted for both."""
    ours, theirs = scores
    assert torch.equal(wins(ours, theirs) + wins(theirs, ours), torch.ones_like(ours))


@given(columns(2, st.floats(-1e30, 0)), betas)
def test_a_policy_equal_to_its_reference_has_no_reward_and_wins_half(logps, beta):
    """Kills: a reward of β log π − β log π_ref, rounded twice; ties that lose."""
    metrics = preference_metrics(logps, logps.clone(), beta)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert torch.equal(metrics[name], torch.zeros_like(logps[0]))
    assert torch.equal(metrics["rewards/accuracies"], torch.full_like(logps[0], 0.5))


@given(columns(4), betas)
def test_the_metrics_are_their_definitions(logps, beta):
    """Kills: chosen and rejected exchanged; β left out; the reference's log-probabilities logged as the policy's."""
    metrics = preference_metrics(logps[:2], logps[2:], beta)
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = logps
    assert metrics.keys() == {
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
        *("logps/chosen", "logps/rejected"),
    }
    chosen, rejected = beta * (policy_chosen - reference_chosen), beta * (policy_rejected - reference_rejected)
    assert torch.equal(metrics["rewards/chosen"], chosen)
    assert torch.equal(metrics["rewards/rejected"], rejected)
    assert torch.equal(metrics["rewards/margins"], chosen - rejected)
    expected = [1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True)]
    assert metrics["rewards/accuracies"].tolist() == expected
    assert torch.equal(metrics["logps/chosen"], policy_chosen)
    assert torch.equal(metrics["logps/rejected"], policy_rejected)


@given(columns(4), betas)
def test_the_loss_is_that_of_the_logged_rewards(logps, beta):
    """Kills: logged rewards that are not the optimised ones (another β, or none)."""
    metrics = preference_metrics(logps[:2], logps[2:], beta)
    logged = -torch.nn.functional.logsigmoid(metrics["rewards/chosen"] - metrics["rewards/rejected"])
    optimised = LOSSES["sigmoid"].value(margin(*logps), beta)
    torch.testing.assert_close(logged, optimised, rtol=1e-10, atol=1e-300)


# ---- intervals ----


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@example((0, 7))
@example((4, 4))
@example((0, 1))
def test_wilsons_interval_lies_in_zero_to_one_and_holds_the_rate(counts):
    """Kills: the normal approximation, which has no width at 0 and leaves [0, 1] beside it; rounding at the ends."""
    successes, n = counts
    low, high = wilson_interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    assert high - low > 0


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_bounds_are_the_rates_that_the_count_rejects_at_five_percent(counts):
    """Kills: z²/2n or z²/4n² misplaced. The bounds solve (p̂ − q)² = z² q (1 − q) / n."""
    successes, n = counts
    for bound in wilson_interval(successes, n):
        distance = (successes / n - bound) ** 2
        assert distance == pytest.approx(Z_95**2 * bound * (1 - bound) / n, rel=1e-8, abs=1e-14)


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(2, 100))
def test_wilsons_interval_shrinks_with_n_and_mirrors_with_the_rate(counts, factor):
    """Kills: a half-width without its 1/n."""
    successes, n = counts
    low, high = wilson_interval(successes, n)
    more_low, more_high = wilson_interval(factor * successes, factor * n)
    assert more_high - more_low < high - low
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilsons_interval_of_eight_in_ten():
    """Kills: another z. By hand: (8 + 1.9207 ± 1.96 √(1.6 + 0.9604)) / 13.8415"""
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)


def test_the_normal_quantile():
    assert math.erf(Z_95 / math.sqrt(2)) == pytest.approx(0.95, abs=1e-7)


def test_the_interval_of_a_mean_by_hand():
    """Kills: the standard deviation with n in place of n − 1; the standard error without its √n."""
    half = 1.959964 * math.sqrt(5 / 3) / 2
    assert mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0])) == pytest.approx((2.5, 2.5 - half, 2.5 + half), rel=1e-12)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=20), st.integers(-1000, 1000))
def test_the_interval_of_a_mean_moves_with_the_values_and_shrinks_with_their_number(values, shift):
    """Kills: float32 sums; an interval that is not centred."""
    values = torch.tensor(values, dtype=torch.float64)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(math.fsum(values.tolist()) / len(values), rel=1e-12, abs=1e-9)
    assert (low + high) / 2 == pytest.approx(mean, abs=1e-9)
    assert mean_interval(values + shift) == pytest.approx((mean + shift, low + shift, high + shift), abs=1e-7)
    assume(high - low > 1e-3)
    _, more_low, more_high = mean_interval(values.repeat(4))
    assert more_high - more_low < 0.9 * (high - low)


def test_of_nothing_nothing_is_known():
    """Kills: a division by zero, or an interval of one value that pretends to know how far others lie."""
    assert wilson_interval(0, 0) == (0, 1)
    assert mean_interval(torch.tensor([3.5])) == (3.5, -math.inf, math.inf)
    value, *ends = mean_interval(torch.tensor([]))
    assert math.isnan(value) and ends == [-math.inf, math.inf]
    assert math.isnan(rate(torch.tensor([])).value) and rate(torch.tensor([]))[1:] == (0, 1, 0)


def covered(draws, figure, truth):
    """The share of rows of draws (repeats, n) whose interval holds the truth."""
    figures = [figure(row) for row in draws]
    return sum(f.low <= truth <= f.high for f in figures) / len(figures)


def test_the_intervals_hold_the_truth_nineteen_times_in_twenty():
    """Kills: 1.96 standard deviations in place of standard errors, or half of an interval. Three σ of 400 are 0.033."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(400, 60, generator=generator, dtype=torch.float64) + 7
    assert covered(normal, mean, 7) == pytest.approx(0.95, abs=0.033)
    coins = (torch.rand(400, 90, generator=generator, dtype=torch.float64) < 0.3).double()
    assert covered(coins, rate, 0.3) == pytest.approx(0.95, abs=0.033)
    x, noise = torch.randn(2, 400, 50, generator=generator, dtype=torch.float64)
    both = torch.stack([x, 0.6 * x + 0.8 * noise], dim=1)  # correlation 0.6
    assert covered(both, lambda pair: correlation(*pair), 0.6) == pytest.approx(0.95, abs=0.033)


def test_a_figures_standard_error_is_what_its_interval_was_made_of():
    assert mean(torch.tensor([1.0, 2.0, 3.0, 4.0])).standard_error == pytest.approx(math.sqrt(5 / 3) / 2, rel=1e-12)


# ---- correlation ----

points = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=12)


@given(points, st.integers(1, 9), st.integers(-99, 99))
@example([(0, 0), (1, 1), (2, 2), (3, 3)], 1, 0)
@example([(5, 1), (5, 2)], 1, 0)
def test_the_correlation_is_pearsons_and_does_not_see_scale_or_order(points, scale, shift):
    """Kills: a mean left in, a variance for a standard deviation, an interval that does not hold its own value."""
    x, y = torch.tensor(points, dtype=torch.float64).T
    found, n = correlation(x, y), len(points)
    sums = [
        sum((a - x.mean()) * (b - y.mean()) for a, b in zip(u, v, strict=True)) for u, v in ((x, y), (x, x), (y, y))
    ]
    if x.unique().numel() == 1 or y.unique().numel() == 1:
        assert math.isnan(found.value) and found[1:] == (-1, 1, n)
        return
    assert found.value == pytest.approx(float(sums[0]) / math.sqrt(sums[1] * sums[2]), abs=1e-12)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert correlation(scale * x + shift, y.clone()) == pytest.approx(found, abs=1e-9)
    assert correlation(x.flip(0), y.flip(0)) == pytest.approx(found, abs=1e-9)
    low, high = -found.high, -found.low
    assert correlation(-x, y) == pytest.approx((-found.value, low, high, n), abs=1e-9)


def test_fishers_interval_by_hand():
    """Kills: √n for √(n − 3). r = 0.5, n = 103: tanh(0.549306 ± 1.959964/10)."""
    x = torch.tensor([1.0, -1.0, 0.0, 0.0] * 25 + [1.0, -1.0, 0.0])
    y = torch.tensor([1.0, -1.0, 1.0, -1.0] * 25 + [1.0, -1.0, 0.0])
    r = correlation(x, y)
    assert (r.value, r.n) == (pytest.approx(math.sqrt(52 / 102), rel=1e-9), 103)
    centre = math.atanh(r.value)
    assert (r.low, r.high) == pytest.approx((math.tanh(centre - 0.1959964), math.tanh(centre + 0.1959964)), rel=1e-9)


# ---- calibration ----

margins_ = st.lists(st.floats(-40, 40) | st.sampled_from([0.0, -0.0, 1e-300]), min_size=1, max_size=30)


@given(margins_)
@example([math.log(0.55 / 0.45), math.log(0.95 / 0.05), 1000.0, -1000.0])
def test_the_bins_divide_the_rows_and_the_error_is_their_weighted_gap(margins):
    """Kills: a row in no bin or in two, confidence 1 beyond the last, empty bins counted, ties that lose."""
    h = torch.tensor(margins, dtype=torch.float64)
    error, bins = calibration(h)
    assert sum(b.n for b in bins) == len(h) == error.n and len(bins) == BINS == 10
    assert [b.low for b in bins] == pytest.approx([0.5 + i / 20 for i in range(10)])
    assert [b.high for b in bins] == pytest.approx([0.55 + i / 20 for i in range(10)])
    confidence = [1 / (1 + math.exp(-min(abs(x), 700))) for x in margins]
    rows = [(c, 0.5 if x == 0 else float(x > 0)) for c, x in zip(confidence, margins, strict=True)]
    for b in bins:
        if b.n:
            assert b.low - 1e-12 <= b.confidence <= b.high + 1e-12
    assert sum(b.n * b.confidence for b in bins if b.n) == pytest.approx(sum(c for c, _ in rows), abs=1e-9)
    assert sum(b.n * b.accuracy for b in bins if b.n) == pytest.approx(sum(a for _, a in rows), abs=1e-9)
    gap = sum(b.n / len(h) * abs(b.accuracy - b.confidence) for b in bins if b.n)
    assert error.value == pytest.approx(gap, abs=1e-12) and 0 <= error.low <= error.value <= error.high <= 1


@given(margins_)
def test_swapping_the_sides_of_every_row_turns_right_into_wrong(margins):
    """Kills: an error that depends on which side is called chosen beyond what was observed."""
    h = torch.tensor(margins, dtype=torch.float64)
    for b, swapped in zip(calibration(h)[1], calibration(-h)[1], strict=True):
        assert (b.n, b.n and b.confidence) == (swapped.n, swapped.n and swapped.confidence)
        if b.n:
            assert b.accuracy == pytest.approx(1 - swapped.accuracy)


def observed(truth, confidence, generator):
    """Margins of rows with these confidences, right with probability `truth`, as βh: (repeats, n)."""
    right = torch.rand(confidence.shape, generator=generator, dtype=torch.float64) < truth
    return torch.where(right, 1, -1) * torch.logit(confidence)


def test_a_calibrated_model_has_an_error_whose_interval_reaches_zero_and_which_vanishes_with_n():
    """Kills: σ of the margin without β, confidence and accuracy exchanged, noise divided by n twice."""
    generator = torch.Generator().manual_seed(0)
    sure = 0.5 + torch.rand(300, 200, generator=generator, dtype=torch.float64) / 2
    rows = observed(sure, sure, generator)
    assert covered(rows, lambda h: calibration(h)[0], 0.0) >= 0.95
    few, many = calibration(rows[0])[0], calibration(rows.flatten())[0]
    assert many.value < 0.01 < 0.03 < few.value
    assert many.high - many.low < (few.high - few.low) / 5


def test_the_interval_of_a_known_calibration_error_holds_it_and_excludes_zero():
    """Kills: an interval that is always wide enough to hold 0. One bin, 0.82 sure, 0.62 right: 0.2."""
    generator = torch.Generator().manual_seed(1)
    rows = observed(0.62, torch.full((300, 250), 0.82, dtype=torch.float64), generator)
    figures = [calibration(h)[0] for h in rows]
    assert covered(rows, lambda h: calibration(h)[0], 0.2) == pytest.approx(0.955, abs=0.04)
    assert all(f.low > 0 for f in figures)
