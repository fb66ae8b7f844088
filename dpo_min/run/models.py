"""The models of a run: how it begins with a directory, with an adapter or with a new one, and what it leaves."""

import torch

from dpo_min.model.adapter import adapter_tensors, load_adapter, save_adapter
from dpo_min.model.lora import add_lora
from dpo_min.model.weights import load_model
from dpo_min.run import distributed
from dpo_min.run.checkpoint import seal
from dpo_min.run.session import save_model_directory


def load_models(flags, directory=None):
    """(policy, reference) of a run that begins with --init, or with `directory`.

    The policy as it begins is the reference. So one model is both where the reference is asked only before the first
    step; with LoRA it always is, as the adapter can be switched off. --reference names another. None where the loss
    has none, and where --adapter has yet to be merged into --init, which both then begin with.
    """
    policy = load_model(directory or flags.init)
    if flags.adapter and not directory:
        policy = load_adapter(policy, flags.adapter)
        print(f"the run begins with {flags.init} plus {flags.adapter}, merged: {flags.out / 'reference'}")
        return policy, None
    if flags.lora:
        add_lora(policy, flags.lora, flags.lora_alpha, flags.lora_targets, torch.Generator().manual_seed(flags.seed))
    if not flags.has_reference:
        return policy, None
    shared = flags.lora or (flags.stores_reference and not flags.max_kl)
    if shared and not flags.reference:
        return policy, policy
    return policy, load_model(flags.reference or directory or flags.init)


def save_outcome(model, tokenizer, flags, name):
    """What a run leaves in its directory under a name, "model" or "best".

    Of LoRA, model/ has the adapter merged, and adapter/ has it alone; --export leaves one of the two out. best/ is
    merged, or under --export adapter the adapter alone.
    """
    if flags.export != "adapter":
        save_model_directory(model, tokenizer, flags.out / name, sealed=name == "best")
    if flags.export == "adapter" or (flags.lora and flags.export is None and name == "model"):
        tensors = adapter_tensors(model, distributed.whole)
        if distributed.rank() == 0:
            base = flags.init if flags.init and not flags.adapter else flags.out / "reference"
            directory = flags.out / ("adapter" if name == "model" else name)
            save_adapter(model, directory, base, tensors)
            if name == "best":
                seal(directory)
        distributed.barrier()
