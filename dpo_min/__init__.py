"""Direct Preference Optimization, from the derivation to a trained model, in pure PyTorch.

Read the files in the order below: each one imports only files above it.
"""

READING_ORDER = (
    "objective",
    "preference",
    "losses",
    "gradient",
    "logprob",
    "gpt",
    "exact",
    "tokenizer",
    "data",
    "cache",
    "packing",
    "weights",
    "distributed",
    "checkpoint",
    "reference",
    "generate",
    "evaluate",
    "rlhf",
    "ppo",
    "options",
    "optimizer",
    "run",
)
