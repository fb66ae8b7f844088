"""The other road: every gradient against objective.py's, every estimate against a sum over all answers."""

import copy
import math
from itertools import product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from dpo_min.data.batch import pack
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.exact import enumerate_completions, exact_log_policy
from dpo_min.losses import LOSSES
from dpo_min.objective import expectation, kl_divergence, log_partition, objective, optimal_policy
from dpo_min.rl.ppo import clipped_loss, gae, ppo_step, token_payments, value_loss
from dpo_min.rl.rlhf import (
    Rollouts,
    ScalarGPT,
    best_of_n,
    best_of_n_kl_bound,
    exact_gradient,
    fit_reward,
    leave_one_out,
    likelihood_gradient,
    pair_rewards,
    penalised_reward,
    reinforce_loss,
    reinforce_step,
    reward_accuracy,
    reward_loss,
    roll_out,
    sampled_gradient,
    token_logps,
    update,
)

PROMPT, END, LONGEST = [0, 2], 4, 2
ANSWERS = enumerate_completions(5, END, LONGEST)  # 21
SEEDS = st.integers(0, 10**6)
NUMBERS = st.floats(-20, 20)
BETAS = st.floats(0.01, 20)
AVERAGE = settings(max_examples=25)


def draws(seed, *shape):
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved(model, seed, by=0.2):
    """A copy of a model with other weights, and gradients."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model.requires_grad_(True)


def all_rollouts(policy, reference, reward):
    """Every answer once, as `Rollouts`: sums weighted by π(y) are then expectations."""
    pairs = [TokenizedPair(PROMPT, list(answer), list(answer)) for answer in ANSWERS]
    batch = pack(pairs, chosen_only=True)
    with torch.no_grad():
        return Rollouts(pairs, batch, reward, token_logps(policy, batch), token_logps(reference, batch))


def gradient_of(loss, model):
    """One vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def gradient_of_objective(policy, reference, reward, beta):
    log_policy = exact_log_policy(policy, PROMPT, END, LONGEST)
    log_ref = exact_log_policy(reference, PROMPT, END, LONGEST)
    return gradient_of(objective(log_policy, log_ref, reward, beta), policy)


# One choice among A arms.


@given(SEEDS, st.integers(2, 7), NUMBERS)
@example(0, 2, 0.0)
def test_the_sampled_gradient_is_right_on_average_whatever_the_baseline(seed, arms, baseline):
    """Kills: a score without its −π, a baseline on the wrong side, r·π for π(r − E[r])."""
    logits, reward = draws(seed, arms).requires_grad_(True), draws(seed + 1, arms)
    log_policy = logits.log_softmax(dim=-1)
    exact = exact_gradient(logits.detach(), reward)
    assert_close(exact, torch.autograd.grad(expectation(log_policy, reward), logits)[0], rtol=1e-9, atol=1e-12)
    average = sum(
        p * sampled_gradient(logits.detach(), torch.tensor([arm]), reward[arm : arm + 1], baseline)
        for arm, p in enumerate(log_policy.exp().detach())
    )
    assert_close(average, exact, rtol=1e-9, atol=1e-11)


@given(SEEDS, st.integers(2, 7))
def test_likelihood_follows_whoever_drew_the_arms_and_stands_still_on_its_own(seed, arms):
    """E_π[∇log π] = 0, which is why baselines are free. Kills: a reward in the likelihood, a forgotten mean."""
    logits, generator = draws(seed, arms).requires_grad_(True), torch.Generator().manual_seed(seed)
    actions = torch.randint(arms, (9,), generator=generator)
    expected = torch.autograd.grad(logits.log_softmax(-1)[actions].mean(), logits)[0]
    assert_close(likelihood_gradient(logits.detach(), actions), expected, rtol=1e-9, atol=1e-12)
    policy = logits.detach().softmax(-1)
    own = sum(p * likelihood_gradient(logits.detach(), torch.tensor([arm])) for arm, p in enumerate(policy))
    assert_close(own, torch.zeros(arms, dtype=torch.float64), rtol=0, atol=1e-12)


# REINFORCE.


