"""Direct Preference Optimization, from the derivation to a trained model, in pure PyTorch.

Read the files in the order below: each one imports only files above it.
"""

READING_ORDER = (
    "preference",
    "losses",
    "logprob",
    "gpt",
    "tokenizer",
    "data",
    "packing",
    "weights",
    "generate",
    "evaluate",
    "options",
    "run",
    "optimizer",
)
