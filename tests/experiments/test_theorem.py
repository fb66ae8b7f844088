"""The theorem, small: DPO on Bradley–Terry preferences ends in π_r, from anywhere, for any way of drawing the pairs."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dpo_min.losses import LOSSES
from dpo_min.objective import kl_divergence
from dpo_min.preference import bradley_terry

theorem = pytest.importorskip("experiments.theorem", reason="the experiments are deletable")
FLIPS = theorem.FLIPS


def small_world(seed=0, beta=0.5):
    """Seven completions: two letters and end-of-text, at most two tokens."""
    return theorem.make_world(vocab_size=3, max_new_tokens=2, beta=beta, seed=seed)


def distance(log_policy, world):
    return kl_divergence(log_policy, world.optimum).abs().item()


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(0.2, 5))
@example(0, 0.5)
def test_a_table_trained_on_all_preferences_ends_in_the_optimum(seed, beta):
    """KL(π‖π_r) ≤ 1e−10. Kills: any sign, any β, any swap of the sides on the way from the reward to the policy."""
    world = small_world(seed, beta)
    assert distance(world.log_ref, world) > 1e-6
    log_policy, _ = theorem.fit_table(world, theorem.all_preferences(world))
    assert distance(log_policy, world) <= 1e-10


@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_the_pairs_need_not_come_from_the_reference(seed):
    """Any weights do that link all completions by comparisons. Kills: "DPO needs on-policy pairs", at the optimum."""
    world = small_world(seed)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(7, 7, generator=generator, dtype=torch.float64) + 0.1
    drawn = (drawn + drawn.T).fill_diagonal_(0)  # in either order
    weights = drawn / drawn.sum() * 2 * bradley_terry(world.reward[:, None], world.reward)
    log_policy, _ = theorem.fit_table(world, weights)
    assert distance(log_policy, world) <= 1e-10


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.floats(0, 0.4))
def test_the_weights_are_a_distribution_and_flips_mix_the_two_sides(seed, flips):
    """Kills: a pair counted twice, a completion compared with itself, ε on the wrong side."""
    world = small_world(seed)
    clean, flipped = theorem.all_preferences(world), theorem.all_preferences(world, flips)
    assert_close(flipped.sum(), torch.tensor(1.0, dtype=torch.float64))
    assert (flipped.diagonal() == 0).all() and (flipped >= 0).all()
    assert_close(flipped, (1 - flips) * clean + flips * clean.T, rtol=1e-12, atol=1e-15)
    assert_close(clean / (clean + clean.T).fill_diagonal_(1), clean.new_tensor(WINS(world)).fill_diagonal_(0))


def WINS(world):
    """P(y_i ≻ y_j) spelled out."""
    r = world.reward.tolist()
    return [[math.exp(a) / (math.exp(a) + math.exp(b)) for b in r] for a in r]


def test_a_gpt_trained_by_the_path_of_the_trainer_ends_in_the_optimum():
    """Within 1e−3 nats. Kills: a log-probability that is not the completion's, such as one without its end-of-text."""
    world = small_world()
    log_policy, distances = theorem.fit_gpt(world, theorem.all_preferences(world), steps=200)
    assert distances[0] == pytest.approx(distance(world.log_ref, world), abs=1e-5)
    assert distance(log_policy, world) <= 1e-3 < distances[0] / 100


def test_the_distance_falls_like_one_over_the_number_of_pairs_as_theory_says():
    """N · KL against ½ tr(∇²KL (∇²L)⁺), to four standard errors. Kills: a factor 2, a Hessian of the wrong loss."""
    world = small_world()
    weights, n = theorem.all_preferences(world), 100_000
    found = n * theorem.fit_samples(world, weights, [n], repeats=60)[0]
    expected = theorem.asymptotic_kl(world, weights)
    assert abs(found.mean().item() - expected) < 4 * found.std().item() / math.sqrt(len(found))


@given(st.integers(0, 10**6), st.integers(0, 1000))
def test_a_sample_holds_n_preferences_and_on_average_the_weights(seed, n):
    """Kills: a cell that takes more than is left, one that is never drawn."""
    weights = theorem.all_preferences(small_world())
    generator = torch.Generator().manual_seed(seed)
    counts = theorem.sample(weights, max(n, 1), generator) * max(n, 1)
    assert_close(counts, counts.round())
    assert counts.sum().item() == pytest.approx(max(n, 1)) and (counts >= 0).all()
    many = theorem.sample(weights, 10**9, generator)
    assert ((many - weights).abs() <= 6 * (weights / 10**9).sqrt() + 1e-15).all()


@given(st.floats(-3, 3), st.floats(0.01, 100))
def test_the_slope_of_an_exact_power_law_is_its_exponent(exponent, factor):
    sizes = [10, 100, 1000]
    distances = torch.tensor([[factor * n**exponent] * 2 for n in sizes], dtype=torch.float64)
    slope, half = theorem.fit_slope(sizes, distances)
    assert slope == pytest.approx(exponent, abs=1e-9) and half < 1e-6


@pytest.fixture(scope="module")
def fits():
    return small_world(), theorem.fit_losses(small_world())


def test_only_sigmoid_on_true_labels_and_robust_on_flipped_ones_recover_the_optimum(fits):
    world, found = fits
    recovered = [key for key, (log_policy, _) in found.items() if distance(log_policy, world) <= 1e-10]
    assert recovered == [("sigmoid", 0.0), ("robust", FLIPS)]


def test_cdpo_on_true_labels_is_sigmoid_on_flipped_ones(fits):
    """Kills: "cDPO undoes the noise"."""
    _, found = fits
    assert kl_divergence(found["cdpo", 0.0][0], found["sigmoid", FLIPS][0]).abs().item() <= 1e-10


def test_ipo_ends_in_the_optimum_of_another_reward(fits):
    world, found = fits
    assert kl_divergence(found["ipo", 0.0][0], theorem.ipo_optimum(world)).abs().item() <= 1e-10


def test_robust_told_of_flips_that_did_not_happen_falls_for_ever():
    """Some answers beat the rest with more than 1 − ε on average. Kills: a lower bound where there is none."""
    world = theorem.make_world(vocab_size=5, max_new_tokens=2)
    assert bradley_terry(world.reward.max(), world.reward.min()) > 1 - FLIPS
    log_policy, lowest = theorem.fit_table(world, theorem.all_preferences(world), "robust", FLIPS)
    assert log_policy.isnan().any() and lowest < -1e6
    assert LOSSES["robust"].value(torch.tensor([1e6]), 1.0, FLIPS).item() < -1e5


def test_both_log_probabilities_can_fall_while_the_margin_grows():
    """Likelihood displacement, on a real GPT with seven completions. Kills: "the chosen log-prob must rise"."""
    world = small_world()
    found = theorem.displacements(world)
    assert found
    for (chosen, rejected), history in found.items():
        change = history[-1] - history[0]
        assert change[rejected] < change[chosen] < 0
        assert_close(
            history.exp().sum(dim=-1), torch.ones(len(history), dtype=torch.float64)
        )  # the mass went elsewhere