@AVERAGE
@given(SEEDS, BETAS, NUMBERS)
@example(0, 0.1, 0.0)
def test_the_policy_gradient_averages_to_the_gradient_of_the_objective(tiny_gpt, seed, beta, baseline):
    """Over all 21 answers of a real GPT. Kills: a KL that is differentiated too, or left out, or of the wrong sign."""
    policy, reward = moved(tiny_gpt, seed), draws(seed, len(ANSWERS))
    rollouts = all_rollouts(policy, tiny_gpt, reward)
    logps = token_logps(policy, rollouts.batch).sum(dim=-1)
    penalised = penalised_reward(reward, logps, rollouts.reference_logps.sum(dim=-1), beta)
    assert not penalised.requires_grad
    weights = len(ANSWERS) * logps.exp()  # the mean over the 21 becomes the expectation
    found = -gradient_of(reinforce_loss(logps, weights * (penalised - baseline)), policy)
    expected = gradient_of_objective(policy, tiny_gpt, reward, beta)
    assert_close(found, expected, rtol=1e-8, atol=1e-9 * (1 + beta + abs(baseline)))


@given(SEEDS, st.integers(2, 4), st.integers(2, 3))
def test_leave_one_out_averages_to_the_exact_gradient(seed, arms, samples):
    """Over every way to draw K arms. Kills: the plain mean as baseline, which has seen the arm: (K − 1)/K of it."""
    logits, reward = draws(seed, arms), draws(seed + 1, arms)
    policy, average = logits.softmax(-1), torch.zeros(arms, dtype=torch.float64)
    for drawn in product(range(arms), repeat=samples):
        actions = torch.tensor(drawn)
        advantages = leave_one_out(reward[actions][None])[0]
        average += policy[actions].prod() * sampled_gradient(logits, actions, advantages)
    assert_close(average, exact_gradient(logits, reward), rtol=1e-9, atol=1e-12)


@given(SEEDS, st.integers(1, 4), st.integers(2, 5), NUMBERS)
def test_leave_one_out_is_what_it_says_and_blind_to_what_all_answers_to_a_prompt_share(seed, prompts, samples, shift):
    """Kills: a mean over prompts, an f(x) that gets through."""
    rewards = draws(seed, prompts, samples)
    expected = torch.tensor(
        [[row[k] - sum(row[:k] + row[k + 1 :]) / (samples - 1) for k in range(samples)] for row in rewards.tolist()]
    )
    assert_close(leave_one_out(rewards), expected.double(), rtol=0, atol=1e-6)
    f = shift * draws(seed + 1, prompts, 1)
    assert_close(leave_one_out(rewards + f), leave_one_out(rewards), rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match="at least 2 answers"):
        leave_one_out(rewards[:, :1])


@given(SEEDS, st.integers(2, 9), st.floats(0.05, 20))
def test_at_the_optimum_every_answer_is_worth_the_same_so_no_sample_pushes(seed, count, beta):
    """R(y) = β log Z, Eq. 5, so that π_r beats any other policy. Kills: β at the wrong place, π_ref/π for π/π_ref."""
    log_ref, reward = draws(seed, count).log_softmax(-1), draws(seed + 1, count)
    optimum = optimal_policy(log_ref, reward, beta)
    penalised = penalised_reward(reward, optimum, log_ref, beta)
    assert_close(penalised, (beta * log_partition(log_ref, reward, beta)).expand(count), rtol=1e-9, atol=1e-9)
    assert leave_one_out(penalised[None]).abs().max() < 1e-9
    other = draws(seed + 2, count).log_softmax(-1)
    ours, theirs = (expectation(p, penalised_reward(reward, p, log_ref, beta)) for p in (optimum, other))
    assert_close(theirs, objective(other, log_ref, reward, beta), rtol=1e-9, atol=1e-12)
    assert theirs <= ours + 1e-12


# The reward model.


@given(st.floats(-700, 700), st.floats(-700, 700), NUMBERS)
@example(0.0, 0.0, 0.0)
def test_the_reward_models_gradient_is_the_closed_form_and_a_shift_changes_nothing(w, other, shift):
    """∂/∂r_w = −σ(r_l − r_w) = −∂/∂r_l. Kills: swapped sides, a factor β, an f(x) that the loss can see."""
    chosen, rejected = (torch.tensor([r], dtype=torch.float64, requires_grad=True) for r in (w, other))
    loss = reward_loss(chosen, rejected)
    d_chosen, d_rejected = torch.autograd.grad(loss.sum(), (chosen, rejected))
    h = (chosen - rejected).detach()
    assert_close(d_chosen, LOSSES["sigmoid"].slope(h, 1.0), rtol=1e-12, atol=1e-300)
    assert_close(d_rejected, -d_chosen, rtol=0, atol=0)
    assert_close(reward_loss(chosen + shift, rejected + shift), loss, rtol=1e-9, atol=1e-9)


