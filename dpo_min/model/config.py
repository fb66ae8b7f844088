"""What decides a model's numbers beside its weights: the sizes, in names that both architectures share. No PyTorch.

Of V token ids, L layers, H heads of hs channels each, width C, and I channels inside the MLP.
"""

from dataclasses import dataclass, field, fields
from reprlib import repr as short
from typing import NamedTuple


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


class RopeScaling(NamedTuple):
    """Llama 3.1's slower rotations; see `llama.stretch`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama, or of the kin that `model_type` names; the defaults are SmolLM2-135M's."""

    vocab_size: int = 49152
    block_size: int = 8192  # the longest sequence
    n_layer: int = 30
    n_head: int = 9
    n_embd: int = 576
    n_inner: int = 1536
    n_kv_head: int | None = None  # heads of keys and values; None: n_head
    head_size: int | None = None  # None: n_embd / n_head
    norm_epsilon: float = 1e-5
    rope_theta: float = 100_000.0
    rope_scaling: RopeScaling | None = None
    tied: bool = True  # the head is the token embedding
    model_type: str = "llama"  # or "mistral", which computes the same, "qwen2" or "qwen3"
    bos_token_id: int | None = field(default=None, compare=False)  # nothing here uses it; it is kept for others

    def __post_init__(self):
        check(self)
        if self.head_size is None and self.n_embd % self.n_head:
            raise ValueError(f"LlamaConfig: n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        settle(self, n_kv_head=self.n_head, head_size=self.n_embd // self.n_head)
        if self.n_head % self.n_kv_head:
            raise ValueError(f"LlamaConfig: n_head ({self.n_head}) must be a multiple of n_kv_head ({self.n_kv_head})")
        if self.head_size % 2:
            raise ValueError(f"LlamaConfig: head_size must be even, got {self.head_size}")
        if self.model_type not in ("llama", "mistral", "qwen2", "qwen3"):
            raise ValueError(f"LlamaConfig: unknown model_type {self.model_type!r}")

    @property
    def qkv_bias(self):
        """Whether q, k and v have biases."""
        return self.model_type == "qwen2"

    @property
    def qk_norm(self):
        """Whether the heads of q and k have norms."""
        return self.model_type == "qwen3"

    def parameters(self):
        """The number of trained parameters, as one counts them: what is tied counts once."""
        V, L, C, I = self.vocab_size, self.n_layer, self.n_embd, self.n_inner  # noqa: E741
        queries, keys = self.n_head * self.head_size, self.n_kv_head * self.head_size
        attention = 2 * C * (queries + keys) + self.qkv_bias * (queries + 2 * keys) + self.qk_norm * 2 * self.head_size
        return (1 if self.tied else 2) * V * C + L * (attention + 3 * C * I + 2 * C) + C


def check(config):
    """ValueError where a field is not of its kind: an integer above 0, a number above 0, a truth value."""
    kind = type(config).__name__
    for name, form, compare in ((f.name, f.type, f.compare) for f in fields(config)):
        value = getattr(config, name)
        whole = form is int or (form == int | None and compare and value is not None)
        if whole and (type(value) is not int or value < 1):
            raise ValueError(f"{kind}: {name} must be a positive integer, got {short(value)}")
        if form is float and (type(value) not in (int, float) or not 0 < value < 1e30):
            raise ValueError(f"{kind}: {name} must be a number above 0, got {short(value)}")
        if form is bool and type(value) is not bool:
            raise ValueError(f"{kind}: {name} must be true or false, got {short(value)}")


def settle(config, **defaults):
    """Give each field that is None its value, as part of making a config."""
    for name, value in defaults.items():
        if getattr(config, name) is None:
            object.__setattr__(config, name, value)
