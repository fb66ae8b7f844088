"""Llama and its kin, Mistral, Qwen2, Qwen3 and SmolLM2: rotary positions, grouped queries, RMSNorm, SwiGLU, no biases.

Touvron et al., arXiv:2302.13971 (Llama); Grattafiori et al., arXiv:2407.21783 (Llama 3). Qwen2 (arXiv:2407.10671) adds
biases to q, k and v, Qwen3 (arXiv:2505.09388) norms of q and k. Submodules carry the names of the published tensors.

    tokens → embed_tokens → n_layer × Block → norm → hidden   (LanguageModel.forward)
    hidden → embed_tokensᵀ or lm_headᵀ → logits               (LanguageModel.logits)
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from dpo_min.model.attention import LanguageModel, attend, embedding
from dpo_min.model.config import LlamaConfig


# f_i = θ^(−2i/hs) for i = 0 … hs/2 − 1        Su et al., arXiv:2104.09864, section 3.2.2
def rotary_frequencies(config, device=None, dtype=torch.float32):
    """By how many radians a step of one position turns each pair of channels, (hs/2,)."""
    pairs = torch.arange(0, config.head_size, 2, device=device, dtype=dtype)
    frequencies = config.rope_theta ** (-pairs / config.head_size)
    return stretch(frequencies, config.rope_scaling) if config.rope_scaling else frequencies


# f′ = s f + (1 − s) f/factor,  s = clamp((turns − low)/(high − low), 0, 1),  turns = original_positions · f / 2π
def stretch(frequencies, scaling):
    """Llama 3.1's: pairs that turn less than `low` times in the original context do so `factor` times as slowly.

    Those that turn more than `high` times keep their frequency; in between is a blend.
    """
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    share = share.clamp(0, 1)
    return share * frequencies + (1 - share) * frequencies / scaling.factor


# (a, b) → (a cos φ − b sin φ, b cos φ + a sin φ),  φ = position · f        Su et al., Eq. 34
def rotate(x, cos, sin):
    """Turn each pair of channels of x (B, nh, T, hs), i and i + hs/2; cos and sin are (1 or B, 1, T, hs/2).

    ⟨rotate(q) at position m, rotate(k) at position n⟩ depends on m − n alone.
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · g, in float32 at least: Zhang and Sennrich, arXiv:1910.07467, Eq. 4."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        """X (..., width) → the same shape."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(dtype), self.weight.shape, self.weight.to(dtype), self.eps).to(x.dtype)


class Attention(nn.Module):
    """softmax(q kᵀ / √hs) v, q and k turned by their positions; n_kv_head heads of k and v serve n_head of q."""

    def __init__(self, config):
        super().__init__()
        C, hs, queries, bias = config.n_embd, config.head_size, config.n_head * config.head_size, config.qkv_bias
        self.head_size = hs
        self.q_proj = nn.Linear(C, queries, bias=bias)
        self.k_proj = nn.Linear(C, config.n_kv_head * hs, bias=bias)
        self.v_proj = nn.Linear(C, config.n_kv_head * hs, bias=bias)
        self.o_proj = nn.Linear(queries, C, bias=False)
        self.q_norm = RMSNorm(hs, config.norm_epsilon) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(hs, config.norm_epsilon) if config.qk_norm else nn.Identity()

    def forward(self, x, rotation, mask=None, write_cache=None):
        """X (B, T, C) → (B, T, C); rotation is (cos, sin), mask and write_cache are as in `attend`."""
        B, T, _ = x.shape
        projections = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q, k, v = (z.view(B, T, -1, self.head_size).transpose(1, 2) for z in projections)  # (B, heads, T, hs)
        q, k = rotate(self.q_norm(q), *rotation), rotate(self.k_norm(k), *rotation)
        return self.o_proj(attend(q, k, v, mask, write_cache))


class MLP(nn.Module):
    """down(silu(gate x) ⊙ up x), C → I → C, silu(z) = z σ(z): SwiGLU, Shazeer, arXiv:2002.05202, Eq. 6."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_inner, bias=False)
        self.down_proj = nn.Linear(config.n_inner, config.n_embd, bias=False)

    def forward(self, x):
        """X (B, T, C) → (B, T, C)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.n_embd, config.norm_epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.n_embd, config.norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, mask, write_cache, rotation):
        """X (B, T, C) → (B, T, C)."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask, write_cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(LanguageModel):
    """Llama; see the module's docstring."""

    CONFIG, EMBEDDING, BLOCKS, NORM = LlamaConfig, "embed_tokens", "layers", "norm"
    RESIDUAL = ("o_proj.weight", "down_proj.weight")

    def __init__(self, config, generator=None):
        super().__init__(config)
        self.embed_tokens = embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd, config.norm_epsilon)
        if not config.tied:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.init_weights(generator)

    def embed(self, tokens, positions):
        """(B, T) ids, (B, T) or (T,) positions → x (B, T, C), and (cos, sin) of every block's rotations."""
        x = self.embed_tokens(tokens)
        dtype = torch.promote_types(x.dtype, torch.float32)
        frequencies = rotary_frequencies(self.config, x.device, dtype)
        angles = positions[..., None, :, None] * frequencies  # (1, T, hs/2) or (B, 1, T, hs/2)
        return x, (angles.cos(), angles.sin())
