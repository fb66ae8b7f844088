"""objective.py: the KL, the objective, its optimum and the inversion, on every kind of finite set."""

import math
from math import inf, log, nan

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dpo_min.objective import (
    check_beta,
    expectation,
    implicit_reward,
    kl_divergence,
    log_partition,
    objective,
    optimal_policy,
)

NEVER = -1e9  # stands for log 0 while an example is drawn
FUNCTIONS = {
    "expectation": (expectation, ("log_p", "f"), ()),
    "kl_divergence": (kl_divergence, ("log_p", "log_q"), ()),
    "objective": (objective, ("log_policy", "log_ref", "reward"), (1.0,)),
    "log_partition": (log_partition, ("log_ref", "reward"), (1.0,)),
    "optimal_policy": (optimal_policy, ("log_ref", "reward"), (1.0,)),
    "implicit_reward": (implicit_reward, ("log_policy", "log_ref"), (1.0,)),
}
WITH_BETA = [name for name, (_, _, beta) in FUNCTIONS.items() if beta]

rewards = st.floats(-1e4, 1e4)
betas = st.floats(-3, 3).map(lambda exponent: 10.0**exponent)
logits = st.floats(-1e3, 1e3)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def logs(*probabilities):
    return tensor(probabilities).log()


def distribution(values):
    """Log-probabilities from logits; NEVER becomes a completion of probability zero."""
    z = tensor(values)
    return torch.where(z == NEVER, -inf, z).log_softmax(-1)


@st.composite
def distributions(draw, size, positive=False):
    values = draw(st.lists(logits if positive else logits | st.just(NEVER), min_size=size, max_size=size))
    if all(value == NEVER for value in values):
        values[0] = 0.0
    return distribution(values)


@st.composite
def problems(draw, policies=1, positive=False):
    """`policies` policies, a reference, a reward and β."""
    size = draw(st.integers(1, 6))
    drawn = [draw(distributions(size, positive)) for _ in range(policies)]
    reward = tensor(draw(st.lists(rewards, min_size=size, max_size=size)))
    return torch.stack(drawn), draw(distributions(size, positive)), reward, draw(betas)


def rounding(beta, reward, *log_probabilities):
    """How far two float64 evaluations of J may lie apart: 1e-12 of the largest term that they add up."""
    terms = [x[x > -inf].abs().max().item() for x in log_probabilities]
    return 1e-12 * (reward.abs().max().item() + beta * (1 + sum(terms)))


def assert_equal(actual, expected, atol):
    assert_close(actual, expected, rtol=0, atol=atol)


# The mean


def test_expectation_is_the_sum_of_probability_times_value():
    assert expectation(logs(0.2, 0.3, 0.5), tensor([10.0, -20.0, 2.0])).item() == pytest.approx(2 - 6 + 1, abs=1e-14)


@pytest.mark.parametrize("value", [inf, -inf, nan, 1e308])
def test_an_impossible_completion_does_not_count_whatever_its_value(value):
    """Kills: 0 · ∞ = NaN."""
    assert expectation(tensor([0.0, -inf]), tensor([3.0, value])) == 3.0


@pytest.mark.parametrize("log_p", [-800.0, -1e7])
def test_a_completion_too_unlikely_for_a_float_still_has_infinite_weight_against_infinity(log_p):
    """Kills: p read as 0 once e^log_p underflows, which gives NaN or a finite KL."""
    p = tensor([0.0, log_p])
    assert expectation(p, tensor([1.0, inf])) == inf
    assert kl_divergence(p, tensor([0.0, -inf])) == inf
    assert objective(p, tensor([0.0, -inf]), tensor([1.0, 1.0]), 1.0) == -inf
    assert expectation(p, tensor([1.0, 1e7])) == 1.0


# KL


def test_kl_worked_by_hand_in_both_directions():
    """Kills: KL reversed, log₂ for ln, the sign."""
    half, quarter = logs(0.5, 0.5), logs(0.25, 0.75)
    assert kl_divergence(half, quarter).item() == pytest.approx(0.5 * log(2) + 0.5 * log(2 / 3), abs=1e-15)
    assert kl_divergence(quarter, half).item() == pytest.approx(0.25 * log(1 / 2) + 0.75 * log(3 / 2), abs=1e-15)


