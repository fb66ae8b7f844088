"""Where losses end, small: closed forms are optima, the losses end there, and Z(x) moves those that see it."""

import functools
import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dpo_min.data.batch import batch_logps, pack
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.losses import LOSSES, Mixture
from dpo_min.objective import kl_divergence, objective
from dpo_min.ratio_losses import plackett_luce

endings = pytest.importorskip("experiments.endings", reason="the experiments are deletable")
theorem = pytest.importorskip("experiments.theorem", reason="the experiments are deletable")
SEE_Z = {"nca", "bco", "sppo", "apo_zero", "apo_down", "dpop", "orpo", "forward_kl", "jensen_shannon"}
SEE_Z |= {"alpha_divergence"}


@functools.cache
def small_world(seed=0, beta=0.5):
    """Seven completions: two letters and end-of-text, at most two tokens."""
    return theorem.make_world(vocab_size=3, max_new_tokens=2, beta=beta, seed=seed)


def distance(p, q):
    return kl_divergence(p, q).abs().item()


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.floats(0.3, 3), st.sampled_from([0.5, 1.0, 2.0]))
@example(0, 0.5, 1.0)
def test_the_optimum_under_a_divergence_is_a_distribution_at_which_nothing_is_to_be_gained(seed, beta, alpha):
    """r − β f′(π/π_ref) is one number for all answers. Kills: f′ inverted wrongly, a λ that does not normalise."""
    world = small_world(seed, beta)
    found = endings.alpha_optimum(world, alpha)
    assert_close(found.exp().sum(), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-9)
    f_prime = (1 - (-alpha * (found - world.log_ref)).exp()) / alpha
    gain = world.reward - beta * f_prime
    assert (gain - gain[0]).abs().max() <= 1e-6 * gain.abs().max()


def test_the_optimum_for_jensen_shannon_is_the_best_of_many():
    """E[r] − β D_JS is largest there. Kills: the derivative of another divergence."""
    world = small_world()
    best = endings.known_optima(world, theorem.all_preferences(world))["the optimum for Jensen–Shannon"]

    def value(log_p):
        u = (log_p - world.log_ref).exp()
        f = u * u.log() - (u + 1) * ((u + 1) / 2).log()
        return (log_p.exp() * world.reward).sum() - world.beta * (world.log_ref.exp() * f).sum()

    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 0.1, 1.0):
        for _ in range(20):
            step = scale * torch.randn(7, generator=generator, dtype=torch.float64)
            assert value((best + step).log_softmax(-1)) < value(best)