def test_a_reward_is_read_at_the_last_token_and_nothing_beside_the_row_changes_it(tiny_gpt):
    """Kills: the head at the token before, at the longest row's end, at a padded place."""
    model = ScalarGPT(moved(tiny_gpt, 1))
    assert reward_loss(*pair_rewards(model, [TokenizedPair([0], [1, END], [2])])).item() == pytest.approx(math.log(2))
    with torch.no_grad():
        model.head.weight.copy_(draws(2, 1, tiny_gpt.config.n_embd))
        pairs = [TokenizedPair([0, 1][: 1 + k % 2], list(answer), [3]) for k, answer in enumerate(ANSWERS)]
        batch = pack(pairs, chosen_only=True)
        rewards, values = model.rewards(batch), model.values(batch)
        for pair, reward, row in zip(pairs, rewards, values, strict=True):
            tokens = torch.tensor([pair.prompt_ids + pair.chosen_ids])
            read = model.head(model.body(tokens))[0, :, 0]  # (T,) at every token
            assert_close(reward, read[-1], rtol=1e-9, atol=1e-12)
            start, count = len(pair.prompt_ids), len(pair.chosen_ids)
            assert_close(row[:count], read[start - 1 : -1], rtol=1e-9, atol=1e-12)  # before each token is known
            assert (row[count:] == 0).all()
        chosen, rejected = pair_rewards(model, pairs)
        assert_close(chosen, rewards)
        assert_close(rejected[0], model.head(model.body(torch.tensor([[0, 3]])))[0, -1, 0])


def test_a_reward_model_learns_which_answers_are_preferred(tiny_gpt):
    """Answers with a 1 in them, never told so. Kills: a loss that climbs, labels the wrong way round."""
    with_it, without = ([list(y) for y in ANSWERS if (1 in y) == has] for has in (True, False))
    pairs = [TokenizedPair(PROMPT, w, other) for w in with_it for other in without]
    generator = torch.Generator().manual_seed(0)
    pairs = [pairs[i] for i in torch.randperm(len(pairs), generator=generator)]
    model = ScalarGPT(copy.deepcopy(tiny_gpt).requires_grad_(True))
    assert reward_accuracy(model, pairs) == 0.5
    fit_reward(model, pairs[:40], 40, 16, 1e-2)
    with torch.no_grad():
        assert reward_loss(*pair_rewards(model, pairs[:40])).mean() < 0.3
    assert reward_accuracy(model, pairs[40:]) > 0.9
    swapped = [TokenizedPair(p.prompt_ids, p.rejected_ids, p.chosen_ids) for p in pairs[40:]]
    assert reward_accuracy(model, swapped) == pytest.approx(1 - reward_accuracy(model, pairs[40:]))


def test_the_first_step_has_the_full_rate_and_the_last_almost_none(tiny_gpt):
    """AdamW's first step is the rate itself. Kills: a rate that rises, one that stays."""
    model = ScalarGPT(copy.deepcopy(tiny_gpt).requires_grad_(True))
    pairs = [TokenizedPair(PROMPT, [1, END], [2, END])]
    fit_reward(model, pairs, 1, 1, 0.125)
    assert_close(model.head.weight.abs(), torch.full_like(model.head.weight, 0.125), rtol=1e-4, atol=0)
    fit_reward(model, pairs, 8, 1, 0.125)
    assert model.head.weight.abs().max() < 0.125 * (1 + (8 + 1) / 2)


