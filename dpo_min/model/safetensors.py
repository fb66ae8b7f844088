"""The safetensors container: eight bytes that give the length of a JSON header, the header, raw bytes. Data, not code.

The header gives each tensor's dtype, shape and place. It is checked as a whole before a tensor is read.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
import torch

from dpo_min.system.files import write_atomically

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}
MAX_HEADER = 2**24  # bytes; those of GPT-2 XL take 2^17, and Python needs up to 30 times as much
MAX_DIMENSIONS = 8
WRITTEN = 1 / 8  # of a file's bytes that are on the disk at least; compression alone does not bring weights below
POINTER = b"version https://git-lfs"


class Safetensors:
    """A file that is whole and well-formed; `entries` is name → (dtype, shape, (begin, end)).

    Raises:
        ValueError: it is not; the message names the file and the tensor.
    """

    def __init__(self, path, most=MAX_HEADER):
        """`most` is the longest header, in bytes."""
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{path}: no such file")
        try:
            size = self.path.stat().st_size
            raw = np.memmap(self.path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
        start = raw[: len(POINTER)].tobytes()
        if start == POINTER:
            raise ValueError(f"{path}: a pointer of git-lfs, not the file that it stands for: run `git lfs pull` there")
        if start[:4] == b"GGUF":
            raise ValueError(f"{path}: a GGUF file under another name; its weights are to be converted to safetensors")
        length = int.from_bytes(start[:8], "little")
        if size < 8 or length > min(size - 8, most):
            raise ValueError(f"{path}: not a safetensors file, or cut short: no room for its header")
        if size > 2**20 and hollow(self.path, size):
            raise ValueError(f"{path}: most of its {size} bytes were never written; was a download broken off?")
        self.data = raw[8 + length :]
        header = parse_header(path, raw[8 : 8 + length].tobytes())
        self.entries = {name: parse_entry(path, name, entry) for name, entry in header.items()}
        self.check_places()

    def check_places(self):
        """The tensors fill the data, without gaps and overlaps."""
        position = 0
        for name, (dtype, shape, (begin, end)) in sorted(self.entries.items(), key=lambda item: (item[1][2], item[0])):
            if end > len(self.data):
                raise ValueError(f"{self.path}: tensor {name} ends at byte {end} of {len(self.data)}; is it cut short?")
            if end - begin != dtype.itemsize * math.prod(shape):
                raise ValueError(f"{self.path}: tensor {name}: {end - begin} bytes do not hold {dtype} {shape}")
            if begin != position:
                raise ValueError(f"{self.path}: tensor {name} starts at byte {begin}, where {position} is the next")
            position = end
        if position != len(self.data):
            raise ValueError(f"{self.path}: {len(self.data) - position} bytes after the last tensor")

    def read(self, name):
        """One tensor, copied out of the file."""
        dtype, shape, (begin, end) = self.entries[name]
        try:
            content = torch.empty(end - begin, dtype=torch.uint8)
        except RuntimeError as error:
            raise ValueError(f"{self.path}: tensor {name}: no memory for its {end - begin} bytes") from error
        content.numpy()[:] = self.data[begin:end]
        try:
            return content.view(dtype).view(shape)
        except RuntimeError as error:
            raise ValueError(f"{self.path}: tensor {name}: no tensor has shape {shape}") from error


def hollow(path, size):
    """Whether a file is a few bytes and a hole: it would be small on the disk and huge in memory."""
    with open(path, "rb") as file:
        blocks = getattr(os.fstat(file.fileno()), "st_blocks", size)  # of 512 bytes; some systems do not say
        holes = hasattr(os, "SEEK_HOLE") and os.lseek(file.fileno(), 0, os.SEEK_HOLE) < size
    return holes and 512 * blocks < WRITTEN * size


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

    def sizes(value, most):
        return isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n < 2**63 for n in value)

    if not isinstance(entry, dict) or not sizes(entry.get("shape"), MAX_DIMENSIONS):
        raise ValueError(f"{path}: tensor {name}: shape must be a list of at most {MAX_DIMENSIONS} sizes")
    offsets = entry.get("data_offsets")
    if not sizes(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{path}: tensor {name}: data_offsets are not a range")
    if not isinstance(entry.get("dtype"), str) or entry["dtype"] not in DTYPES:
        known = ", ".join(DTYPES)
        raise ValueError(f"{path}: tensor {name}: dtype {str(entry.get('dtype'))[:20]!r} is not supported: {known} are")
    return DTYPES[entry["dtype"]], entry["shape"], tuple(offsets)


def read_safetensors(path):
    """Name → tensor; ValueError where the file is not whole, well-formed, and small enough for the memory."""
    file = Safetensors(path)
    return {name: file.read(name) for name in file.entries}


def write_safetensors(path, tensors):
    """Write name → tensor as a safetensors file, complete or not at all."""
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header, position = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data starts on a multiple of eight
    with write_atomically(path) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