ENDS = {
    "sigmoid": "π_r", "ipo": "the optimum of P(y beats a draw from π_ref)", "dpop": "π_ref",
    "odpo": "the optimum of 2r",
    "r-dpo": "the optimum of r − 0.01·length", "forward_kl": "the optimum for the forward KL",
    "jensen_shannon": "the optimum for Jensen–Shannon", "alpha_divergence": "the optimum for the α-divergence",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_loss_ends_in_the_optimum_that_belongs_to_it(name, seed):
    """Kills: a transform that is not the divergence's f′, a length or an offset of the wrong sign."""
    world = small_world(seed)
    weights = theorem.all_preferences(world)
    log_policy, _ = endings.fit(world, weights, name)
    assert distance(log_policy, endings.known_optima(world, weights)[ENDS[name]]) <= 1e-8
    assert endings.ending(world, log_policy, endings.known_optima(world, weights), weights, name)[0] == ENDS[name]


def test_simpo_without_its_margin_ends_where_no_reference_occurs():
    world = small_world()
    log_policy, _ = endings.fit(world, theorem.all_preferences(world), "simpo", gamma=0.0)
    assert distance(log_policy, endings.bare_optimum(world)) <= 1e-8


def test_apo_ends_at_a_boundary_and_robust_nowhere():
    """Kills: a policy that is still on its way, called a minimum."""
    world = theorem.make_world(vocab_size=5, max_new_tokens=2)
    weights = theorem.all_preferences(world)
    optima = endings.known_optima(world, weights)
    found = {name: endings.ending(world, endings.fit(world, weights, name)[0], optima, weights, name) for name in
             ("apo_zero", "apo_down", "robust", "nca", "sppo")}  # fmt: skip
    assert {name: ends for name, (ends, _) in found.items()} == {
        "apo_zero": "a boundary", "apo_down": "a boundary", "robust": "nowhere",
        "nca": "its own minimum", "sppo": "its own minimum",
    }  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_adding_f_of_x_to_the_reward_moves_the_optimum_of_those_that_see_z_and_of_no_other(name):
    """ℓ(a + c, b + c) in the place of ℓ(a, b): the reward of every answer to the prompt is βc more.

    Kills: Z(x) where it is said to cancel; a row in the wrong list.
    """
    world = theorem.make_world(vocab_size=4, max_new_tokens=2)
    weights, lengths = theorem.all_preferences(world), endings.lengths_of(world)[:, None].expand(13, 13)

    def shifted(log_policy, c):
        a, b = endings.read_sides(log_policy, world, name)
        facts = {"policy_chosen_logps": log_policy[:, None], "chosen_lengths": lengths, "rejected_lengths": lengths.T}
        facts |= {"offset": world.reward[:, None] - world.reward, "shift": 0.0, "label_smoothing": 0.1}
        return (weights * Mixture({name: 1.0}).value(a + c, b + c, world.beta, **facts)).sum()

    c = 0.7 if LOSSES[name].reference else -0.7
    one, _, _ = theorem.fit_u(world, functools.partial(shifted, c=0.0), max_iter=200)
    other, _, _ = theorem.fit_u(world, functools.partial(shifted, c=c), max_iter=200)
    if name in ("hinge", "slic"):  # where L-BFGS stops on a kink depends on the last bit; the loss does not
        assert_close(shifted(one, c) - shifted(one, 0.0), shifted(other, c) - shifted(other, 0.0), rtol=0, atol=1e-12)
    elif name == "apo_down":  # which ends in a corner, with or without
        assert max(one.max(), other.max()) > -1e-6 and shifted(one, c) - shifted(one, 0.0) != 0
    else:
        assert (distance(one, other) > 1e-5) == (name in SEE_Z)


def test_the_log_probabilities_of_the_listed_language_are_those_of_the_path_of_the_trainer():
    """Sums, means, and LD-DPO's α past the shorter answer. Kills: a prefix of the wrong length; i and j swapped."""
    world = small_world()
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    batch = pack([TokenizedPair(theorem.PROMPT, *(list(world.completions[k]) for k in pair)) for pair in pairs])
    uniform = torch.full((7,), -math.log(7), dtype=torch.float64)
    other = theorem.World(world.reference, world.completions, uniform, world.reward, world.beta)
    for name in ("cpo", "simpo", "sigmoid", "ld"):
        wanted = batch_logps(world.reference, batch, LOSSES[name].reduce or "sum").view(2, -1)
        if LOSSES[name].reference:
            wanted = wanted - torch.tensor([spelled_out(world, name, pair) for pair in pairs]).T
        for side, expected in zip(endings.read_sides(world.log_ref, other, name), wanted, strict=True):
            assert_close(torch.stack([side[pair] for pair in pairs]), expected, rtol=1e-6, atol=1e-6)


def spelled_out(world, name, pair):
    """Log p of both answers under the uniform policy, added up as the loss says."""
    shared = min(len(world.completions[k]) for k in pair)
    heads = [sum(c[:shared] == world.completions[k][:shared] for c in world.completions) for k in pair]
    return [math.log(head / 7) + (0.5 if name == "ld" else 1.0) * math.log(1 / head) for head in heads]


def test_ranked_lists_end_in_the_optimum():
    """Plackett and Luce's judge on all triples. Kills: a rank that is left out, an order upside down."""
    world = small_world()
    orders = torch.tensor(list(itertools.permutations(range(7), 3)))  # (210, 3) best first
    present = torch.ones_like(orders, dtype=torch.bool)
    chance = (-plackett_luce(world.reward[orders], 1.0, present)).exp() * world.log_ref.exp()[orders].prod(dim=-1)

    def loss(log_policy):
        return (chance * plackett_luce((log_policy - world.log_ref)[orders], world.beta, present)).sum()

    log_policy, _, _ = theorem.fit_u(world, loss)
    assert distance(log_policy, world.optimum) <= 1e-10


def test_one_pair_moves_both_sides_alike_under_every_loss_of_the_margin():
    """On a GPT, to the margin of 2 nats. Kills: a loss of h whose slopes are not equal and opposite."""
    world = small_world()
    pair = 4, 3
    names = "sigmoid", "ipo", "cdpo", "rpo"
    found = {name: endings.displace(world, name, *pair, beta=0.1, margin=2.0) for name in names}
    assert found["sigmoid"] == pytest.approx(found["ipo"], abs=1e-9)
    assert found["sigmoid"] == pytest.approx(found["cdpo"], abs=1e-9)
    assert found["rpo"][0] > found["sigmoid"][0]
    for chosen, rejected, _ in found.values():
        assert chosen - rejected >= 2.0


def test_j_of_the_figures_is_the_objective():
    world = small_world()
    weights = theorem.all_preferences(world)
    kl, mean, j, chosen, rejected, unseen = endings.figures(world, world.optimum, weights)
    assert j == pytest.approx(objective(world.optimum, world.log_ref, world.reward, world.beta).item())
    assert j == pytest.approx(mean - world.beta * kl) and unseen == 0
    a = world.optimum - world.log_ref
    margins = sum(weights[i, k] * (a[i] - a[k]) for i in range(7) for k in range(7))
    assert chosen - rejected == pytest.approx(margins.item())
