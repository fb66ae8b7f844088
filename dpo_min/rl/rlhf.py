"""Reinforcement learning from human feedback, which DPO makes unnecessary: fit a reward, then climb it.

The goal is objective.py's, J(π) = E_{y∼π}[R(y)] with R(y) = r(y) − β log(π(y)/π_ref(y)). DPO knows a formula for the
maximum of J and reaches it by preferences alone. Before DPO, one first fitted r to the preferences; then one drew
answers from the policy and learnt from their rewards. A drawn list of tokens cannot be differentiated, but its
probability can:

    ∇ E_{y∼π}[f(y)] = Σ_y f(y) ∇π(y) = Σ_y π(y) f(y) ∇log π(y) = E_{y∼π}[f(y) ∇log π(y)]     because ∇π = π ∇log π

This is the log-derivative trick: the gradient of a mean is again a mean, and draws from π estimate it. With f = 1 the
left side is the gradient of 1, so E[∇log π(y)] = 0, and two things follow.

1. A baseline b that does not depend on y may be subtracted from f: E[(f(y) − b) ∇log π(y)] is the same for every b.
   Without a baseline every answer with a positive reward is pushed up. With b near the mean only the better answers are
   pushed up, and the estimate has less noise.
2. R itself changes with π. This adds −β E[∇log π(y)], which is 0. So R may be treated as a number:

    ∇J(π) = E_{y∼π}[(R(y) − b) ∇log π(y)]     (REINFORCE, Williams 1992)

Maximum likelihood follows E[∇log π(y)] over answers that someone else gave: this is the same step with every reward 1.
At the optimum R(y) = β log Z for every y (Eq. 5), so R − b vanishes there for each answer, and not only on average.

The three stages are those of Ziegler et al. (arXiv:1909.08593) and Ouyang et al. (arXiv:2203.02155). PPO is in ppo.py.
"""

from dataclasses import dataclass
from math import inf, log

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from dpo_min.data.batch import Batch, batch_token_logps, batches, pack
from dpo_min.data.tokenizing import TokenizedPair
from dpo_min.decode.generation import generate
from dpo_min.metrics import wins
from dpo_min.objective import check_completions, expectation
from dpo_min.preference import log_bradley_terry

# The policy gradient on one choice among A arms, π = softmax(logits): ∂ log π(a)/∂ logits = one-hot(a) − π.


def exact_gradient(logits, reward):
    """∂E_π[r]/∂ logits = π (r − E_π[r]), an arm at a time: (..., A) twice → (..., A)."""
    log_policy = logits.log_softmax(dim=-1)
    return log_policy.exp() * (reward - expectation(log_policy, reward)[..., None])


def sampled_gradient(logits, actions, rewards, baseline=0.0):
    """Mean of (r − b)(one-hot(a) − π): logits (A,), actions (N,) drawn from π, their rewards (N,) → (A,).

    Its expectation is `exact_gradient`, for every baseline that does not depend on the arm it is taken from.
    """
    score = F.one_hot(actions, len(logits)) - logits.softmax(dim=-1)  # (N, A)
    return ((rewards - baseline)[:, None] * score).mean(dim=0)


def likelihood_gradient(logits, actions):
    """The gradient of the mean of log π(a): `sampled_gradient` with every reward 1, whoever drew the actions. → (A,)"""
    return sampled_gradient(logits, actions, torch.ones_like(actions, dtype=logits.dtype))


# REINFORCE. With K answers to each prompt, each is compared with the mean of the other K − 1.


def penalised_reward(rewards, logps, reference_logps, beta):
    """R(y) = r(y) − β log(π(y)/π_ref(y)), without a gradient: three times (N,) → (N,), in units of reward."""
    return (rewards - beta * (logps - reference_logps)).detach()


def leave_one_out(rewards):
    """R minus the mean of the others' R: (X, K), K ≥ 2 answers to each of X prompts → (X, K) (RLOO, arXiv:2402.14740).

    The mean of the others does not depend on the answer, so it is a baseline. Adding any f(x) to the rewards changes
    nothing.

    Raises:
        ValueError: a prompt has only one answer.
    """
    K = rewards.shape[-1]
    if K < 2:
        raise ValueError(f"leave_one_out: a baseline needs at least 2 answers to each prompt, got {K}")
    return (rewards - rewards.mean(dim=-1, keepdim=True)) * K / (K - 1)


def reinforce_loss(logps, advantages):
    """−mean of advantage · log π(y), (N,) twice → a scalar: its gradient is minus the policy gradient's estimate."""
    return -(advantages.detach() * logps).mean()


# The reward model.


