"""GPT-2, exactly: learned positions, LayerNorm before each sublayer, tanh GELU, biases, tied head.

Radford et al., 2019, "Language Models are Unsupervised Multitask Learners". Submodules carry the
names of GPT-2's own tensors, so that its weights fit. There is no dropout: policy and reference must
be the same function at step 0.

    tokens → wte + wpe → n_layer × Block → ln_f → hidden   (GPT.forward)
    hidden → wteᵀ → logits                                 (GPT.logits)
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT-2; the defaults are the 124M model's."""

    vocab_size: int = 50257
    block_size: int = 1024  # the longest sequence: the number of learned positions
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768

    def __post_init__(self):
        for name, size in vars(self).items():
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"GPTConfig: {name} must be a positive integer, got {size!r}")
        if self.n_embd % self.n_head:
            raise ValueError(f"GPTConfig: n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")


class KVCache:
    """Keys and values of every position seen so far, so that decoding a token costs one position.

    A key lives in the slot of its position, so rows of unequal length need no padding on the left:
    what a shorter row's right padding wrote is hidden by the mask until the row's own tokens overwrite it.
    All slots are allocated at once and written in place. Attention looks at the first `slots` of them: all, unless
    set to fewer, which costs less; no position beyond them may be asked for.
    """

    def __init__(self, config, batch_size, length, device=None, dtype=None):
        head_size = config.n_embd // config.n_head
        shape = (config.n_layer, batch_size, config.n_head, length, head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (L, B, nh, S, hs)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.rows = torch.arange(batch_size, device=device)[:, None]  # (B, 1)
        self.slots = length

    def write(self, layer, positions, k, v):
        """Store k and v (B, nh, T, hs) at positions (B, T); return the layer's slots (B, nh, S, hs) in use."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self.rows, :, positions] = k.transpose(1, 2).to(keys.dtype)
        values[self.rows, :, positions] = v.transpose(1, 2).to(values.dtype)
        return keys[:, :, : self.slots], values[:, :, : self.slots]

    def select(self, rows):
        """Let each row go on from what row `rows[i]` has seen; rows: (B,) indices, of which some may repeat."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.rows = torch.arange(len(rows), device=rows.device)[:, None]


class Attention(nn.Module):
    """softmax(q kᵀ / √hs) v in n_head heads, then a projection; one matrix makes q, k and v."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, mask=None, write_cache=None):
        """X (B, T, C) → (B, T, C); mask (B, 1, T, S), boolean or added to the scores, or None for causal."""
        B, T, C = x.shape
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (z.view(heads).transpose(1, 2) for z in self.c_attn(x).split(C, dim=-1))  # (B, nh, T, hs)
        dtype = q.dtype
        if write_cache is not None:
            k, v = write_cache(k, v)  # (B, nh, S, hs)
            q = q.to(k.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)  # (B, nh, T, hs)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C).to(dtype))


class MLP(nn.Module):
    """C → 4C → tanh GELU → C, at each position alone."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        """X (B, T, C) → (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPSILON)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(config)

    def forward(self, x, mask=None, write_cache=None):
        """X (B, T, C) → (B, T, C)."""
        x = x + self.attn(self.ln_1(x), mask, write_cache)
        return x + self.mlp(self.ln_2(x))


def additive(mask, dtype):
    """0 where a boolean mask is True and −∞ elsewhere: what attention would make of it in every layer."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)


class GPT(nn.Module):
    """GPT-2; see the module's docstring."""

    def __init__(self, config, generator=None):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # True: keep only each block's input, and compute the rest again backwards
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPSILON)
        self.init_weights(generator)

    @torch.no_grad()
    def init_weights(self, generator=None):
        """GPT-2's: N(0, 0.02); projections into the residual stream smaller by √(2 n_layer); biases zero."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = math.sqrt(2 * self.config.n_layer) if name.endswith("c_proj.weight") else 1.0
                parameter.normal_(0.0, 0.02 / scale, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()

    def forward(self, tokens, positions=None, mask=None, cache=None):
        """Hidden states after the last LayerNorm; `logits` turns them into scores of the next token.

        Args:
            tokens: (B, T) token ids.
            positions: (B, T) or (T,) index of each token's learned position, below block_size; default 0..T−1.
            mask: boolean, (T, T) or (B, T, T): True where the token in row q of the mask may attend to
                the token in column k, on top of causality; every token should see itself. Default: causal.
            cache: a `KVCache`; tokens then attend to every cached position up to their own, `mask` is unused.

        Returns: (B, T, C).

        Raises:
            ValueError: tokens are not (B, T), longer than block_size without `positions`, or `mask` has another shape.
        """
        if tokens.dim() != 2:
            raise ValueError(f"GPT: tokens must be (B, T), got {tuple(tokens.shape)}")
        B, T, device = *tokens.shape, tokens.device.type
        if positions is None:
            if self.config.block_size < T:
                raise ValueError(f"GPT: {T} tokens exceed block_size {self.config.block_size}")
            positions = torch.arange(T, device=tokens.device)
        if cache is not None:
            positions = positions.expand(B, T)
            seen = torch.arange(cache.slots, device=tokens.device) <= positions[:, :, None]  # (B, T, S)
            mask = additive(seen[:, None], cache.keys.dtype)
        elif mask is not None:
            if mask.dtype != torch.bool or mask.shape not in ((T, T), (B, T, T)):
                raise ValueError(f"GPT: mask must be boolean (T,T) or (B,T,T), got {mask.dtype} {tuple(mask.shape)}")
            causal = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril()
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.wte.weight.dtype
            mask = additive((mask & causal).expand(B, T, T)[:, None], dtype)  # (B, 1, T, T)
        x = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
        for layer, block in enumerate(self.h):
            write_cache = cache and (lambda k, v, layer=layer: cache.write(layer, positions, k, v))
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, write_cache, use_reentrant=False)
            else:
                x = block(x, mask, write_cache)
        return self.ln_f(x)

    def logits(self, hidden):
        """(..., C) → (..., V): the scores of the next token; the head is the token embedding, transposed."""
        return F.linear(hidden, self.wte.weight)