@given(SEEDS, st.floats(0.01, 10))
@example(0, 1e-6)
def test_an_update_goes_downhill_by_the_gradient_shortened_to_its_limit(seed, limit):
    """Kills: no limit, a gradient kept from the step before."""
    x, slope = draws(seed, 5).requires_grad_(True), draws(seed + 1, 5)
    start, optimizer = x.detach().clone(), torch.optim.SGD([x], lr=0.5)
    step = slope * min(1.0, limit / slope.norm().item())
    for k in (1, 2):
        update(optimizer, (slope * x).sum(), limit)
        assert_close(x.detach(), start - k * 0.5 * step, rtol=0, atol=1e-4 * step.norm().item())


# Rollouts.


@AVERAGE
@given(SEEDS)
@example(0)
def test_rollouts_are_the_policys_own_answers_with_their_exact_log_probabilities(tiny_gpt, seed):
    """Kills: the reference's log-probs for the policy's, rewards in another order."""
    policy, generator = moved(tiny_gpt, seed), torch.Generator().manual_seed(seed)
    prompts = [[0, 2], [1]] * 4

    def reward(prompts, completions):
        return torch.tensor([10.0 * prompt[0] + len(y) for prompt, y in zip(prompts, completions, strict=True)])

    rollouts = roll_out(policy, tiny_gpt, reward, prompts, END, 3, generator)
    for k, (prompt, pair) in enumerate(zip(prompts, rollouts.pairs, strict=True)):
        answer = pair.chosen_ids
        assert pair.prompt_ids == prompt and 1 <= len(answer) <= 3
        assert len(answer) == 3 or answer[-1] == END
        assert rollouts.rewards[k] == 10 * prompt[0] + len(answer)
        assert rollouts.mask[k].sum() == len(answer) == rollouts.batch.lengths[k]
        for model, logps in ((policy, rollouts.logps), (tiny_gpt, rollouts.reference_logps)):
            exact = model.logits(model(torch.tensor([prompt + answer]))).log_softmax(-1)[0]
            steps = [exact[len(prompt) - 1 + t, token] for t, token in enumerate(answer)]
            assert_close(logps[k, : len(answer)], torch.stack(steps), rtol=1e-9, atol=1e-9)
            assert (logps[k, len(answer) :] == 0).all()


# PPO.

ROWS = st.lists(st.integers(1, 5), min_size=1, max_size=4)  # lengths