@given(problems())
def test_kl_equals_the_sum_spelled_out(problem):
    """Kills: KL reversed (the naive sum is not symmetric), a term lost or counted where p = 0."""
    log_p, log_q = problem[0][0], problem[1]
    naive = 0.0
    for a, b in zip(log_p.tolist(), log_q.tolist(), strict=True):
        if a > -inf:
            naive += math.exp(a) * (a - b) if b > -inf else inf
    assert_equal(kl_divergence(log_p, log_q), tensor(naive), 1e-9)


@given(problems())
@example((logs([0.5, 0.5]), logs(0.5, 0.5), tensor([0.0, 0.0]), 1.0))
def test_kl_is_at_least_half_the_squared_distance_so_it_is_zero_only_between_equals(problem):
    """Pinsker's inequality: KL ≥ ½ (Σ|p − q|)². Kills: any constant factor below 1, the sign, p − q for log p/q."""
    log_p, log_q = problem[0][0], problem[1]
    distance = (log_p.exp() - log_q.exp()).abs().sum()
    assert kl_divergence(log_p, log_q) >= 0.5 * distance**2 - 1e-12


@given(problems())
def test_kl_of_a_distribution_from_itself_is_exactly_zero(problem):
    """Kills: any constant added, and NaN from log 0 − log 0."""
    assert kl_divergence(problem[1], problem[1]) == 0.0


# The objective and its optimum


def test_objective_and_optimum_worked_by_hand():
    """β = 2, reward 2 log 3 for the second of two equals: weights ½ and 3/2, Z = 2, π_r = ¼, ¾."""
    ref, reward, beta = logs(0.5, 0.5), tensor([0.0, 2 * log(3)]), 2.0
    assert_equal(log_partition(ref, reward, beta), tensor(log(2)), 1e-15)
    assert_equal(optimal_policy(ref, reward, beta).exp(), tensor([0.25, 0.75]), 1e-15)
    assert_equal(objective(ref, ref, reward, beta), tensor(log(3)), 1e-15)  # no drift: the mean reward
    assert_equal(objective(optimal_policy(ref, reward, beta), ref, reward, beta), tensor(2 * log(2)), 1e-15)
    assert_equal(objective(logs(0.0, 1.0), ref, reward, beta), tensor(2 * log(3) - 2 * log(2)), 1e-15)
    assert_equal(implicit_reward(logs(0.25, 0.75), ref, beta), tensor([-2 * log(2), 2 * log(1.5)]), 1e-15)


def test_weights_seven_two_one_become_probabilities():
    """Z is the sum of the weights π_ref e^{r/β}, and π_r is the weights over Z."""
    reward = tensor([log(7), log(2), log(1)])
    assert_equal(log_partition(tensor([0.0, 0.0, 0.0]), reward, 1.0), tensor(log(10)), 1e-15)
    assert_equal(optimal_policy(logs(1 / 3, 1 / 3, 1 / 3), reward, 1.0).exp(), tensor([0.7, 0.2, 0.1]), 1e-15)


@given(problems())
def test_objective_is_the_mean_of_reward_less_beta_log_ratio(problem):
    """Kills: β dropped, squared or in the denominator, KL reversed, reward and KL added."""
    (log_policy, *_), log_ref, reward, beta = problem
    naive = 0.0
    for p, ref, r in zip(log_policy.tolist(), log_ref.tolist(), reward.tolist(), strict=True):
        if p > -inf:
            naive += math.exp(p) * (r - beta * (p - ref)) if ref > -inf else -inf
    atol = rounding(beta, reward, log_policy, log_ref)
    assert_equal(objective(log_policy, log_ref, reward, beta), tensor(naive), atol)


@given(problems())
def test_the_optimal_policy_is_a_distribution_on_the_references_support(problem):
    """Kills: Z forgotten, Z added for subtracted, support gained or lost."""
    _, log_ref, reward, beta = problem
    log_optimum = optimal_policy(log_ref, reward, beta)
    assert_equal(log_optimum.exp().sum(), tensor(1.0), 1e-12)
    assert torch.equal(log_optimum == -inf, log_ref == -inf)


@given(problems())
def test_eq_4_the_optimal_policy_is_the_weighted_reference_over_z(problem):
    """log π_r = log π_ref + r/β − log Z. Kills: e^{rβ} for e^{r/β}, the reference forgotten, Z of other arguments."""
    _, log_ref, reward, beta = problem
    expected = log_ref + reward / beta - log_partition(log_ref, reward, beta)
    atol = rounding(beta, reward, log_ref) / beta
    assert_equal(optimal_policy(log_ref, reward, beta), expected, atol)


