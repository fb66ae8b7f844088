"""Proximal policy optimisation: several steps on the same rollouts, each held near the policy that drew them.

Each token is an action, and it is paid when it is drawn: every token gets −β log(π/π_ref), and the last one gets the
reward as well. The sum over an answer is rlhf.py's R(y). A value network V(x, y_<t) predicts the pay that is still to
come. A token's advantage is the pay that came minus this prediction. If all answers were drawn afresh for each step,
one would follow Σ_t A_t ∇log π(y_t). PPO reuses answers: it weighs each token by ρ = π_now/π_then, which gives the same
gradient at ρ = 1, and it ignores a token that would move ρ beyond 1 ± clip.

Schulman et al., arXiv:1707.06347 (PPO) and arXiv:1506.02438 (GAE); for language Ziegler et al., arXiv:1909.08593.
"""

import math

import torch

from dpo_min.data.batch import pack
from dpo_min.rl.rlhf import token_logps, update


def token_payments(rewards, logps, reference_logps, mask, beta):
    """The pay of each token, (N, T): −β (log π − log π_ref), and at an answer's last token its reward (N,) as well.

    logps and reference_logps are (N, T), 0 after the end; mask (N, T) is True at the tokens. Rows sum to R(y).
    """
    last = mask.sum(dim=-1, keepdim=True) - 1  # (N, 1)
    return (-beta * (logps - reference_logps)).scatter_add(1, last, rewards[:, None])


# δ_t = r_t + γ V_{t+1} − V_t;   A_t = Σ_k (γλ)^k δ_{t+k} = δ_t + γλ A_{t+1}
def gae(rewards, values, gamma=1.0, lam=0.95):
    """Generalised advantage estimation: (N, T) twice, both 0 after the end → advantages (N, T), 0 there too.

    λ = 0 gives δ_t, the error of one prediction. λ = γ = 1 gives the sum of all rewards still to come, minus V_t.
    """
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)  # (N, T) V_{t+1}
    errors = rewards + gamma * after - values
    advantages = torch.zeros_like(errors)
    running = torch.zeros_like(errors[:, 0])  # (N,)
    for t in reversed(range(errors.shape[1])):
        running = errors[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages


def clipped_loss(logps, old_logps, advantages, clip):
    """−Σ_t min(ρ A, clamp(ρ, 1 ± clip) A) of each answer, ρ = π/π_old: (N, T) three times → (N,).

    The minimum has two effects: where ρ has already moved too far in the right direction, a further step earns nothing;
    where ρ has moved in the wrong direction, it is still corrected. Advantages are 0 after the end.
    """
    ratio = (logps - old_logps).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).sum(dim=-1)


def value_loss(values, old_values, returns, mask, clip):
    """½ mean over tokens of the larger of (V − return)² and the same with V held within `clip` of its old value."""
    held = old_values + (values - old_values).clamp(-clip, clip)
    squares = torch.maximum((values - returns) ** 2, (held - returns) ** 2)  # (N, T)
    return 0.5 * squares[mask].mean()


def ppo_step(policy, value, optimizers, rollouts, generator, beta, epochs=4, minibatches=1, clip=0.2):
    """Several steps on `Rollouts` of the policy as it is now. By default clip, γ, λ, epochs are Ziegler et al.'s.

    Args:
        value: a `ScalarGPT`, the value network.
        optimizers: that of the policy, and that of the value network.
        generator: shuffles the rollouts, on the CPU.
        beta: price of a nat of KL.
        epochs, minibatches: passes over the rollouts, and parts of a pass.
        clip: how far ρ may move a token from 1; values too, in units of reward.
    """
    mask, answers = rollouts.mask, len(rollouts.pairs)
    with torch.no_grad():
        values = value.values(rollouts.batch)  # (N, T)
        rewards = token_payments(rollouts.rewards, rollouts.logps, rollouts.reference_logps, mask, beta)
        advantages = gae(rewards, values)
    returns = advantages + values
    for _ in range(epochs):
        order = torch.randperm(answers, generator=generator)
        for index in order.split(math.ceil(answers / minibatches)):
            batch = pack([rollouts.pairs[i] for i in index], chosen_only=True).to(mask.device)
            T, index = int(batch.lengths.max()), index.to(mask.device)
            old_logps, old_values, A, target, inside = (
                x[index, :T] for x in (rollouts.logps, values, advantages, returns, mask)
            )
            logps, now = token_logps(policy, batch), value.values(batch)
            update(optimizers[0], clipped_loss(logps, old_logps, A, clip).mean())
            update(optimizers[1], value_loss(now, old_values, target, inside, clip))
