"""LoRA: the weights of a model stay as they are, and beside each matrix W an update of rank r is learnt.

    h = W x + ΔW x = W x + (α/r) B A x     with A (r, C), B (D, r), for a layer from C to D features     (Eq. 3)

Hu et al., arXiv:2106.09685; the factor α/r is of their section 4.1. A begins small and random and B as zero, so that
the model begins as what it was, to the bit. For DPO that is more than a saving: the reference is the same network with
its adapters off, and costs nothing.

    add_lora(policy, rank=8, alpha=16)       # from here on only A and B are trained
    with adapters_off(policy): policy(tokens)  # π_ref
    dict(merged(policy))                     # W + (α/r) B A under the name of W: a model without adapters
"""

import math
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F

FACTORS = "lora_A", "lora_B"


class LoRALinear(nn.Linear):
    """A linear layer whose weight stays, beside a product B A that is learnt. Its tensors keep their names."""

    def __init__(self, layer, rank, scale, generator=None):
        """`scale` is α/r. A is drawn from N(0, 1/3C), as spread as the ecosystem draws it."""
        D, C = layer.weight.shape
        with torch.device("meta"):  # no memory for a weight that is there already
            super().__init__(C, D, bias=False)
        self.weight, self.bias, self.scale, self.on = layer.weight, layer.bias, scale, True
        dtype, device = torch.promote_types(layer.weight.dtype, torch.float32), layer.weight.device
        A = torch.randn(rank, C, generator=generator, dtype=dtype) / math.sqrt(3 * C)  # (r, C)
        self.lora_A = nn.Parameter(A.to(device))
        self.lora_B = nn.Parameter(torch.zeros(D, rank, dtype=dtype, device=device))  # (D, r)

    # Eq. 3:  h = W x + (α/r) B A x
    def forward(self, x):
        """X (..., C) → (..., D)."""
        h = super().forward(x)
        return h + F.linear(self.scale * F.linear(x, self.lora_A), self.lora_B) if self.on else h


def linear_layers(model, targets=()):
    """Name → linear layer of the model's blocks: all, or those that a target names in full or by its last parts.

    Raises:
        ValueError: a target names none; the message lists the last parts that there are.
    """
    # A head with a weight of its own would be a layer of the model itself: its name has no dot.
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "." in name}
    for target in targets or ():
        if not any(matches(target, name) for name in layers):
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            raise ValueError(f"--lora-targets: the blocks have no linear layer {target!r}, but {known}")
    return {name: m for name, m in layers.items() if not targets or any(matches(target, name) for target in targets)}


def matches(target, name):
    """Whether a target names a layer: `h.0.attn.c_attn`, `attn.c_attn` and `c_attn` name the same one."""
    return f".{name}".endswith(f".{target}")


def adapted(model):
    """Name → `LoRALinear` of a model; none where nothing was added."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def add_lora(model, rank, alpha, targets=(), generator=None):
    """Freeze a model and put an adapter beside its linear layers, or those that `targets` name; the model is changed.

    What is trained from then on has Σ r (C + D) numbers, over the layers from C to D features.

    Args: alpha, α of Eq. 3; generator, a `torch.Generator` that A is drawn from. Errors as for `linear_layers`.
    """
    layers = linear_layers(model, targets)
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, LoRALinear(layer, rank, alpha / rank, generator))


@contextmanager
def adapters_off(model):
    """The model with its adapters off, for the time of a `with`: π_ref. A model without any stays as it is."""
    layers = [layer for layer in adapted(model).values() if layer.on]
    for layer in layers:
        layer.on = False
    try:
        yield model
    finally:
        for layer in layers:
            layer.on = True


# h = W x + (α/r) B A x = [W + (α/r) B A] x
def merge(W, A, B, scale):
    """One matrix (D, C) that does what a layer W (D, C) and its adapter do: A (r, C), B (D, r); `scale` is α/r."""
    return W + scale * (B @ A)


def merged(model, whole=lambda tensor: tensor):
    """Yield (name, tensor) of the model without adapters that computes the same: W + (α/r) B A, or W where it is off.

    Args: whole, what is done with each tensor first, such as to gather it from several processes.
    """
    layers = adapted(model)
    for name, tensor in model.state_dict().items():
        owner, _, kind = name.rpartition(".")
        if kind in FACTORS:
            continue
        tensor = whole(tensor)
        if kind == "weight" and owner in layers and layers[owner].on:
            factors = (whole(getattr(layers[owner], factor).detach()) for factor in FACTORS)
            tensor = merge(tensor, *factors, layers[owner].scale)
        yield name, tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def narrow_frozen(model, dtype):
    """Keep the frozen matrices of the blocks in the dtype that autocast multiplies them in, where no bit is lost.

    Most models are published in bfloat16: in float32 they take twice the memory, and autocast makes of them what they
    were. Nothing that is computed under autocast changes; float32 means that there is none.
    """
    if dtype == torch.float32:
        return
    for layer in [layer for layer in linear_layers(model).values() if not layer.weight.requires_grad]:
        narrow = layer.weight.to(dtype)
        if torch.equal(narrow.to(layer.weight.dtype), layer.weight):
            layer.weight.data = narrow