@given(problems(policies=4))
def test_no_policy_beats_the_optimal_one(problem):
    """J(π) ≤ J(π_r). Kills: β read backwards, the sign of the reward, KL reversed in J."""
    policies, log_ref, reward, beta = problem
    best = objective(optimal_policy(log_ref, reward, beta), log_ref, reward, beta)
    atol = rounding(beta, reward, policies, log_ref)
    assert (objective(policies, log_ref, reward, beta) <= best + atol).all()
    assert_equal(best, beta * log_partition(log_ref, reward, beta), atol)


@given(problems())
def test_objective_is_beta_log_z_less_beta_kl_to_the_optimum(problem):
    """J(π) = β log Z − β KL(π ‖ π_r), exactly. Kills: any change of Z, β or either KL's direction."""
    (log_policy, *_), log_ref, reward, beta = problem
    kl = kl_divergence(log_policy, optimal_policy(log_ref, reward, beta))
    expected = beta * log_partition(log_ref, reward, beta) - beta * kl
    atol = rounding(beta, reward, log_policy, log_ref)
    assert_equal(objective(log_policy, log_ref, reward, beta), expected, atol)


# The three moves: what each makes of J, and that the best of several policies stays the best


@st.composite
def candidates(draw):
    """Four random policies, and among them the optimum; everything possible, so that nothing is infinite."""
    policies, log_ref, reward, beta = draw(problems(policies=4, positive=True))
    policies = torch.cat([policies, optimal_policy(log_ref, reward, beta)[None]])  # (5, Y)
    order = draw(st.permutations(range(5)))
    return policies[order], log_ref, reward, beta


def assert_best(winner, policies, log_ref, reward, beta):
    """The winner's J is the largest of all, up to rounding."""
    values = objective(policies, log_ref, reward, beta)
    assert values[winner] >= values.max() - rounding(beta, reward, policies, log_ref)


@given(candidates())
def test_first_move_negating_turns_the_largest_into_the_smallest(problem):
    """−J = E[β log(π/π_ref) − r], and the least of these belongs to the best policy. Kills: the sign of either term."""
    policies, log_ref, reward, beta = problem
    negated = (policies.exp() * (beta * (policies - log_ref) - reward)).sum(-1)
    assert_equal(-objective(policies, log_ref, reward, beta), negated, rounding(beta, reward, policies, log_ref))
    assert_best(negated.argmin(), *problem)


@given(candidates())
def test_second_move_scaling_by_one_over_beta_keeps_the_smallest(problem):
    """−J/β = E[log(π/(π_ref e^{r/β}))]. Kills: β multiplying where it divides."""
    policies, log_ref, reward, beta = problem
    scaled = (policies.exp() * (policies - (log_ref + reward / beta))).sum(-1)
    atol = rounding(beta, reward, policies, log_ref) / beta
    assert_equal(-objective(policies, log_ref, reward, beta) / beta, scaled, atol)
    assert_best(scaled.argmin(), *problem)


@given(candidates())
def test_third_move_subtracting_the_constant_leaves_the_kl_to_the_optimum(problem):
    """−J/β − (−log Z) = KL(π ‖ π_r), least at the best policy. Kills: Z forgotten, or with the wrong sign."""
    policies, log_ref, reward, beta = problem
    constant = -log_partition(log_ref, reward, beta)
    shifted = -objective(policies, log_ref, reward, beta) / beta - constant
    kl = kl_divergence(policies, optimal_policy(log_ref, reward, beta))
    assert_equal(shifted, kl, rounding(beta, reward, policies, log_ref) / beta)
    assert_best(kl.argmin(), *problem)
    assert_equal(kl.min(), tensor(0.0), 1e-12)


# The inversion


@given(problems(positive=True))
def test_eq_5_the_reward_comes_back_from_its_optimal_policy_up_to_beta_log_z(problem):
    """r = β log(π_r/π_ref) + β log Z. Kills: β dropped or inverted, the ratio upside down."""
    _, log_ref, reward, beta = problem
    inverted = implicit_reward(optimal_policy(log_ref, reward, beta), log_ref, beta)
    constant = beta * log_partition(log_ref, reward, beta)
    assert_equal(inverted + constant, reward, rounding(beta, reward, log_ref))


