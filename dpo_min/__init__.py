"""Direct Preference Optimization, from the derivation to a trained model, in pure PyTorch.

The mathematics stands at the front door: read its files in the order below. Behind it are the wings, each with
one purpose, which its `__init__.py` says before it gives a reading order of its own. The mathematics imports none of
the wings, a file imports only files above it, and a wing imports only wings above it.
"""

from importlib import import_module

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


def exports(package, **modules):
    """A package's `__getattr__`: name=module of what it exports, loaded at the first use, for PyTorch takes seconds."""

    def find(name):
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return find
