"""The optimizer and its learning rate over a run."""

import math

import torch


def make_optimizer(name, model, learning_rate, weight_decay):
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) or RMSprop, which the DPO paper used; only matrices decay."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = {"adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}[name]
    return optimizer(groups, lr=learning_rate)


def schedule(shape, step, steps, warmup):
    """What the learning rate of step 0 … steps − 1 is multiplied by: a linear warm-up, then `shape`; never zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = 1 - (step - warmup) / max(steps - warmup, 1)  # 1 → 0
    shapes = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
    return shapes[shape]
