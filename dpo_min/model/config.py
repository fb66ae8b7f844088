"""What decides a model's numbers beside its weights: the sizes, in names that both architectures share. No PyTorch.

Of V token ids, L layers, H heads of hs channels each, width C, and I channels inside the MLP.
"""

from dataclasses import dataclass, fields
from math import inf


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT-2; the defaults are the 124M model's."""

    vocab_size: int = 50257
    block_size: int = 1024  # the longest sequence: the number of learned positions
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: int | None = None  # None: 4 n_embd
    gelu: str = "tanh"  # which GELU: its tanh approximation, or "none", the exact one
    norm_epsilon: float = 1e-5
    tied: bool = True  # the head is the token embedding

    def __post_init__(self):
        check(self)
        settle(self, n_inner=4 * self.n_embd)
        if self.n_embd % self.n_head:
            raise ValueError(f"GPTConfig: n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.gelu not in ("tanh", "none"):
            raise ValueError(f'GPTConfig: gelu must be "tanh" or "none", got {self.gelu!r}')

    @property
    def n_kv_head(self):
        """Heads of keys and values: one for each of the queries'."""
        return self.n_head

    @property
    def head_size(self):
        """Channels of a head."""
        return self.n_embd // self.n_head

    def parameters(self):
        """The number of trained parameters, as one counts them: what is tied counts once."""
        V, T, L, C, I = self.vocab_size, self.block_size, self.n_layer, self.n_embd, self.n_inner  # noqa: E741
        attention, mlp, norms = (3 * C + 1 * C) * (C + 1), (C + 1) * I + (I + 1) * C, 4 * C
        return (1 if self.tied else 2) * V * C + T * C + L * (attention + mlp + norms) + 2 * C


def check(config):
    """ValueError where a field is not of its kind: an integer above 0, a number above 0, a truth value."""
    kind = type(config).__name__
    for field in fields(config):
        name, value = field.name, getattr(config, field.name)
        whole = field.type is int or (field.type == int | None and value is not None)
        if whole and (type(value) is not int or value < 1):
            raise ValueError(f"{kind}: {name} must be a positive integer, got {value!r}")
        if field.type is float and (type(value) not in (int, float) or not 0 < value < inf):
            raise ValueError(f"{kind}: {name} must be a number above 0, got {value!r}")
        if field.type is bool and type(value) is not bool:
            raise ValueError(f"{kind}: {name} must be true or false, got {value!r}")


def settle(config, **defaults):
    """Give each field that is None its value, as part of making a config."""
    for name, value in defaults.items():
        if getattr(config, name) is None:
            object.__setattr__(config, name, value)