class ScalarGPT(nn.Module):
    """A GPT with one number for a head: the reward where an answer ends, or a value before each of its tokens.

    The head starts at zero, so that every reward is 0 and the first loss log 2, as DPO's is.
    """

    def __init__(self, body):
        super().__init__()
        weight = body.head_weight
        self.body = body
        self.head = nn.Linear(weight.shape[1], 1, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def read(self, batch, places):
        """The head's number at each of the B·T places, (S,) indices → (S,)."""
        hidden = self.body(batch.tokens, batch.positions, batch.mask)  # (B, T, C)
        return self.head(hidden.flatten(0, 1)[places]).squeeze(-1)

    def rewards(self, batch):
        """r(x, y), (B,), read at the last token of y: end-of-text, unless y was cut (Ouyang, arXiv:2203.02155)."""
        return self.read(batch, batch.predictors[batch.lengths.cumsum(0) - 1] + 1)

    def values(self, batch):
        """V(x, y_<t), (B, T): what is expected before token t is drawn; 0 after the answer's end."""
        return pad_sequence(self.read(batch, batch.predictors).split(batch.lengths.tolist()), batch_first=True)


def reward_loss(chosen, rejected):
    """−log σ(r_w − r_l) of each pair (DPO, Eq. 2), (B,) twice → (B,): the sigmoid loss at β = 1 of h = r_w − r_l."""
    return -log_bradley_terry(chosen, rejected)


def pair_rewards(model, pairs):
    """(chosen, rejected): the rewards of both sides, (B,) each."""
    swapped = [TokenizedPair(pair.prompt_ids, pair.rejected_ids, pair.chosen_ids) for pair in pairs]
    return model.rewards(pack([*pairs, *swapped], chosen_only=True).to(model.head.weight.device)).chunk(2)


def fit_reward(model, pairs, steps, batch_size, learning_rate, seed=0):
    """Fit a `ScalarGPT` to preferences, in place, at a rate that falls to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0)
    for step, chunk in zip(range(steps), batches(pairs, batch_size, seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        update(optimizer, reward_loss(*pair_rewards(model, chunk)).mean())


@torch.no_grad()
def reward_accuracy(model, pairs, batch_size=64):
    """The share of pairs that a reward model ranks as their label does; a tie counts one half."""
    parts = [pair_rewards(model, pairs[start : start + batch_size]) for start in range(0, len(pairs), batch_size)]
    return torch.cat([wins(*part) for part in parts]).mean().item()


def update(optimizer, loss, max_grad_norm=1.0):
    """One step downhill, the gradient shortened to `max_grad_norm` if it is longer."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], max_grad_norm)
    optimizer.step()


# Answers and their rewards.


@dataclass(frozen=True)
class Rollouts:
    """N answers that a policy drew, with their rewards and the log-probability of each token when it was drawn."""

    pairs: list  # N `TokenizedPair`s: the prompt, and the answer on both sides
    batch: Batch
    rewards: torch.Tensor  # (N,)
    logps: torch.Tensor  # (N, T) log π of each token, 0 after the end
    reference_logps: torch.Tensor  # (N, T) log π_ref of the same

    @property
    def mask(self):
        """True at the tokens of the answers, (N, T)."""
        lengths = self.batch.lengths.to(self.logps.device)
        return torch.arange(self.logps.shape[1], device=lengths.device) < lengths[:, None]


def token_logps(model, batch):
    """Log π of each token of a `chosen_only` batch's completions, (B, T), 0 after their ends; rows sum to log π(y)."""
    return pad_sequence(batch_token_logps(model, batch), batch_first=True)


@torch.no_grad()
def roll_out(policy, reference, reward, prompts, end_of_text, max_new_tokens, generator):
    """Draw an answer to each prompt from the policy itself, and have it judged: → `Rollouts`.

    Args:
        reward: a function of (prompts, completions), lists of token ids, to (N,) rewards.
        prompts: N lists of token ids, none empty; for `leave_one_out` each stands K times, one after another.
        generator: source of the draws, on the model's device.
    """
    drawn = generate(policy, prompts, end_of_text, max_new_tokens, generator)
    ids = [completion.ids for completion in drawn]
    pairs = [TokenizedPair(prompt, answer, answer) for prompt, answer in zip(prompts, ids, strict=True)]
    batch = pack(pairs, chosen_only=True).to(policy.head_weight.device)
    logps, reference_logps = token_logps(policy, batch), token_logps(reference, batch)
    return Rollouts(pairs, batch, reward(prompts, ids).to(logps), logps, reference_logps)


def reinforce_step(policy, optimizer, rollouts, samples, beta):
    """One step of REINFORCE with `samples` = K answers to each prompt."""
    logps = token_logps(policy, rollouts.batch).sum(dim=-1)  # (N,)
    penalised = penalised_reward(rollouts.rewards, logps, rollouts.reference_logps.sum(dim=-1), beta)
    update(optimizer, reinforce_loss(logps, leave_one_out(penalised.view(-1, samples)).flatten()))


# Best of n: draw n answers from the reference, keep the one with the highest reward. No training at all.


# P(best = y) = [P(r ≤ r(y))ⁿ − P(r < r(y))ⁿ] · p(y)/P(r = r(y)): all n draws are at most as good, not all are worse
def best_of_n(log_p, reward, n):
    """Log-probabilities (Y,) of the best of n draws from log_p (Y,); among equals the first drawn is kept.

    Raises:
        ValueError: n is less than 1; shapes as for `kl_divergence`.
    """
    check_completions("best_of_n", log_p=log_p, reward=reward)
    if n < 1:
        raise ValueError(f"best_of_n: n must be at least 1, got {n}")
    _, level = reward.unique(return_inverse=True)  # (Y,) 0 for the lowest reward
    mass = torch.zeros(int(level.max()) + 1, dtype=log_p.dtype, device=log_p.device).index_add(0, level, log_p.exp())
    upto = mass.cumsum(0) / mass.sum()  # P(r ≤ ·), just 1 at the highest
    below = torch.log1p(-(mass / mass.cumsum(0)).nan_to_num(1.0))  # log of P(r < ·)/P(r ≤ ·)
    kept = n * upto.log() + torch.log(-torch.expm1(n * below))  # the bracket's log, also where it is small
    return torch.where(log_p == -inf, -inf, log_p - mass.log()[level] + kept[level])


def best_of_n_kl_bound(n):
    """Log n − (n − 1)/n nats, which KL(best of n ‖ p) never exceeds (Beirami et al., arXiv:2401.01879).

    It is often quoted as the KL itself. The two are equal only where no single answer has any weight: however large n
    is, the KL never exceeds −log p(best answers), whereas the bound grows without end.
    """
    return log(n) - (n - 1) / n
