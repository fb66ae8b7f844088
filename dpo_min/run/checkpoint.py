"""The checkpoint of a run: written by any number of processes, each its share, and read by any other number.

`checkpoint/step-N/` holds the tensors in PyTorch's own format (`torch.distributed.checkpoint`), the plain
numbers in state.json, and in manifest.json, written last, the SHA-256 of each of these files. The last two are kept.
PyTorch pickles that format's table of contents; it is read here as data, never as code.
"""

import dataclasses
import enum
import errno
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import warnings
from pathlib import Path

import torch

from dpo_min.run import distributed
from dpo_min.system.files import read_json, sha256, sync, write_atomically

MANIFEST = "manifest.json"
NAME = re.compile(r"step-\d{8,}")
MAX_CONTENTS = 2**26  # bytes of the table of contents, of which Python makes some thirty times as much

# torch.distributed.checkpoint takes a second to import, so it is imported where it is used.


def save_checkpoint(directory, parts, state):
    """Write checkpoint/step-N and keep the one before it: at any instant one is whole, and on the disk.

    Every process must take part.

    Args: parts, a `policy`, its `optimizer`, a gradient `scaler`, and a `reference` if that changes too; state, plain
        numbers, `step` among them, and `totals`, which are added up over the processes.

    Raises:
        FloatingPointError: a weight is not finite; nothing is written.
        OSError: it cannot be written; what was there before is untouched.
    """
    import torch.distributed.checkpoint as dcp

    for name, parameter in parts["policy"].named_parameters():
        if not distributed.whole(parameter.detach().isfinite().all()):
            raise FloatingPointError(f"the weights are not finite: {name}; no checkpoint is made of them")
    directory = Path(directory) / "checkpoint"
    path = directory / f"step-{state['step']:08d}"
    partial = path.with_suffix(".partial")
    state = state | {"totals": distributed.sums(state["totals"]), "scaler": parts["scaler"].state_dict()}
    tensors = {}
    for name, parameter in parts["policy"].named_parameters():
        tensors[name] = parameter.detach()
        for key, value in parts["optimizer"].state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value
    tensors |= reference_tensors(parts)
    try:
        if distributed.rank() == 0:
            for left in directory.glob("*.partial"):
                shutil.rmtree(left)
            partial.mkdir(parents=True)
        distributed.barrier()
        with warnings.catch_warnings(action="ignore"):  # that there is one process
            dcp.save(tensors, storage_writer=dcp.FileSystemWriter(partial))
        if distributed.rank() == 0:
            seal(partial, state)
            sync(directory.parent / "metrics.jsonl")  # its lines up to this step must not be lost when this is found
            if path.exists():  # a damaged one, or the run would not be here again
                shutil.rmtree(path)
            os.replace(partial, path)
            sync(directory)
            prune(directory, state["step"])
    except (OSError, dcp.api.CheckpointException) as error:
        # PyTorch's writer says of a full disk only where it stopped.
        free, size = (
            shutil.disk_usage(directory.parent).free,
            sum(x.numel() * x.element_size() for x in tensors.values()),
        )
        why = os.strerror(errno.ENOSPC) if free < size + 2**18 else reason(error)
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(f"{path}: cannot be written: {why}; the checkpoint before it is intact") from error


def seal(path, state):
    """Write state.json, and then, last of all, manifest.json with the SHA-256 of every file."""
    with write_atomically(path / "state.json") as file:
        file.write(json.dumps(state).encode())
    hashes = {file.name: sha256(file) for file in sorted(path.iterdir()) if file.name != MANIFEST}
    with write_atomically(path / MANIFEST) as file:
        file.write(json.dumps({"sha256": hashes}, indent=1).encode())


def prune(directory, step):
    """Keep the checkpoint of `step` and the one before it. Any after it are damaged: the run went on from before."""
    paths = found(directory)
    kept = [path for path in paths if number(path) <= step][-2:]
    for path in paths:
        if path not in kept:
            shutil.rmtree(path)