@given(problems())
@example((logs([0.5, 0.5, 0.0]), logs(0.5, 0.5, 0.0), tensor([1.0, 2.0, 3.0]), 0.1))
def test_every_policy_is_the_optimum_of_its_implicit_reward(problem):
    """Kills: the ratio upside down, NaN for a completion that is impossible under both."""
    (log_policy, *_), log_ref, _, beta = problem
    log_policy = torch.where(log_ref == -inf, -inf, log_policy)
    if (log_policy == -inf).all():
        log_policy = log_ref
    log_policy = log_policy.log_softmax(-1)
    reward = implicit_reward(log_policy, log_ref, beta)
    assert not reward.isnan().any()
    assert_equal(optimal_policy(log_ref, reward, beta), log_policy, 1e-9)


def test_implicit_reward_of_impossible_completions():
    """Infinitely good where only the reference excludes it, infinitely bad where only the policy does, else 0."""
    reward = implicit_reward(logs(1.0, 0.0, 0.0), logs(0.0, 1.0, 0.0), 2.0)
    assert reward.tolist() == [inf, -inf, 0.0]


def test_implicit_reward_moves_with_both_policies_even_where_they_are_equal():
    """Derivatives β and −β. Kills: a rule for log 0 − log 0 that also catches equals, a detach."""
    log_policy, log_ref = logs(0.5, 0.5).requires_grad_(), logs(0.5, 0.5).requires_grad_()
    slopes = torch.autograd.grad(implicit_reward(log_policy, log_ref, 2.0).sum(), (log_policy, log_ref))
    assert [slope.tolist() for slope in slopes] == [[2.0, 2.0], [-2.0, -2.0]]


@given(problems(), st.floats(-1e4, 1e4))
def test_a_constant_added_to_every_reward_changes_nothing_but_log_z(problem, f):
    """π_r is the same for r + f(x), and β log Z grows by f(x). Kills: a reward that is squared or clipped."""
    _, log_ref, reward, beta = problem
    atol = rounding(beta, reward, log_ref) + 1e-12 * abs(f)
    shifted = optimal_policy(log_ref, reward + f, beta)
    assert_equal(shifted, optimal_policy(log_ref, reward, beta), atol / beta)
    constant = beta * (log_partition(log_ref, reward + f, beta) - log_partition(log_ref, reward, beta))
    assert_equal(constant, tensor(f), atol)


# The direction of β


@given(problems(), betas)
def test_low_beta_follows_the_reward_and_high_beta_stays_near_the_reference(problem, other):
    """KL(π_r ‖ π_ref) and E_{π_r}[r] never rise with β. Kills: β told backwards."""
    _, log_ref, reward, beta = problem
    optima = [optimal_policy(log_ref, reward, b) for b in sorted((beta, other))]
    near, far = (kl_divergence(optimum, log_ref) for optimum in optima[::-1])
    low, high = (expectation(optimum, reward) for optimum in optima[::-1])
    atol = rounding(min(beta, other), reward, log_ref)
    assert low <= high + atol
    assert near <= far + atol / min(beta, other)


@given(problems())
def test_the_optimum_drifts_by_at_most_the_range_of_the_reward_over_beta(problem):
    """|log π_r/π_ref| ≤ (max r − min r)/β: as β → ∞ it is π_ref. Kills: rβ for r/β, a drift that stays."""
    _, log_ref, reward, beta = problem
    possible = log_ref > -inf
    drift = (optimal_policy(log_ref, reward, beta) - log_ref)[possible].abs().max()
    span = reward[possible].max() - reward[possible].min()
    assert drift <= span / beta + rounding(beta, reward, log_ref) / beta


def test_an_infinitely_dear_drift_leaves_exactly_the_reference():
    log_ref = logs(0.125, 0.5, 0.375)
    assert_equal(optimal_policy(log_ref, tensor([1e4, -1e4, 0.0]), 1e300), log_ref, 1e-15)


@given(st.lists(st.tuples(st.integers(-10_000, 10_000), st.floats(-50, 50)), min_size=1, max_size=6))
@example([(5, 0.0), (5, 1.0), (4, 50.0)])
def test_as_beta_vanishes_only_the_best_rewards_remain_in_the_references_proportions(rows):
    """β = 1e-3 makes a gap of 1 weigh 1000 nats. Kills: argmin for argmax, the reference forgotten in a tie."""
    reward, log_ref = tensor([float(r) for r, _ in rows]), distribution([z for _, z in rows])
    expected = torch.where(reward == reward.max(), log_ref, -inf).softmax(-1)
    assert_equal(optimal_policy(log_ref, reward, 1e-3).exp(), expected, 1e-7)  # r/β = 1e7 has an ulp of 2e-9


