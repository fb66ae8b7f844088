"""What both models share: attention, its cache, and the way from tokens through the blocks.

Attention is softmax(q kᵀ / √hs + mask) v: Vaswani et al., arXiv:1706.03762, Eq. 1.
"""

import math
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


class KVCache:
    """Keys and values of every position seen so far, so that decoding a token costs one position.

    A key lives in the slot of its position, so rows of unequal length need no padding on the left:
    what a shorter row's right padding wrote is hidden by the mask until the row's own tokens overwrite it.
    All slots are allocated at once and written in place. Attention looks at the first `slots` of them: all, unless
    set to fewer, which costs less; no position beyond them may be asked for.
    """

    def __init__(self, config, batch_size, length, device=None, dtype=None):
        shape = (config.n_layer, batch_size, config.n_kv_head, length, config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # (L, B, nkv, S, hs)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.rows = torch.arange(batch_size, device=device)[:, None]  # (B, 1)
        self.slots = length

    def write(self, layer, positions, k, v):
        """Store k and v (B, nkv, T, hs) at positions (B, T); return the layer's slots (B, nkv, S, hs) in use."""
        keys, values = self.keys[layer], self.values[layer]
        keys[self.rows, :, positions] = k.transpose(1, 2).to(keys.dtype)
        values[self.rows, :, positions] = v.transpose(1, 2).to(values.dtype)
        return keys[:, :, : self.slots], values[:, :, : self.slots]

    def select(self, rows):
        """Let each row go on from what row `rows[i]` has seen; rows: (B,) indices, of which some may repeat."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.rows = torch.arange(len(rows), device=rows.device)[:, None]


def attend(q, k, v, mask=None, write_cache=None):
    """What the queries read: q (B, nh, T, hs), k and v (B, nkv, T, hs) → (B, T, nh·hs).

    Each head of keys and values serves nh/nkv neighbouring heads of queries (Ainslie et al., arXiv:2305.13245).
    mask: (B, 1, T, S), boolean or added to the scores, or None for causal; or a list of those, one for each of the
    texts that stand in a row one after another, none of which sees the others.
    """
    if isinstance(mask, list):
        lengths = [part.shape[-1] for part in mask]
        q, k, v = (z.split(lengths, dim=2) for z in (q, k, v))
        return torch.cat([attend(*text) for text in zip(q, k, v, mask, strict=True)], dim=1)
    dtype = q.dtype
    if write_cache is not None:
        k, v = write_cache(k, v)  # (B, nkv, S, hs)
        q = q.to(k.dtype)
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and mask is not None and q.device.type != "cpu":  # there no fast kernel has both a mask and groups
        k, v, groups = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), 1
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=groups > 1)
    return y.transpose(1, 2).flatten(2).to(dtype)


def embedding(count, width):
    """nn.Embedding whose weights are not drawn: `init_weights` does it, and once is enough."""
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


def additive(mask, dtype):
    """0 where a boolean mask is True and −∞ elsewhere: what attention would make of it in every layer."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -math.inf)


class LanguageModel(nn.Module):
    """tokens → embed → blocks → norm → hidden → head_weightᵀ → logits; a model adds what these are.

    It says how it names its parts (EMBEDDING, BLOCKS, NORM) and its projections into the residual stream (RESIDUAL);
    `embed(tokens, positions)` returns x (B, T, C) and whatever else each block has to know of the positions.
    There is no dropout: policy and reference must be the same function at step 0.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # True: keep only each block's input, and compute the rest again backwards
        self.compiled = False

    def compile(self, *arguments, **options):
        """`nn.Module.compile`; who could give every batch a shape of its own asks `compiled` first."""
        super().compile(*arguments, **options)
        self.compiled = True

    @property
    def blocks(self):
        """The layers, first to last."""
        return getattr(self, self.BLOCKS)

    @property
    def head_weight(self):
        """(V, C): the token embedding, unless the head has a matrix of its own."""
        return (getattr(self, self.EMBEDDING) if self.config.tied else self.lm_head).weight

    @torch.no_grad()
    def init_weights(self, generator=None):
        """GPT-2's: N(0, 0.02); projections into the residual stream smaller by √(2 n_layer); biases zero."""
        for name, parameter in self.named_parameters():
            if parameter.is_meta:  # a shape without numbers
                continue
            if parameter.dim() == 2:
                scale = math.sqrt(2 * self.config.n_layer) if name.endswith(self.RESIDUAL) else 1.0
                parameter.normal_(0.0, 0.02 / scale, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()

    def forward(self, tokens, positions=None, mask=None, cache=None):
        """Hidden states after the last norm; `logits` turns them into scores of the next token.

        Args:
            tokens: (B, T) token ids.
            positions: (B, T) or (T,) where each token stands, below block_size; default 0..T−1.
            mask: boolean, (T, T) or (B, T, T): True where the token in row q of the mask may attend to
                the token in column k, on top of causality; every token should see itself. Default: causal.
                A list of (Tᵢ, Tᵢ), of which the Tᵢ add up to T: texts one after another in a single row (B = 1),
                none of which sees the others.
            cache: a `KVCache`; tokens then attend to every cached position up to their own, `mask` is unused.

        Returns: (B, T, C).

        Raises:
            ValueError: tokens are not (B, T), longer than block_size without `positions`, or `mask` has another shape.
        """
        positions, mask = self.prepare(tokens, positions, mask, cache)
        x, *places = self.embed(tokens, positions)  # (B, T, C)
        for layer, block in enumerate(self.blocks):
            write_cache = partial(cache.write, layer, positions) if cache else None  # (k, v) → all k, v so far
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, write_cache, *places, use_reentrant=False)
            else:
                x = block(x, mask, write_cache, *places)
        return getattr(self, self.NORM)(x)

    def prepare(self, tokens, positions, mask, cache):
        """(positions, the mask that is added to scores, or None) of `forward`'s arguments, which are checked."""
        kind, T = type(self).__name__, tokens.shape[-1] if tokens.dim() else 0
        if tokens.dim() != 2:
            raise ValueError(f"{kind}: tokens must be (B, T), got {tuple(tokens.shape)}")
        if positions is None:
            if self.config.block_size < T:
                raise ValueError(f"{kind}: {T} tokens exceed block_size {self.config.block_size}")
            positions = torch.arange(T, device=tokens.device)
        if cache is not None:
            positions = positions.expand(tokens.shape)
            seen = torch.arange(cache.slots, device=tokens.device) <= positions[:, :, None]  # (B, T, S)
            return positions, additive(seen[:, None], cache.keys.dtype)
        if mask is None:
            return positions, None
        if isinstance(mask, list):
            if len(tokens) != 1 or sum(map(len, mask)) != T:
                raise ValueError(f"{kind}: texts of {[*map(len, mask)]} tokens are not a row of {tuple(tokens.shape)}")
            parts = (self.prepare(tokens[:, : len(part)], positions, part, None) for part in mask)
            return positions, [part_mask for _, part_mask in parts]
        if mask.dtype != torch.bool or mask.shape not in ((T, T), (len(tokens), T, T)):
            raise ValueError(f"{kind}: mask must be boolean (T,T) or (B,T,T), got {mask.dtype} {tuple(mask.shape)}")
        causal, device = torch.ones(T, T, dtype=torch.bool, device=tokens.device).tril(), tokens.device.type
        dtype = self.head_weight.dtype
        if torch.is_autocast_enabled(device) and dtype != torch.float64:  # which autocast leaves as it is
            dtype = torch.get_autocast_dtype(device)
        return positions, additive((mask & causal).expand(len(tokens), T, T)[:, None], dtype)  # (B, 1, T, T)

    def logits(self, hidden):
        """(..., C) → (..., V): the scores of the next token."""
        return self.lm_head(hidden) if hasattr(self, "lm_head") else F.linear(hidden, self.head_weight)
