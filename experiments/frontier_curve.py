"""The curve that no policy crosses, the most reward at each KL, and how a run's measurements lie against it."""

import math
from itertools import pairwise

import torch

from dpo_min.objective import expectation, kl_divergence, log_partition, optimal_policy
from dpo_min.rl.rlhf import best_of_n

DRAWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # n of best of n
LOWEST_BETA, HIGHEST_BETA = 1e-3, 1e3


# max E_π[r] over KL(π‖π_ref) ≤ k, because J(π) ≤ β log Z for every β:   E_π[r] ≤ β log Z + β KL(π‖π_ref)
def optimum_reward(log_ref, reward, kl):
    """The most reward there is at a drift of `kl` nats: log_ref and reward (Y,), kl (P,) ≥ 0 → (P,).

    Every β gives a bound that no policy exceeds. The lowest bound is that of the β whose π_r has just this KL, and π_r
    reaches it. This β is found by halving an interval of log β, in which the KL of π_r falls.
    """
    low, high = (torch.full_like(kl, math.log(beta)) for beta in (LOWEST_BETA, HIGHEST_BETA))
    for _ in range(60):
        middle = (low + high) / 2
        log_optimum = (log_ref + reward * (-middle).exp()[:, None]).log_softmax(dim=-1)  # (P, Y)
        further = kl_divergence(log_optimum, log_ref) > kl
        low, high = torch.where(further, middle, low), torch.where(further, high, middle)
    betas = high.exp().tolist()
    bounds = [beta * (log_partition(log_ref, reward, beta) + k) for beta, k in zip(betas, kl, strict=True)]
    return torch.stack(bounds)


def gaps(world, points):
    """How far below the curve each point lies, a list in units of reward; points have "kl" and "reward"."""
    kl, reward = (torch.tensor([point[key] for point in points], dtype=torch.float64) for key in ("kl", "reward"))
    return (optimum_reward(world.log_ref, world.reward, kl.clamp(min=0)) - reward).tolist()


def reward_at(path, kl):
    """The reward where a run first reached `kl` nats, on the line between two measurements; None if it never did."""
    for before, after in pairwise(path):
        if after["kl"] >= kl:  # and before it was less, the start being 0
            share = (kl - before["kl"]) / (after["kl"] - before["kl"])
            return before["reward"] + share * (after["reward"] - before["reward"])
    return None


def place(log_policy, log_ref, reward):
    """Where a policy lies, {"kl", "reward"}: KL(π‖π_ref) in nats, and E[r]."""
    kl = kl_divergence(log_policy, log_ref).abs()  # rounding may leave −1e−16
    return {"kl": kl.item(), "reward": expectation(log_policy, reward).item()}


def optima(log_ref, reward):
    """Where π_r lies, for β from high to low."""
    return [place(optimal_policy(log_ref, reward, b), log_ref, reward) for b in torch.logspace(2, -1.7, 120).tolist()]


def best_of_draws(log_ref, reward):
    """Where best of n lies, for each n of `DRAWS`."""
    return [place(best_of_n(log_ref, reward, n), log_ref, reward) for n in DRAWS]
