"""What is reported of a pair: the implicit rewards of both sides, and who wins."""

from dpo_min.objective import implicit_reward


def preference_metrics(policy_logps, reference_logps, beta):
    """The implicit rewards of each pair, under the names that the field logs them by.

    Args: two pairs (chosen, rejected) of log-probabilities, each (B,); β > 0.
    Returns: name → (B,). A reward is β (log π − log π_ref), the very number inside the loss, pair by pair: here B
        stands where `implicit_reward` has completions. A tie counts one half in the accuracy.
    """
    chosen, rejected = (implicit_reward(p, r, beta) for p, r in zip(policy_logps, reference_logps, strict=True))
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": wins(chosen, rejected),
        "logps/chosen": policy_logps[0],
        "logps/rejected": policy_logps[1],
    }


def wins(ours, theirs):
    """1 where ours is higher, 0 where theirs is, one half for a tie; elementwise, in the dtype of `ours`."""
    return ((ours > theirs).to(ours.dtype) + (ours >= theirs).to(ours.dtype)) / 2