# The physicist's partition function


@given(st.lists(rewards, min_size=1, max_size=6), betas)
def test_z_is_the_sum_over_states_of_e_to_minus_energy_over_temperature(energies, temperature):
    """Z = Σ e^{−E/T} with E = −r, T = β, once the uniform reference's 1/Y is taken out. Kills: the sign, rβ."""
    exponents = [-energy / temperature for energy in energies]
    top = max(exponents)
    log_z = top + log(math.fsum(math.exp(exponent - top) for exponent in exponents))
    count = len(energies)
    uniform = torch.full((count,), -log(count), dtype=torch.float64)
    ours = log_partition(uniform, -tensor(energies), temperature) + log(count)
    assert_equal(ours, tensor(log_z), 1e-15 * (abs(top) + 10))


@given(problems())
def test_the_optimal_policy_is_the_derivative_of_beta_log_z_by_the_reward(problem):
    """∂(β log Z)/∂r(y) = π_r(y). Kills: a detach, and β at one place but not at the other."""
    _, log_ref, reward, beta = problem
    reward.requires_grad_()
    (derivative,) = torch.autograd.grad(beta * log_partition(log_ref, reward, beta), reward)
    assert_equal(derivative, optimal_policy(log_ref, reward.detach(), beta).exp(), 1e-8)


# Numbers, gradients, shapes


@given(problems(positive=True))
@example((logs([0.5, 0.5]), logs(0.5, 0.5), tensor([1e4, -1e4]), 1e-3))
@example((logs([0.5, 0.5]), logs(0.5, 0.5), tensor([1e4, -1e4]), 1e3))
def test_everything_is_finite_over_the_whole_range_of_reward_and_beta(problem):
    """Kills: log(sum(exp)) and log(softmax), which overflow or underflow."""
    (log_policy, *_), log_ref, reward, beta = problem
    log_optimum = optimal_policy(log_ref, reward, beta)
    values = [
        log_optimum,
        log_partition(log_ref, reward, beta),
        kl_divergence(log_policy, log_optimum),
        kl_divergence(log_optimum, log_policy),
        objective(log_policy, log_ref, reward, beta),
        implicit_reward(log_policy, log_ref, beta),
    ]
    assert all(value.isfinite().all() for value in values)


@given(problems())
@example((logs([0.0, 0.5, 0.5]), logs(0.0, 0.25, 0.75), tensor([1.0, 2.0, 3.0]), 0.1))
@example((logs([0.0, 1.0]), logs(0.5, 0.5), tensor([1.0, 2.0]), 0.1))
def test_impossible_completions_send_no_nan_into_the_gradient(problem):
    """Kills: p·log(p/q) without its rule for 0 · log 0."""
    (log_policy, *_), log_ref, reward, beta = problem
    log_policy = torch.where(log_ref == -inf, -inf, log_policy).requires_grad_()
    value = objective(log_policy, log_ref, reward, beta)
    reward_sum = implicit_reward(log_policy, log_ref, beta)[log_policy > -inf].sum()
    assert not torch.autograd.grad(value + reward_sum, log_policy)[0].isnan().any()


@given(problems(positive=True))
def test_the_objectives_gradient_vanishes_at_the_optimum_and_only_points_uphill_elsewhere(problem):
    """At the logits ∂J/∂z = π·(A − E[A]), A = r − β log(π/π_ref), zero where π = π_r. Kills: a detach in the KL."""
    (log_policy, *_), log_ref, reward, beta = problem
    atol = rounding(beta, reward, log_policy, log_ref)
    for start in (log_policy, optimal_policy(log_ref, reward, beta)):
        z = start.clone().requires_grad_()
        policy = z.log_softmax(-1)
        (slope,) = torch.autograd.grad(objective(policy, log_ref, reward, beta), z)
        p = policy.detach().exp()
        advantage = reward - beta * (policy.detach() - log_ref)
        assert_equal(slope, p * (advantage - (p * advantage).sum()), atol)
    assert_equal(slope, torch.zeros_like(slope), atol)