def found(directory):
    """The checkpoints in a directory, whole or not, in the order of their steps."""
    return sorted((path for path in directory.glob("step-*") if NAME.fullmatch(path.name)), key=number)


def number(path):
    """The step of a checkpoint."""
    return int(path.name.removeprefix("step-"))


def load_checkpoint(directory, parts, warn=print):
    """Put the newest whole checkpoint into `parts` and return its state, or None where there is none at all.

    One that is cut short or altered is passed over with a warning, for the one before it. What the optimizer's groups
    hold is not in it: the configuration determines it.

    Raises:
        OSError: there are some, and each is damaged, or of another model.
    """
    paths = distributed.everyone(found(Path(directory) / "checkpoint"))[0]
    for path in reversed(paths):
        trouble = distributed.everyone(damage(path) if distributed.rank() == 0 else None)[0]
        try:
            if trouble is None:
                return read_checkpoint(path, parts)
        except Damaged as error:
            trouble = str(error)
        if path != paths[0]:
            warn(f"{path}: {trouble}; the checkpoint before it is used")
    if paths:
        raise OSError(f"{path}: {trouble}; it cannot be resumed, and there is no checkpoint before it")
    return None


class Damaged(Exception):
    """A checkpoint that cannot be used; the message is the reason."""


def damage(path):
    """What is wrong with the files of a checkpoint, by its manifest; None if nothing is."""
    try:
        hashes = read_json(path / MANIFEST)["sha256"]
        missing = {"state.json", ".metadata"} - hashes.keys()
        wrong = [name for name, digest in hashes.items() if Path(name).name != name or sha256(path / name) != digest]
        return f"damaged ({(*missing, *wrong)[0]})" if missing or wrong else None
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        return f"damaged ({error.strerror if isinstance(error, OSError) else error or MANIFEST})"


def read_checkpoint(path, parts):
    """Put one checkpoint into `parts` and return its state; `Damaged` if it is that, or of another model."""
    import torch.distributed.checkpoint as dcp

    optimizer, tensors, places = parts["optimizer"], {}, {}
    try:
        state = read_json(path / "state.json")
        plain = [state["step"], state["best"], state["overflows"], *state["totals"].values()]
        numbers = all(type(value) in (int, float) for value in plain)
        if not numbers or number(path) != state["step"] or not {"train", "eval"}.issuperset(state["closing"]):
            raise ValueError("state.json")
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
        optimizer.state.clear()
        for entry, (parameter, key) in places.items():
            optimizer.state[parameter][key] = tensors[entry]
        parts["scaler"].load_state_dict(state.pop("scaler"))
        state["totals"] = {} if distributed.rank() else state["totals"]
    except (Exception, dcp.api.CheckpointException) as error:
        raise Damaged(f"damaged, or of another model ({reason(error)})") from error
    return state


def reference_tensors(parts):
    """Name → tensor of a reference that follows the policy."""
    reference = parts.get("reference")
    return {f"reference/{name}": p.detach() for name, p in reference.named_parameters()} if reference else {}


def reason(error):
    """What an error says, in one line; what the first one inside says, where processes report together."""
    failures = list(getattr(error, "failures", {}).values())
    error = failures[0][0] if failures else error
    text = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


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
                content = file.read(MAX_CONTENTS + 1)
            if len(content) > MAX_CONTENTS:
                raise pickle.UnpicklingError("the table of contents is too large")
            metadata = Contents(io.BytesIO(content)).load()
            for place in metadata.storage_data.values():
                if Path(place.relative_path).name != place.relative_path:
                    raise pickle.UnpicklingError(f"{place.relative_path} is not a file in the same directory")
            return metadata

    class Planner(dcp.DefaultLoadPlanner):
        def load_bytes(self, read_item, value):
            raise pickle.UnpicklingError(f"{read_item.dest_index.fqn} is no tensor")

    return Reader(path), Planner()
