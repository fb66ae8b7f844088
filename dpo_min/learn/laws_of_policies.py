"""What holds of the objective, of its optimum and of the exact figures, for every policy and every reward.

Each law takes the function that it is about, `yours`, and says so in `@law`.
"""

import math

import torch
from torch import tensor

from dpo_min.learn.shown import shown
from dpo_min.learn.trial import equal, holds, law

float64 = torch.float64


def numbers(*values):
    """A float64 tensor."""
    return tensor(values, dtype=float64)


def logs(*probabilities):
    """Their logarithms, float64."""
    return numbers(*probabilities).log()


HALVES, SKEWED, THREE, OTHER = logs(0.5, 0.5), logs(0.9, 0.1), logs(0.2, 0.3, 0.5), logs(0.5, 0.4, 0.1)
CERTAIN = logs(1.0, 0.0)
BOTH = torch.stack([HALVES, SKEWED])  # of two prompts
PAIRS = (HALVES, SKEWED), (SKEWED, HALVES), (THREE, OTHER), (BOTH, BOTH.flip(0))
# "cats", "the reward function" and anything else: the example of docs/derivation.md, section 4
REF, REWARD, POLICY = logs(0.8, 0.1, 0.1), numbers(0.0, 1.0, 0.0), logs(0.5, 0.3, 0.2)
BETAS = 1.0, 0.25, 4.0


@law("expectation")
def the_mean_of_a_constant_is_the_constant(yours):
    """E_p[f] of an f that is the same everywhere is that number, since the weights p sum to 1."""
    for log_p in (HALVES, SKEWED, THREE):
        yield equal(yours(log_p, torch.full_like(log_p, 3.0)), tensor(3.0, dtype=float64))


@law("expectation")
def each_value_counts_as_much_as_it_is_likely(yours):
    """Each value of f counts as much as its completion is likely, for each prompt (a row of log_p) on its own."""
    yield equal(yours(logs(0.75, 0.25), numbers(2.0, 6.0)), tensor(3.0, dtype=float64))
    yield equal(yours(BOTH, numbers(1.0, 3.0)), numbers(2.0, 1.2))


@law("expectation")
def an_impossible_completion_does_not_count(yours):
    """A completion of probability 0 does not count, whatever f is there: 0 · ±∞ = 0."""
    for f in (5.0, math.inf, -math.inf):
        yield equal(yours(CERTAIN, numbers(2.0, f)), tensor(2.0, dtype=float64))


@law("expectation")
def infinity_counts_where_it_is_possible(yours):
    """A completion that is possible, and at which f is ∞, makes the mean ∞."""
    yield equal(yours(HALVES, numbers(2.0, math.inf)), tensor(math.inf, dtype=float64))


@law("kl_divergence")
def it_is_never_negative(yours):
    """KL(p ‖ q) ≥ 0."""
    for p, q in PAIRS:
        kl = yours(p, q)
        yield holds(kl >= -1e-12, kl, "a number from 0 up")


@law("kl_divergence")
def it_is_zero_between_equals(yours):
    """KL(p ‖ p) = 0."""
    for p in (HALVES, THREE, CERTAIN):
        yield equal(yours(p, p), tensor(0.0, dtype=float64))


@law("kl_divergence")
def it_is_infinite_where_q_excludes_what_p_does(yours):
    """KL(p ‖ q) = ∞ where p does what q never does; what p never does itself costs nothing."""
    yield equal(yours(HALVES, CERTAIN), tensor(math.inf, dtype=float64))
    yield equal(yours(CERTAIN, HALVES), tensor(math.log(2), dtype=float64))


@law("objective")
def at_the_reference_it_is_the_mean_reward(yours):
    """J(π_ref) = E[r], because nothing has drifted."""
    for beta in BETAS:
        yield equal(yours(REF, REF, REWARD, beta), tensor(0.1, dtype=float64))


@law("objective")
def drift_costs(yours):
    """J(π) ≤ E_π[r]: drifting costs, and is never paid for."""
    for beta in BETAS:
        j = yours(POLICY, REF, REWARD, beta)
        yield holds(j <= 0.3, j, "at most the mean reward, 0.3")


@law("objective")
def the_price_is_beta_per_nat(yours):
    """Twice the β, twice the price: what is lost of the mean reward doubles."""
    for beta in BETAS:
        lost = [0.3 - yours(POLICY, REF, REWARD, b) for b in (beta, 2 * beta)]
        given = f"π = [0.5, 0.3, 0.2], π_ref = [0.8, 0.1, 0.1], reward = [0, 1, 0], beta = {beta}, then {2 * beta}"
        words = "the second twice the first"
        yield holds(torch.isclose(lost[1], 2 * lost[0]), f"{lost[0]:.4g} lost, then {lost[1]:.4g}", words, given)


@law("objective")
def each_policy_has_its_own_objective(yours):
    """Axes before the last are prompts: what is returned for two policies is what is returned for each alone."""
    policies, rest = torch.stack([REF, POLICY]), (REF, REWARD, 1.0)
    alone = torch.stack([yours(policy, *rest) for policy in policies])
    given = f"log_policy = log {shown(policies.exp())}, log_ref = log {shown(REF.exp())}, reward = [0, 1, 0], beta = 1"
    yield equal(yours(policies, *rest), alone, given)


