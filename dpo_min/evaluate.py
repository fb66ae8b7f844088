"""Is it better? Metrics of a preference, and figures with their intervals."""

import math

import torch

from dpo_min.data import TokenizedPair
from dpo_min.packing import batch_logps, pack

Z_95 = 1.959964  # the standard normal's 97.5 % point


def preference_metrics(policy_logps, reference_logps, beta):
    """The implicit rewards of each pair, under the names that the field logs them by.

    Args: two pairs (chosen, rejected) of log-probabilities, each (B,); β > 0.
    Returns: name → (B,). A reward is β (log π − log π_ref), the very number inside the loss.
        A tie counts one half in the accuracy.
    """
    chosen, rejected = (beta * (p - r) for p, r in zip(policy_logps, reference_logps, strict=True))
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": wins(chosen, rejected),
        "logps/chosen": policy_logps[0],
        "logps/rejected": policy_logps[1],
    }


def wins(ours, theirs):
    """1 where ours is higher, 0 where theirs is, one half for a tie; elementwise."""
    return ((ours > theirs).to(ours.dtype) + (ours >= theirs).to(ours.dtype)) / 2


def wilson_interval(successes, n):
    """The 95 % interval of a rate, `successes` of `n` (Wilson, 1927): inside [0, 1], sound near 0 and 1."""
    p, z2 = successes / n, Z_95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # exact at the ends, where rounding is not


def mean_interval(values):
    """(mean, low, high): the mean of a (n,) tensor and its 95 % interval by the normal approximation."""
    values = values.double()
    half = Z_95 * values.std().item() / math.sqrt(len(values))
    return values.mean().item(), values.mean().item() - half, values.mean().item() + half


@torch.no_grad()
def log_ratios(policy, reference, prompts, completions, micro_batch_size=64):
    """Log π(y|x) − log π_ref(y|x) of each completion, (n,) in nats.

    Over completions drawn from the policy its mean estimates KL(π‖π_ref) without bias, and over n draws
    its standard error says how well.
    """
    pairs = [TokenizedPair(x, y, y) for x, y in zip(prompts, completions, strict=True)]
    device, ratios = policy.wte.weight.device, []
    for start in range(0, len(pairs), micro_batch_size):
        batch = pack(pairs[start : start + micro_batch_size], chosen_only=True).to(device)
        ratios.append(batch_logps(policy, batch) - batch_logps(reference, batch))
    return torch.cat(ratios)
