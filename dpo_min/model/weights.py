"""The model directory, in the ecosystem's GPT-2 layout, both ways.

`config.json` has GPT-2's keys; `model.safetensors` has GPT-2's tensor names and orientation (its four
projections are stored input × output); `generation_config.json` tells the ecosystem's samplers which token
ends a text. The safetensors container is eight bytes that give the length of a JSON header, the header, which
gives each tensor's dtype, shape and place, and raw bytes: data, never code.
"""

import hashlib
import json
import math
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from dpo_min.model.config_json import as_json, load_config
from dpo_min.model.gpt import GPT
from dpo_min.system.files import read_json, write_atomically

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MODELS = {model.CONFIG: model for model in (GPT,)}
MAX_HEADER = 2**24  # bytes; those of GPT-2 XL take 2^17, and Python needs up to 30 times as much
PREFIX = "transformer."
# Stored input × output where nn.Linear keeps output × input.
TRANSPOSED = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
# Causal masks that early GPT-2 files carry; they are no parameters.
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def load_model(directory):
    """The GPT of a model directory, float32, on the CPU.

    Raises:
        ValueError: the directory, its config or a tensor is missing, damaged or not a GPT-2's; the
            message names the file and the tensor.
    """
    directory = Path(directory)
    config = load_config(directory)
    tensors = {}
    for name, tensor in load_tensors(directory, most_bytes(config)).items():
        name = name.removeprefix(PREFIX)
        if name in tensors:
            raise ValueError(f"{directory}: tensor {name} appears with and without the prefix {PREFIX}")
        if not BUFFERS.fullmatch(name):
            tensors[name] = tensor
    head = tensors.pop("lm_head.weight", None) if config.tied else None
    if head is not None and "wte.weight" in tensors and not torch.equal(head, tensors["wte.weight"]):
        raise ValueError(f"{directory}: lm_head.weight differs from wte.weight; only a tied head is supported")
    if config.n_layer > len(tensors):  # before a network of that many layers is built
        raise ValueError(f"{directory}: config.json has n_layer {config.n_layer}, the file {len(tensors)} tensors")
    try:
        with torch.device("meta"):  # shapes without memory
            model = MODELS[type(config)](config)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{directory}: config.json has sizes that no tensor can have") from error
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            raise ValueError(f"{directory}: tensor {name} is missing")
        if name not in expected:
            raise ValueError(f"{directory}: unexpected tensor {name}")
        tensors[name] = orient(name, tensors[name])
        if tensors[name].shape != expected[name].shape:
            shapes = [list(orient(name, t).shape) for t in (tensors[name], expected[name])]
            raise ValueError(f"{directory}: tensor {name} has shape {shapes[0]}, config.json asks for {shapes[1]}")
        if not tensors[name].is_floating_point():
            raise ValueError(f"{directory}: tensor {name} is {tensors[name].dtype}, not floating point")
    parameters = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
    model.load_state_dict(parameters, assign=True)
    return model.requires_grad_()


