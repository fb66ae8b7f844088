"""GPT with its weights made ready for decoding: each token reads them all, so how they lie in memory is the speed."""

import torch
import torch.nn as nn

from dpo_min.model.gpt import GPT


class PackedLinear(nn.Module):
    """x Wᵀ + b, with W in the blocks that oneDNN multiplies a few rows by in half of the time."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight, 8), bias  # for about so many rows

    def forward(self, x):
        """X (..., C) → (..., D)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class DecodingGPT(GPT):
    """A model's weights made ready to decode with: in `dtype` once, not cast for every token, and packed on a CPU.

    Without gradients; it does not follow what the model learns later. The packed layout is the one that
    `torch.compile` gives linear layers on CPUs; elsewhere, or in other dtypes, layers stay as they are.
    """

    def __init__(self, model, dtype):
        with torch.device("meta"):
            super().__init__(model.config)
        self.load_state_dict(
            {name: p.detach().to(dtype, copy=True) for name, p in model.state_dict().items()}, assign=True
        )
        self.requires_grad_(False)
        self.head = None
        if packable(self.wte.weight):
            self.head = PackedLinear(self.wte.weight, None)
            for layer in (layer for block in self.h for layer in (block.attn, block.mlp)):
                for name, linear in list(layer.named_children()):
                    setattr(layer, name, PackedLinear(linear.weight, linear.bias))

    def logits(self, hidden):
        """As `GPT.logits`."""
        return self.head(hidden) if self.head else super().logits(hidden)


def packable(weight):
    """Whether oneDNN, as PyTorch has it here, packs weights of this kind."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