@settings(max_examples=25)
@given(st.integers(0, 2**32), betas)
def test_batch_axes_broadcast_and_rows_do_not_touch(seed, beta):
    """Kills: a sum over the wrong axis, a log Z shared between prompts."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64), torch.randn(4, generator=generator).double()
    log_policy, log_ref = (x.log_softmax(-1) for x in draws)  # (2, 3, 4), (4,)
    reward = torch.randn(3, 1, 4, generator=generator, dtype=torch.float64).permute(1, 0, 2)  # (1, 3, 4)
    whole = {
        "expectation": expectation(log_policy, reward),
        "kl": kl_divergence(log_policy, log_ref),
        "J": objective(log_policy, log_ref, reward, beta),
        "log Z": log_partition(log_ref, reward, beta),
        "optimum": optimal_policy(log_ref, reward, beta),
        "reward": implicit_reward(log_policy, log_ref, beta),
    }
    shapes = {name: tuple(value.shape) for name, value in whole.items()}
    assert shapes == {
        "expectation": (2, 3),
        "kl": (2, 3),
        "J": (2, 3),
        "log Z": (1, 3),
        "optimum": (1, 3, 4),
        "reward": (2, 3, 4),
    }
    for i in range(2):
        for j in range(3):
            p, r = log_policy[i, j], reward[0, j]
            assert_close(whole["expectation"][i, j], expectation(p, r))
            assert_close(whole["kl"][i, j], kl_divergence(p, log_ref))
            assert_close(whole["J"][i, j], objective(p, log_ref, r, beta))
            assert_close(whole["log Z"][0, j], log_partition(log_ref, r, beta))
            assert_close(whole["optimum"][0, j], optimal_policy(log_ref, r, beta))
            assert_close(whole["reward"][i, j], implicit_reward(p, log_ref, beta))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize(
    ("odd", "others"),
    [((1,), (4,)), ((4,), (3,)), ((2, 1), (2, 4)), ((), (1,)), ((), ()), ((0,), (0,)), ((2, 0), (2, 0))],
    ids=str,
)
def test_last_axes_that_are_not_one_set_of_completions_are_refused_with_their_shapes(name, odd, others):
    """Kills: a door that lets one axis broadcast, or that misses one of the arguments."""
    function, arguments, beta = FUNCTIONS[name]
    for place in range(len(arguments)):
        tensors = [torch.zeros(odd if i == place else others) for i in range(len(arguments))]
        with pytest.raises(ValueError, match=rf"^{name}: the last axis must be the same completions") as raised:
            function(*tensors, *beta)
        assert repr(arguments[place]) + ": " + repr(odd) in str(raised.value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_batch_axes_that_do_not_broadcast_are_refused_with_their_shapes(name):
    function, arguments, beta = FUNCTIONS[name]
    for place in range(len(arguments)):
        tensors = [torch.zeros(2, 4) if i == place else torch.zeros(3, 4) for i in range(len(arguments))]
        with pytest.raises(ValueError, match=rf"^{name}: the axes before the last must broadcast") as raised:
            function(*tensors, *beta)
        assert repr(arguments[place]) + ": (2, 4)" in str(raised.value)


@pytest.mark.parametrize("name", WITH_BETA)
@pytest.mark.parametrize("beta", [0, 0.0, -0.0, -1e-300, -1.0, inf, -inf, nan])
def test_beta_that_is_not_positive_and_finite_is_refused(name, beta):
    """Kills: ≤ for <, a door that misses a function. β = 0 divides by zero; β < 0 would reward drift."""
    function, arguments, _ = FUNCTIONS[name]
    with pytest.raises(ValueError, match=rf"^beta must be a positive number, got {beta}$"):
        function(*[torch.zeros(2)] * len(arguments), beta)


@pytest.mark.parametrize("beta", [5e-324, 1e-3, 1, 1e3, 1e308])
def test_every_other_beta_is_accepted(beta):
    check_beta(beta)


def test_tensors_keep_their_type_and_are_not_written_to():
    for dtype in (torch.float32, torch.float64):
        p, q, reward = (torch.tensor(x, dtype=dtype) for x in ([0.0, -inf], [-1.0, -inf], [1.0, 2.0]))
        before = [x.clone() for x in (p, q, reward)]
        values = [kl_divergence(p, q), objective(p, q, reward, 0.1), implicit_reward(p, q, 0.1)]
        values += [log_partition(q, reward, 0.1), optimal_policy(q, reward, 0.1)]
        assert {value.dtype for value in values} == {dtype}
        assert all(map(torch.equal, before, (p, q, reward)))