def padded(seed, lengths):
    """Numbers (N, T) that are 0 after each row's end, and the mask."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return draws(seed, *mask.shape) * mask, mask


@given(SEEDS, ROWS, BETAS)
def test_the_tokens_pay_sums_to_the_penalised_reward(seed, lengths, beta):
    """Kills: the reward at the padded end, paid twice, or a KL of the wrong sign."""
    (logps, mask), (reference_logps, _), rewards = (
        padded(seed, lengths),
        padded(seed + 1, lengths),
        draws(2, len(lengths)),
    )
    paid = token_payments(rewards, logps, reference_logps, mask, beta)
    expected = penalised_reward(rewards, logps.sum(-1), reference_logps.sum(-1), beta)
    assert_close(paid.sum(-1), expected, rtol=1e-9, atol=1e-9)
    assert (paid[~mask] == 0).all()
    kl = -beta * (logps - reference_logps)
    for row, length, reward, penalty in zip(paid, lengths, rewards, kl, strict=True):
        assert_close(row[: length - 1], penalty[: length - 1], rtol=0, atol=0)
        assert_close(row[length - 1], penalty[length - 1] + reward, rtol=1e-12, atol=1e-12)


@given(SEEDS, ROWS, st.floats(0, 1), st.floats(0, 1))
@example(0, [3, 1], 1.0, 1.0)
@example(0, [3, 1], 1.0, 0.0)
@example(0, [5, 2], 0.9, 0.5)
def test_gae_is_the_weighted_sum_of_errors_with_its_two_ends(seed, lengths, gamma, lam):
    """λ = 1: return − value; λ = 0: TD error. Kills: V_t for V_{t+1}, γ without λ, a value from beyond the end."""
    (rewards, mask), (values, _) = padded(seed, lengths), padded(seed + 1, lengths)
    found = gae(rewards, values, gamma, lam)
    for row, r, V, T in zip(found.tolist(), rewards.tolist(), values.tolist(), lengths, strict=True):
        V = [*V[:T], 0.0]
        errors = [r[t] + gamma * V[t + 1] - V[t] for t in range(T)]
        for t in range(T):
            assert row[t] == pytest.approx(sum((gamma * lam) ** k * errors[t + k] for k in range(T - t)), abs=1e-9)
            to_come = sum(gamma**k * r[t + k] for k in range(T - t))
            if lam == 1:
                assert row[t] == pytest.approx(to_come - V[t], abs=1e-9)
            if lam == 0:
                assert row[t] == pytest.approx(errors[t], abs=1e-12)
    assert (found[~mask] == 0).all()


@AVERAGE
@given(SEEDS, BETAS)
def test_ppo_at_ratio_one_is_the_policy_gradient_for_any_values(tiny_gpt, seed, beta):
    """λ = 1, all 21 answers, weighted by π. Kills: a value that has seen its token, a mean over tokens, a sign."""
    policy, reward = moved(tiny_gpt, seed), draws(seed, len(ANSWERS))
    rollouts = all_rollouts(policy, tiny_gpt, reward)
    critic = ScalarGPT(moved(tiny_gpt, seed + 1))
    with torch.no_grad():
        critic.head.weight.copy_(draws(seed, 1, tiny_gpt.config.n_embd))
        values = critic.values(rollouts.batch)
    paid = token_payments(reward, rollouts.logps, rollouts.reference_logps, rollouts.mask, beta)
    advantages = gae(paid, values, 1.0, 1.0)
    logps = token_logps(policy, rollouts.batch)
    losses = clipped_loss(logps, rollouts.logps, advantages, 0.2)  # (21,)
    assert_close(losses, -advantages.sum(dim=-1), rtol=1e-9, atol=1e-9)
    found = -gradient_of((rollouts.logps.sum(-1).exp() * losses).sum(), policy)
    expected = gradient_of_objective(policy, tiny_gpt, reward, beta)
    assert_close(found, expected, rtol=1e-8, atol=1e-9 * (1 + beta))


@given(st.floats(-3, 3), st.floats(-5, 5), st.floats(0.05, 0.9))
@example(0.5, 1.0, 0.2)
@example(0.5, -1.0, 0.2)
@example(-0.5, 1.0, 0.2)
@example(-0.5, -1.0, 0.2)
def test_the_clip_ends_the_pull_of_a_step_taken_far_enough_and_no_other(log_ratio, advantage, clip):
    """Kills: max for min, a clip without the unclipped side, 1 + clip on both sides."""
    logps = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    loss = clipped_loss(logps, torch.zeros_like(logps), torch.tensor([[advantage]]).double(), clip)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    ratio = math.exp(log_ratio)
    held = min(max(ratio, 1 - clip), 1 + clip)
    assert loss.item() == pytest.approx(-min(ratio * advantage, held * advantage))
    far_enough = (advantage > 0 and ratio > 1 + clip) or (advantage < 0 and ratio < 1 - clip)
    assert gradient.item() == pytest.approx(0 if far_enough else -ratio * advantage)


@given(SEEDS, ROWS, st.floats(0.01, 2))
def test_the_value_loss_is_half_a_square_and_its_clip_only_ever_raises_it(seed, lengths, clip):
    """Kills: padding in the mean, min for max, a clip about the new value."""
    (old, mask), (target, _), (by, _) = (padded(seed + k, lengths) for k in range(3))
    plain = 0.5 * ((old + by - target) ** 2).sum() / sum(lengths)
    assert_close(value_loss(old + by, old, target, mask, 1e9), plain, rtol=1e-9, atol=1e-12)
    near = by.clamp(-clip, clip)
    assert_close(value_loss(old + near, old, target, mask, clip), value_loss(old + near, old, target, mask, 1e9))
    assert value_loss(old + by, old, target, mask, clip) >= plain - 1e-12
    stay = (old + near - target) ** 2
    expected = 0.5 * torch.maximum((old + by - target) ** 2, stay).sum() / sum(lengths)
    assert_close(value_loss(old + by, old, target, mask, clip), expected, rtol=1e-9, atol=1e-12)


# The whole of it: both end in π_r.


def learn(tiny_gpt, learner, steps, beta=0.5, answers=32):
    """KL(π‖π_r) before and after."""
    worth = {y: torch.tensor(0.5 * y.count(1) - 0.5 * y.count(3), dtype=torch.float64) for y in ANSWERS}
    reward = torch.stack(list(worth.values()))
    policy, generator = copy.deepcopy(tiny_gpt).requires_grad_(True), torch.Generator().manual_seed(0)
    log_ref = exact_log_policy(tiny_gpt, PROMPT, END, LONGEST)
    optimum, step = optimal_policy(log_ref, reward, beta), learner(policy, beta, generator)

    def judge(prompts, completions):
        return torch.stack([worth[tuple(y)] for y in completions])

    for _ in range(steps):
        step(roll_out(policy, tiny_gpt, judge, [PROMPT] * answers, END, LONGEST, generator))
    with torch.no_grad():
        log_policy = exact_log_policy(policy, PROMPT, END, LONGEST)
    return kl_divergence(log_ref, optimum).item(), kl_divergence(log_policy, optimum).item()


def test_reinforce_goes_to_the_optimum(tiny_gpt):
    """Kills: any sign, and a penalty without its β, on the way from the rollouts to the weights."""

    def learner(policy, beta, generator):
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0)
        return lambda rollouts: reinforce_step(policy, optimizer, rollouts, 32, beta)

    before, after = learn(tiny_gpt, learner, 40)
    assert before > 0.2 and after < 0.02


def test_ppo_goes_to_the_optimum(tiny_gpt):
    """Kills: any sign, advantages of other rows after a shuffle, a value network that is not trained."""

    value = ScalarGPT(copy.deepcopy(tiny_gpt).requires_grad_(True))

    def learner(policy, beta, generator):
        optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0) for m in (policy, value)]
        return lambda rollouts: ppo_step(policy, value, optimizers, rollouts, generator, beta, 2, 2)

    before, after = learn(tiny_gpt, learner, 20)
    assert before > 0.2 and after < 0.02
    assert value.head.weight.abs().max() > 0.01


# Best of n.


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=5), SEEDS, st.integers(1, 4))
@example([0, 0, 0], 0, 3)
@example([1], 0, 2)
def test_best_of_n_is_what_drawing_n_and_keeping_the_first_best_gives(rewards, seed, n):
    """Over every n-tuple, ties included. Kills: F⁻ for F, ties shared equally instead of in proportion."""
    log_p, reward = draws(seed, len(rewards)).log_softmax(-1), torch.tensor(rewards).double()
    expected = torch.zeros(len(rewards), dtype=torch.float64)
    for drawn in product(range(len(rewards)), repeat=n):
        expected[max(drawn, key=lambda y: rewards[y])] += log_p[list(drawn)].sum().exp()
    assert_close(best_of_n(log_p, reward, n).exp(), expected, rtol=1e-9, atol=1e-12)


@given(SEEDS, st.integers(1, 40), st.integers(1, 10**4))
@example(0, 1, 7)
def test_best_of_n_drifts_no_further_than_its_bound_and_earns_more_with_n(seed, count, n):
    """Kills: log n alone, a KL the wrong way round."""
    log_p, reward = 3 * draws(seed, count), draws(seed + 1, count)
    log_p = log_p.log_softmax(-1)
    best, next_best = best_of_n(log_p, reward, n), best_of_n(log_p, reward, n + 1)
    assert_close(best.exp().sum(), torch.tensor(1.0, dtype=torch.float64), rtol=1e-9, atol=0)
    assert -1e-9 <= kl_divergence(best, log_p) <= best_of_n_kl_bound(n) + 1e-9
    assert expectation(next_best, reward) >= expectation(best, reward) - 1e-9


def test_the_bound_is_exact_where_no_answer_has_weight_and_n_must_be_a_number_of_draws():
    """Kills: (n − 1)/n with the wrong sign, a bound that only holds because it is loose."""
    log_p = torch.full((100_000,), -math.log(100_000), dtype=torch.float64)
    reward = torch.arange(100_000, dtype=torch.float64)
    for n in (1, 2, 10, 100):
        assert kl_divergence(best_of_n(log_p, reward, n), log_p).item() == pytest.approx(
            best_of_n_kl_bound(n), abs=1e-3
        )
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        best_of_n(log_p, reward, 0)
    impossible = best_of_n(torch.tensor([-math.inf, 0.0]), torch.tensor([9.0, 1.0]), 3)
    assert impossible.tolist() == [-math.inf, 0.0]
