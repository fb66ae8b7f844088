"""A model to and from its directory, in the layout that the ecosystem has for its architecture.

`config.json` has its keys, `model.safetensors` its tensor names and orientation (GPT-2 stores four projections input ×
output), `generation_config.json` tells the ecosystem's samplers which token ends a text.
"""

import hashlib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import torch

from dpo_min.model.config_json import as_json, load_config
from dpo_min.model.gpt import GPT
from dpo_min.model.llama import Llama
from dpo_min.model.lora import merged
from dpo_min.model.model_directory import weight_files
from dpo_min.model.safetensors import MAX_HEADER, Safetensors, write_safetensors
from dpo_min.system.files import write_text

HEAD = "lm_head.weight"  # stands without a prefix
LAYER_TENSORS = 9  # of each layer, at least


class Layout(NamedTuple):
    """How an architecture's tensors are stored, under our names, which are the ecosystem's without the prefix."""

    prefix: str
    buffers: str  # a pattern: what old files hold although it is not trained
    transposed: str = "(?!)"  # a pattern: stored input × output where nn.Linear keeps output × input


PROJECTIONS = r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight"
LAYOUTS = {
    GPT: Layout("transformer.", r"h\.\d+\.attn\.(bias|masked_bias)", PROJECTIONS),
    Llama: Layout("model.", r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
}
MODELS = {model.CONFIG: model for model in LAYOUTS}


def load_model(directory):
    """The model of a directory, whose config.json decides the class; float32, on the CPU.

    Everything is checked by the headers before a tensor is read.

    Raises:
        ValueError: the directory, its config or a tensor is missing, damaged or not supported; the message names
            the file and the tensor.
    """
    directory = Path(directory)
    config = load_config(directory)
    layout = LAYOUTS[MODELS[type(config)]]
    stored = stored_tensors(directory, config, layout)
    if LAYER_TENSORS * config.n_layer > len(stored):  # before a network of that many layers is built
        raise ValueError(f"{directory}: {config.n_layer} layers by config.json, but only {len(stored)} tensors")
    try:
        with torch.device("meta"):  # shapes without memory
            model = MODELS[type(config)](config)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{directory}: config.json has sizes that no tensor can have") from error
    expected = model.state_dict()
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            raise ValueError(f"{directory}: tensor {name} is missing")
        if name not in expected:
            raise ValueError(f"{directory}: unexpected tensor {name}")
        file, key = stored[name]
        (dtype, shape, _), right = file.entries[key], list(orient(layout, name, expected[name]).shape)
        if shape != right:
            raise ValueError(f"{directory}: tensor {name} has shape {shape}, config.json asks for {right}")
        if not dtype.is_floating_point:
            raise ValueError(
                f"{directory}: tensor {name} is {dtype}, not floating point; quantised weights are not read"
            )
    tensors = {name: orient(layout, name, file.read(key)) for name, (file, key) in stored.items()}
    model.load_state_dict({name: t.to(torch.float32).contiguous() for name, t in tensors.items()}, assign=True)
    return model.requires_grad_()


def stored_tensors(directory, config, layout):
    """Our name → (file, name there) of every tensor in the directory's files; a tied head is left out."""
    stored = {}
    for path, listed in weight_files(directory).items():
        file = Safetensors(path, min(MAX_HEADER, 2**20 + 2**13 * config.n_layer))  # an entry takes some hundred bytes
        if listed is not None and listed != file.entries.keys():
            name = min(listed ^ file.entries.keys())
            wrong = "missing" if name in listed else "not listed for this file by the index"
            raise ValueError(f"{path}: tensor {name} is {wrong}")
        for key in file.entries:
            name = key.removeprefix(layout.prefix)
            if re.fullmatch(layout.buffers, name):
                continue
            if name in stored:
                raise ValueError(f"{directory}: tensor {name} appears twice, with and without {layout.prefix}")
            stored[name] = file, key
    if config.tied and HEAD in stored:
        (file, key), embedding = stored.pop(HEAD), MODELS[type(config)].EMBEDDING + ".weight"
        other, place = stored.setdefault(embedding, (file, key))
        if file.entries[key][:2] != other.entries[place][:2] or not torch.equal(file.read(key), other.read(place)):
            raise ValueError(f"{directory}: {HEAD} differs from {embedding}, which config.json ties it to")
    return stored


def orient(layout, name, tensor):
    """Turn a tensor between the orientation of the file and nn.Linear's; the same step in both directions."""
    return tensor.t() if re.fullmatch(layout.transposed, name) else tensor


def save_model(model, directory, end_of_text=None):
    """Write a model, an adapter merged, as a directory, each file complete or not at all; `end_of_text` is an id."""
    directory, layout = Path(directory), LAYOUTS[type(model)]
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: orient(layout, name, tensor.cpu()) for name, tensor in merged(model)}
    named = {name if name == HEAD else layout.prefix + name: tensor for name, tensor in tensors.items()}
    write_safetensors(directory / "model.safetensors", named)
    config = as_json(model.config, end_of_text)
    generation = {"bos_token_id": config["bos_token_id"], "eos_token_id": end_of_text, "pad_token_id": end_of_text}
    for name, content in (("generation_config.json", generation), ("config.json", config)):  # config.json comes last
        write_text(directory / name, json.dumps(content, indent=2) + "\n")


def model_fingerprint(model, whole=lambda tensor: tensor):
    """SHA-256 of the architecture and the weights: all that decides what a model computes, on any device.

    Weights count as float32 where less holds them, an adapter as merged where it is on; `whole` as for `merged`.
    """
    decides = [(field.name, getattr(model.config, field.name)) for field in fields(model.config) if field.compare]
    digest = hashlib.sha256(f"{type(model).__name__} {decides}\n".encode())
    for name, tensor in merged(model, whole):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
