"""An adapter by itself, in the ecosystem's layout, both ways: `adapter_config.json` and `adapter_model.safetensors`.

The tensors are named by the layer of the base that they belong to: `base_model.model.` + layer + `.lora_A.weight`,
(r, C), and `.lora_B.weight`, (D, r). That is nn.Linear's orientation also where the base stores its own weights the
other way round, as GPT-2 does; its config then says `fan_in_fan_out`.
"""

import hashlib
import re
from pathlib import Path

import torch

from dpo_min.model.adapter_config import adapter_settings, write_settings
from dpo_min.model.lora import FACTORS, adapted, add_lora, linear_layers
from dpo_min.model.safetensors import Safetensors, write_safetensors
from dpo_min.model.weights import LAYOUTS
from dpo_min.system.files import sha256

TENSORS = "adapter_model.safetensors"
KEY = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.(?P<factor>lora_A|lora_B)\.weight")


def adapter_tensors(model, whole=lambda tensor: tensor):
    """The ecosystem's name → tensor of a model's adapter; `whole` as for `merged`."""
    layers, prefix = adapted(model), LAYOUTS[type(model)].prefix
    return {
        f"base_model.model.{prefix}{name}.{factor}.weight": whole(getattr(layer, factor).detach())
        for name, layer in layers.items()
        for factor in FACTORS
    }


def save_adapter(model, directory, base, tensors=None):
    """Write the adapter of a model that `add_lora` changed; what it was before is in the directory `base`.

    Args: tensors, the model's `adapter_tensors` where they had to be gathered.
    """
    directory, layers, layout = Path(directory), adapted(model), LAYOUTS[type(model)]
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / TENSORS, tensors or adapter_tensors(model))
    first = next(iter(layers.values()))
    rank = len(first.lora_A)
    short = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    targets = short if linear_layers(model, short).keys() == layers.keys() else [layout.prefix + n for n in layers]
    transposed = all(re.fullmatch(layout.transposed, f"{name}.weight") for name in layers)
    write_settings(directory, rank, first.scale * rank, targets, transposed, base)  # last: it makes the adapter whole


def load_adapter(model, directory):
    """The model, with the adapter in a directory beside its layers; only the adapter is trained from then on.

    Raises:
        ValueError: it is missing, damaged, of another base, or not LoRA as lora.py computes it.
    """
    directory, layers = Path(directory), linear_layers(model)
    rank, alpha = adapter_settings(directory)
    if not (directory / TENSORS).exists() and (directory / "adapter_model.bin").exists():
        raise ValueError(f"{directory}: adapter_model.bin can hold code; only {TENSORS} is read")
    file, found = Safetensors(directory / TENSORS), {}
    for key, (dtype, shape, _) in file.entries.items():
        match = KEY.fullmatch(key)
        name = match and match["layer"].removeprefix(LAYOUTS[type(model)].prefix)
        if name not in layers:
            raise ValueError(f"{directory}: tensor {key} belongs to no linear layer of the base's blocks")
        D, C = layers[name].weight.shape
        right = [rank, C] if match["factor"] == "lora_A" else [D, rank]
        if shape != right or not dtype.is_floating_point:
            raise ValueError(f"{directory}: tensor {key} is {dtype} {shape}, its base needs {right}")
        if (name, match["factor"]) in found:
            raise ValueError(f"{directory}: tensor {key} appears twice")
        found[name, match["factor"]] = key
    for name in {name: None for name, _ in found}:
        for factor in FACTORS:
            if (name, factor) not in found:
                raise ValueError(f"{directory}: tensor {factor} of {name} is missing")
    if not found:
        raise ValueError(f"{directory}: {TENSORS} holds no adapter")
    add_lora(model, rank, alpha, {name for name, _ in found})
    with torch.no_grad():
        for (name, factor), key in found.items():
            getattr(model.get_submodule(name), factor).copy_(file.read(key))
    return model


def adapter_fingerprint(directory):
    """SHA-256 of all that an adapter computes: its rank, its α and the bytes of its tensors."""
    settings = adapter_settings(directory)
    return hashlib.sha256(f"{settings} {sha256(Path(directory) / TENSORS)}".encode()).hexdigest()
