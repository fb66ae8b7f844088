"""A checkpoint's table of contents as JSON: which tensors there are, and where each process's pieces of them lie.

`torch.distributed.checkpoint` writes and reads the tensors, and would pickle this table, which can execute when it is
read. Here it is data: the name of a tensor → its dtype, its shape and its pieces, and of each piece its place in the
tensor and in a file of the same directory. Of the tensors' own files PyTorch reads nothing but weights.
"""

import json
import threading
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as records

from dpo_min.system.files import read_json, write_text

CONTENTS = ".metadata"
DTYPES = {str(kind).removeprefix("torch."): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}


class Writer(dcp.FileSystemWriter):
    """Writes the tensors as PyTorch does, and the table of contents as JSON."""

    def write_data(self, plan, planner):
        """As PyTorch's, but its threads have ended, and what goes wrong in one is raised; there it is only printed."""
        failed, shown, others = [], threading.excepthook, {*threading.enumerate()}
        threading.excepthook = lambda thread: failed.append(thread.exc_value)
        try:
            written = super().write_data(plan, planner)
        finally:
            for thread in {*threading.enumerate()} - others:
                thread.join()
            threading.excepthook = shown
        if failed:
            raise failed[0]
        return written

    def finish(self, metadata, results):
        """In the first process, which knows of all: write the table."""
        places = {result.index: result.storage_data for share in results for result in share}
        table = {}
        for name, entry in metadata.state_dict_metadata.items():
            pieces = [[[*c.offsets], [*c.sizes], *place_of(places, name, c.offsets)] for c in entry.chunks]
            dtype = str(entry.properties.dtype).removeprefix("torch.")
            table[name] = {"dtype": dtype, "shape": [*entry.size], "pieces": pieces}
        write_text(Path(self.path) / CONTENTS, json.dumps(table, indent=0))


def place_of(places, name, offsets):
    """(file, first byte, bytes) of the piece of a tensor at `offsets`."""
    place = places[records.MetadataIndex(name, offsets)]
    return place.relative_path, place.offset, place.length


class Reader(dcp.FileSystemReader):
    """Reads what `Writer` wrote; its `contents` are read, once, when it is made."""

    def __init__(self, path):
        super().__init__(path)
        self.contents = read_contents(Path(path) / CONTENTS)

    def read_metadata(self, *args, **kwargs):
        """The table of contents, which PyTorch asks for."""
        return self.contents


def read_contents(path):
    """A table of contents; ValueError, LookupError or TypeError where it is not one."""
    entries, places = {}, {}
    for name, entry in read_json(path).items():
        pieces = []
        for offsets, sizes, file, start, length in entry["pieces"]:
            whole = all(type(n) is int and 0 <= n < 2**63 for n in (*offsets, *sizes, start, length))
            if not whole or not isinstance(file, str) or Path(file).name != file:
                raise ValueError(f"{file!r} is not a file in the same directory, or not read from there")
            offsets = torch.Size(offsets)
            pieces.append(records.ChunkStorageMetadata(offsets, torch.Size(sizes)))
            places[records.MetadataIndex(name, offsets)] = filesystem._StorageInfo(file, start, length)
        kind = records.TensorProperties(dtype=DTYPES[entry["dtype"]])
        entries[name] = records.TensorStorageMetadata(kind, torch.Size(entry["shape"]), pieces)
    return records.Metadata(entries, storage_data=places)
