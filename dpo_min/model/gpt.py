"""GPT-2, exactly: learned positions, LayerNorm before each sublayer, GELU, biases, tied head.

Radford et al., 2019, "Language Models are Unsupervised Multitask Learners". Submodules carry the
names of GPT-2's own tensors, so that its weights fit.

    tokens → wte + wpe → n_layer × Block → ln_f → hidden   (LanguageModel.forward)
    hidden → wteᵀ → logits                                 (LanguageModel.logits)
"""

import torch.nn as nn
import torch.nn.functional as F

from dpo_min.model.attention import LanguageModel, attend, embedding
from dpo_min.model.config import GPTConfig


class Attention(nn.Module):
    """softmax(q kᵀ / √hs) v in n_head heads, then a projection; one matrix makes q, k and v."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, mask=None, write_cache=None):
        """X (B, T, C) → (B, T, C); mask and write_cache as in `attend`."""
        B, T, C = x.shape
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (z.view(heads).transpose(1, 2) for z in self.c_attn(x).split(C, dim=-1))  # (B, nh, T, hs)
        return self.c_proj(attend(q, k, v, mask, write_cache))


class MLP(nn.Module):
    """C → I → GELU → C, at each position alone; x Φ(x), or its tanh approximation: Hendrycks, arXiv:1606.08415."""

    def __init__(self, config):
        super().__init__()
        self.gelu = config.gelu
        self.c_fc = nn.Linear(config.n_embd, config.n_inner)
        self.c_proj = nn.Linear(config.n_inner, config.n_embd)

    def forward(self, x):
        """X (B, T, C) → (B, T, C)."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate=self.gelu))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, mask=None, write_cache=None):
        """X (B, T, C) → (B, T, C)."""
        x = x + self.attn(self.ln_1(x), mask, write_cache)
        return x + self.mlp(self.ln_2(x))


class GPT(LanguageModel):
    """GPT-2; see the module's docstring."""

    CONFIG, EMBEDDING, BLOCKS, NORM, RESIDUAL = GPTConfig, "wte", "h", "ln_f", ("c_proj.weight",)

    def __init__(self, config, generator=None):
        super().__init__(config)
        self.wte = embedding(config.vocab_size, config.n_embd)
        self.wpe = embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.norm_epsilon)
        if not config.tied:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.init_weights(generator)

    def embed(self, tokens, positions):
        """(B, T) ids, (B, T) or (T,) positions → x (B, T, C), as a tuple: the blocks ask for no more."""
        return (self.wte(tokens) + self.wpe(positions),)