def save_model(model, directory, end_of_text=None):
    """Write a GPT as a model directory, each file complete or not at all; `end_of_text` is its token's id."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = as_json(model.config, end_of_text)
    tensors = {name: orient(name, tensor) for name, tensor in model.state_dict().items()}
    tensors = {name if name.startswith("lm_head") else PREFIX + name: tensor for name, tensor in tensors.items()}
    write_safetensors(directory / "model.safetensors", tensors)
    generation = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end_of_text)
    for name, content in (("generation_config.json", generation), ("config.json", config)):  # config.json comes last
        with write_atomically(directory / name) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")


def model_fingerprint(model):
    """SHA-256 of the architecture and the weights: all that decides what a model computes, on any device."""
    decides = [(field.name, getattr(model.config, field.name)) for field in fields(model.config) if field.compare]
    digest = hashlib.sha256(f"{type(model).__name__} {decides}\n".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def orient(name, tensor):
    """Turn a tensor between GPT-2's orientation and nn.Linear's; the same step in both directions."""
    return tensor.t() if TRANSPOSED.fullmatch(name) and tensor.dim() == 2 else tensor


def most_bytes(config):
    """An upper bound of the bytes of a model of these sizes: float64, with a second head and with causal masks."""
    C, T, V, L = config.n_embd, config.block_size, config.vocab_size, config.n_layer
    return 8 * (config.parameters() + V * C + L * (T * T + 1)) + MAX_HEADER


def load_tensors(directory, most):
    """Name → tensor, from model.safetensors or from the shards that its index lists; no file larger than `most`."""
    path, index_path = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if path.exists():
        return read_safetensors(path, most)
    if not index_path.exists():
        raise ValueError(f"{directory}: holds no model.safetensors")
    shards = read_json(index_path).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{index_path}: weight_map must map tensor names to files")
    tensors = {}
    for shard in sorted(set(shards.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{index_path}: {shard!r} is not a file in the same directory")
        for name, tensor in read_safetensors(directory / shard, most).items():
            if shards.get(name) != shard:
                raise ValueError(f"{directory / shard}: tensor {name} is not listed for this file by the index")
            tensors[name] = tensor
    for name, shard in shards.items():
        if name not in tensors:
            raise ValueError(f"{directory / shard}: tensor {name} is missing")
    return tensors


def read_safetensors(path, most=math.inf):
    """Name → tensor of a safetensors file of at most `most` bytes, read through a memory map.

    Raises:
        ValueError: anything but a whole, well-formed file that fits into memory; the message names the tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"{path}: {size} bytes are more than a model of config.json's sizes has")
    raw = np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
    length = int.from_bytes(raw[:8].tobytes(), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER):
        raise ValueError(f"{path}: not a safetensors file, or cut short: no room for its header")
    data = raw[8 + length :]
    tensors, spans = {}, []
    for name, entry in parse_header(path, raw[8 : 8 + length].tobytes()).items():
        dtype, shape, (begin, end) = parse_entry(path, name, entry)
        if end > len(data):
            raise ValueError(f"{path}: tensor {name} ends at byte {end} of {len(data)}; is the file cut short?")
        if end - begin != dtype.itemsize * math.prod(shape):
            raise ValueError(f"{path}: tensor {name}: {end - begin} bytes do not hold {entry['dtype']} {shape}")
        try:
            content = torch.empty(end - begin, dtype=torch.uint8)
        except RuntimeError as error:
            raise ValueError(f"{path}: tensor {name}: no memory for its {end - begin} bytes") from error
        content.numpy()[:] = data[begin:end]
        try:
            tensors[name] = content.view(dtype).view(shape)
        except RuntimeError as error:
            raise ValueError(f"{path}: tensor {name}: no tensor has shape {shape}") from error
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise ValueError(f"{path}: tensor {name} starts at byte {begin}, but the one before ends at {position}")
        position = end
    if position != len(data):
        raise ValueError(f"{path}: {len(data) - position} bytes after the last tensor")
    return tensors


def parse_header(path, header):
    """The header's entries by tensor name, without `__metadata__`."""

    def refuse_twins(pairs):
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a name appears twice")
        return dict(pairs)

    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=refuse_twins)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the header is not valid JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: the header is not a JSON object")
    entries.pop("__metadata__", None)
    return entries


def parse_entry(path, name, entry):
    """(dtype, shape, (begin, end)) of one entry of the header."""

    def sizes(value):
        return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)

    if not isinstance(entry, dict) or not sizes(entry.get("shape")) or not sizes(entry.get("data_offsets")):
        raise ValueError(f"{path}: tensor {name}: shape and data_offsets must be lists of sizes")
    offsets = entry["data_offsets"]
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{path}: tensor {name}: data_offsets {offsets} are not a range")
    if not isinstance(entry.get("dtype"), str) or entry["dtype"] not in DTYPES:
        raise ValueError(f"{path}: tensor {name}: unknown dtype {entry.get('dtype')!r}; known: {', '.join(DTYPES)}")
    return DTYPES[entry["dtype"]], entry["shape"], offsets


def write_safetensors(path, tensors):
    """Write name → tensor as a safetensors file, complete or not at all."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": codes[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data starts on a multiple of eight
    with write_atomically(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
