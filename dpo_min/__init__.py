"""Direct Preference Optimization, from the derivation to a trained model, in pure PyTorch.

The mathematics stands at the front door: read its files in the order below. Behind it are the wings, each with
one purpose, which its `__init__.py` says before it gives a reading order of its own. The mathematics imports none of
the wings, a file imports only files above it, and a wing imports only wings above it.
"""

READING_ORDER = (
    "objective",
    "preference",
    "margin_losses",
    "ratio_losses",
    "losses",
    "gradient",
    "logprob",
    "exact",
    "metrics",
)
WINGS = ("system", "model", "data", "decode", "judge", "run", "rl", "labels", "learn")
