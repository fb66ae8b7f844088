"""Metrics and intervals by their definitions; log-ratios by the exact KL of two policies small enough to enumerate."""

import copy
import math

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dpo_min.data import TokenizedPair
from dpo_min.evaluate import Z_95, log_ratios, mean_interval, preference_metrics, wilson_interval, wins
from dpo_min.exact import enumerate_completions
from dpo_min.generate import generate
from dpo_min.losses import LOSSES
from dpo_min.packing import batch_logps, pack
from dpo_min.preference import margin

END = 4  # end-of-text of tiny_gpt
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


# ---- log-ratios and KL ----


def perturbed(model, seed):
    """Another policy: the same network with noise on every parameter."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def exact_kl(policy, reference, text, length):
    """KL(π‖π_ref) of the next `length` tokens by the chain rule: Σ_v π(v) [log π(v)/π_ref(v) + KL after v]."""
    p, q = (model.logits(model(torch.tensor([text])))[0, -1].log_softmax(-1) for model in (policy, reference))
    after = [0 if v == END or length == 1 else exact_kl(policy, reference, [*text, v], length - 1) for v in range(5)]
    return (p.exp() * (p - q + torch.tensor(after, dtype=p.dtype))).sum().item()


texts = st.lists(st.integers(0, END), min_size=1, max_size=6)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_a_policy_and_itself_have_log_ratios_of_exactly_zero(tiny_gpt, rows):
    """Kills: two code paths for policy and reference."""
    ratios = log_ratios(tiny_gpt, copy.deepcopy(tiny_gpt), *zip(*rows, strict=True))
    assert torch.equal(ratios, torch.zeros(len(rows), dtype=torch.float64))


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=7), st.integers(1, 8))
@example([([0], [1]), ([0, 1], [2, 3, END]), ([END], [END])], 2)
def test_log_ratios_are_each_rows_own_whatever_the_micro_batch(tiny_gpt, rows, size):
    """Kills: the last micro-batch dropped; rows out of order; the two models exchanged."""
    reference = perturbed(tiny_gpt, 0)
    ratios = log_ratios(tiny_gpt, reference, *zip(*rows, strict=True), micro_batch_size=size)
    batches = [pack([TokenizedPair(x, y, y)], chosen_only=True) for x, y in rows]
    expected = [batch_logps(tiny_gpt, batch) - batch_logps(reference, batch) for batch in batches]
    torch.testing.assert_close(ratios, torch.cat(expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize("prompt", [[0], [3, 1, 2], [END]])
@pytest.mark.parametrize("length", [1, 3])
def test_the_average_log_ratio_over_every_completion_is_the_exact_kl(tiny_gpt, prompt, length):
    """Kills: a mean over tokens; an end-of-text that is not scored; KL(π_ref‖π)."""
    reference = perturbed(tiny_gpt, 0)
    ys = [list(y) for y in enumerate_completions(5, END, length)]
    pairs = [TokenizedPair(prompt, y, y) for y in ys]
    probabilities = batch_logps(tiny_gpt, pack(pairs, chosen_only=True)).exp()
    average = (probabilities * log_ratios(tiny_gpt, reference, [prompt] * len(ys), ys)).sum().item()
    kl = exact_kl(tiny_gpt, reference, prompt, length)
    assert kl > 0.01
    assert average == pytest.approx(kl, rel=1e-10)


def test_the_mean_log_ratio_of_drawn_completions_is_near_the_exact_kl(tiny_gpt):
    """Kills: completions drawn from the reference, whose mean is −KL(π_ref‖π). Three half-widths are 5.9 σ."""
    reference, prompts = perturbed(tiny_gpt, 0), [[0, 1]] * 2000
    drawn = [completion.ids for completion in generate(tiny_gpt, prompts, END, 3, torch.Generator().manual_seed(0))]
    mean, low, high = mean_interval(log_ratios(tiny_gpt, reference, prompts, drawn, micro_batch_size=500))
    assert abs(mean - exact_kl(tiny_gpt, reference, [0, 1], 3)) < 3 * (high - low) / 2


def test_log_ratios_build_no_graph(tiny_gpt):
    """Kills: activations kept for a backward that never comes."""
    policy = copy.deepcopy(tiny_gpt).requires_grad_()
    assert not log_ratios(policy, tiny_gpt, [[0]], [[1]]).requires_grad
