"""The checkpoint of a run: written by any number of processes, each its share, and read by any other number.

`checkpoint/step-N/` holds the tensors in PyTorch's own format (`torch.distributed.checkpoint`) and the plain
numbers in state.json. PyTorch pickles that format's table of contents; it is read here as data, never as code.
"""

import dataclasses
import enum
import json
import os
import pathlib
import pickle
import shutil
import warnings
from pathlib import Path

import torch

from dpo_min import distributed
from dpo_min.files import read_json, write_atomically

# torch.distributed.checkpoint takes a second to import, so it is imported where it is used.


def save_checkpoint(directory, parts, state):
    """Write checkpoint/step-N, then remove the one before it: at any instant one is whole.

    Every process must take part.

    Args: parts, a `policy`, its `optimizer`, a gradient `scaler`, and a `reference` if that changes too; state, plain
        numbers, `step` among them, and `totals`, which are added up over the processes.

    Raises:
        OSError: it cannot be written.
    """
    import torch.distributed.checkpoint as dcp

    directory = Path(directory) / "checkpoint"
    path = directory / f"step-{state['step']:08d}"
    partial = path.with_suffix(".partial")
    state = state | {"totals": distributed.sums(state["totals"]), "scaler": parts["scaler"].state_dict()}
    if distributed.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    tensors = {}
    for name, parameter in parts["policy"].named_parameters():
        tensors[name] = parameter.detach()
        for key, value in parts["optimizer"].state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value
    tensors |= reference_tensors(parts)
    try:
        with warnings.catch_warnings(action="ignore"):  # that there is one process
            dcp.save(tensors, storage_writer=dcp.FileSystemWriter(partial))
    except dcp.api.CheckpointException as error:
        raise OSError(f"{path}: cannot be written: {reason(error)}") from error
    if distributed.rank() == 0:
        with write_atomically(partial / "state.json") as file:
            file.write(json.dumps(state).encode())
        os.replace(partial, path)
        for old in directory.glob("step-*"):
            if old != path:
                shutil.rmtree(old)


def load_checkpoint(directory, parts):
    """Put the newest checkpoint into `parts` and return its state, or None where there is none.

    What the optimizer's groups hold is not in it: the configuration determines it.

    Raises:
        OSError: it is damaged, or of another model.
    """
    import torch.distributed.checkpoint as dcp

    paths = [path for path in (Path(directory) / "checkpoint").glob("step-*") if path.suffix != ".partial"]
    if not paths:
        return None
    path, optimizer, tensors, places = max(paths), parts["optimizer"], {}, {}
    try:
        state = read_json(path / "state.json")
        reader, planner = reader_of_data(path)
        contents = reader.read_metadata().state_dict_metadata
        for name, parameter in parts["policy"].named_parameters():
            tensors[name] = parameter.detach()
            for entry in contents:
                owner, _, key = entry.partition("/")
                if owner == name and key:
                    moment = contents[entry].size == parameter.size()  # or a count of steps
                    tensors[entry] = torch.zeros_like(tensors[name]) if moment else torch.zeros(())
                    places[entry] = parameter, key
        tensors |= reference_tensors(parts)
        with warnings.catch_warnings(action="ignore"):
            dcp.load(tensors, storage_reader=reader, planner=planner)
        for entry, (parameter, key) in places.items():
            optimizer.state[parameter][key] = tensors[entry]
        parts["scaler"].load_state_dict(state.pop("scaler"))
        state["totals"] = {} if distributed.rank() else state["totals"]
    except (Exception, dcp.api.CheckpointException) as error:
        raise OSError(f"{path}: damaged, or of another model ({reason(error)}); it cannot be resumed") from error
    return state


def reference_tensors(parts):
    """Name → tensor of a reference that follows the policy."""
    reference = parts.get("reference")
    return {f"reference/{name}": p.detach() for name, p in reference.named_parameters()} if reference else {}


def reason(error):
    """The class of an error; of the first one inside, where processes report together."""
    failures = list(getattr(error, "failures", {}).values())
    return type(failures[0][0] if failures else error).__name__


class Contents(pickle.Unpickler):
    """The table of contents: records of names, shapes, dtypes and places, and nothing that computes."""

    def find_class(self, module, name):
        """The records that PyTorch writes; UnpicklingError for anything else."""
        known = {
            ("torch", "Size"): torch.Size,
            ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
            (pathlib.PosixPath.__module__, "PosixPath"): pathlib.PurePath,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"):
            found = super().find_class(module, name)
            if isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, enum.Enum)):
                return found
        raise pickle.UnpicklingError(f"{module}.{name}")


def reader_of_data(path):
    """(reader, planner) for `torch.distributed.checkpoint.load` that read tensors and nothing that could execute."""
    import torch.distributed.checkpoint as dcp

    class Reader(dcp.FileSystemReader):
        def read_metadata(self, *args, **kwargs):
            with open(Path(self.path) / ".metadata", "rb") as file:
                return Contents(file).load()

    class Planner(dcp.DefaultLoadPlanner):
        def load_bytes(self, read_item, value):
            raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is no tensor")

    return Reader(path), Planner()
