"""The optimizer, and its learning rate over a run."""

import math

import torch


def make_optimizer(name, model, learning_rate, weight_decay):
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101) or RMSprop, which the DPO paper used; only matrices decay.

    It holds what requires a gradient: of LoRA, the adapter alone.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=True)  # one kernel, faster than one for each tensor
    return torch.optim.RMSprop(groups, lr=learning_rate)


def set_learning_rate(optimizer, flags, step, steps):
    """Give the optimizer the learning rate of `step`, from 1 to `steps`, by the schedule; returns it."""
    rate = flags.learning_rate * schedule(flags.lr_schedule, step, steps, flags.warmup_steps)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def schedule(shape, step, steps, warmup):
    """What the learning rate is multiplied by in step 1 … steps: a linear warm-up, then `shape`; never zero."""
    if step <= warmup:
        return step / (warmup + 1)
    left = (steps - step + 1) / (steps - warmup)  # 1 → 1 / (steps − warmup)
    return {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}[shape]