@law("log_partition")
def without_reward_z_is_one(yours):
    """Where r = 0, Z sums the probabilities of π_ref: Z = 1, log Z = 0."""
    for beta in BETAS:
        yield equal(yours(REF, 0 * REWARD, beta), tensor(0.0, dtype=float64))


@law("log_partition")
def a_constant_reward_comes_out_over_beta(yours):
    """Where r = c everywhere, Z = e^{c/β}: log Z = c/β."""
    for beta in BETAS:
        yield equal(yours(REF, 0 * REWARD + 2, beta), tensor(2 / beta, dtype=float64))


@law("optimal_policy")
def its_probabilities_sum_to_one(yours):
    """Σ_y π_r(y) = 1: what is returned are logarithms of probabilities, and e^ of them sums to 1."""
    for beta in BETAS:
        out = yours(REF, REWARD, beta)
        total = out.exp().sum()
        yield holds((total - 1).abs() < 1e-9, f"{shown(out)}, of which e^ sums to {total:.4g}", "a sum of 1")


@law("optimal_policy")
def a_constant_reward_leaves_the_reference(yours):
    """Where r is the same everywhere there is nothing to gain by drifting: π_r = π_ref."""
    for beta in BETAS:
        yield equal(yours(REF, 0 * REWARD + 2, beta), REF)


@law("optimal_policy")
def the_odds_rise_by_e_to_r_over_beta(yours):
    """One more reward multiplies the odds of an answer by e^{1/β}, against what they are under π_ref."""
    for beta in BETAS:
        out = yours(REF, REWARD, beta)
        got = (out[1] - out[0]) - (REF[1] - REF[0])
        words = f"{1 / beta:.4g}, which is 1/β"
        yield holds(torch.isclose(got, tensor(1 / beta, dtype=float64)), f"log-odds that rose by {got:.4g}", words)


@law("log_partition", "optimal_policy")
def large_rewards_do_not_overflow(yours):
    """Results are finite for finite rewards of any size: e^{1000} is ∞ as a float, its logarithm is not."""
    for reward in (1000 * REWARD, -1000 * REWARD - 2000):
        out = yours(REF, reward, 1.0)
        yield holds(torch.isfinite(out), out, "finite numbers")


@law("log_partition", "optimal_policy")
def each_prompt_is_on_its_own(yours):
    """Axes before the last are prompts: what is returned for two of them is what is returned for each alone."""
    refs, rewards = torch.stack([REF, POLICY]), torch.stack([REWARD, 2 * REWARD])
    both, alone = yours(refs, rewards, 1.0), [yours(*pair, 1.0) for pair in zip(refs, rewards, strict=True)]
    given = f"log_ref = log {shown(refs.exp())}, reward = {shown(rewards)}, beta = 1"
    yield equal(both, torch.stack(alone), given)


@law("implicit_reward")
def a_policy_that_is_the_reference_has_no_reward(yours):
    """Where π = π_ref every reward is 0."""
    for beta in BETAS:
        yield equal(yours(REF, REF, beta), 0 * REF)


@law("implicit_reward")
def the_reward_of_its_optimum_comes_back(yours):
    """Of the policy π_r that is optimal for r, the differences of r come back."""
    for beta in BETAS:
        optimum = (REF + REWARD / beta).log_softmax(-1)
        out = yours(optimum, REF, beta)
        got = out[1] - out[0]
        words = "a reward of the second 1 above that of the first"
        yield holds(torch.isclose(got, numbers(1.0)), f"{shown(out)}: {got:.4g} above", words)


@law("implicit_reward")
def of_an_impossible_completion_nothing_is_known(yours):
    """A completion that both call impossible has reward 0, not NaN; one that only one of them calls so has ±∞."""
    yield equal(yours(CERTAIN, CERTAIN, 1.0), numbers(0.0, 0.0))
    yield equal(yours(CERTAIN, HALVES, 1.0), numbers(math.log(2), -math.inf))
    yield equal(yours(HALVES, CERTAIN, 1.0), numbers(-math.log(2), math.inf))


@law("count_completions")
def the_completions_are_counted_one_by_one(yours):
    """Other tokens and then end-of-text, t of them for every t < T; or T others and no end-of-text."""
    for V, T, listed in ((2, 1, "⏹ a"), (3, 1, "⏹ a b"), (2, 2, "⏹ a⏹ aa"), (3, 2, "⏹ a⏹ b⏹ aa ab ba bb")):
        number = len(listed.split())
        yield equal(yours(V, T), number, words=f"{number}: {listed}, with ⏹ for end-of-text")
    yield equal(yours(1, 4), 1)
    yield equal(yours(5, 4), 341)


@law("entropy")
def who_is_certain_has_no_entropy(yours):
    """H = 0 where one completion has probability 1."""
    yield equal(yours(CERTAIN), tensor(0.0, dtype=float64))


@law("entropy")
def who_knows_nothing_has_log_y(yours):
    """H = log Y where all Y completions are equally likely."""
    for Y in (2, 4):
        yield equal(yours(logs(*[1 / Y] * Y)), tensor(math.log(Y), dtype=float64))


@law("entropy")
def each_policy_has_its_own_entropy(yours):
    """Axes before the last are prompts: what is returned for two policies is what is returned for each alone."""
    yield equal(yours(BOTH), torch.stack([yours(HALVES), yours(SKEWED)]), f"log_p = log {shown(BOTH.exp())}")
