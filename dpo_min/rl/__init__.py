"""What DPO replaces: a reward model fitted to preferences, and a policy that climbs it by REINFORCE or PPO."""

READING_ORDER = ("rlhf", "ppo")
