"""The checkpoint of a run: written by any number of processes, each its share, and read by any other number.

`checkpoint/step-N/` holds the tensors in PyTorch's own format (`torch.distributed.checkpoint`), a table of contents of
our own (contents.py), the plain numbers in state.json, and in manifest.json, written last, the SHA-256 of each of these
files. The last two are kept.
"""

import errno
import json
import os
import re
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from dpo_min.run import distributed
from dpo_min.system.files import make_directory, read_json, sha256, sync, write_text
from dpo_min.system.text import one_line

MANIFEST = "manifest.json"
NAME = re.compile(r"step-\d{8,}")

# torch.distributed.checkpoint, and contents.py with it, takes a second to import, so it is imported where it is used.


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

    for name, parameter in trained(parts["policy"]):
        size = torch.linalg.vector_norm(parameter.detach())  # as check_step's; 20 times as fast here as the largest
        if not distributed.whole(size).isfinite():
            raise FloatingPointError(f"the weights are not finite: {name}; no checkpoint is made of them")
    directory = Path(directory) / "checkpoint"
    path = directory / f"step-{state['step']:08d}"
    partial = path.with_name(f"{path.name}.dpo_min-{state['step'] % 10**8:08d}.partial")  # one name for all processes
    state = state | {"totals": distributed.sums(state["totals"]), "scaler": parts["scaler"].state_dict()}
    tensors = tensors_of(parts)
    try:
        write_tensors(partial, tensors)
        if distributed.rank() == 0:
            put_in_place(partial, path, state)
    except (OSError, dcp.api.CheckpointException) as error:
        # PyTorch's writer says of a full disk only where it stopped.
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        full = shutil.disk_usage(directory.parent).free < size + 2**18
        shutil.rmtree(partial, ignore_errors=True)
        why = os.strerror(errno.ENOSPC) if full else reason(error)
        raise OSError(f"{path}: cannot be written: {why}; the checkpoint before it is intact") from error


def tensors_of(parts):
    """Name → tensor of the weights and of what the optimizer keeps of each."""
    tensors = {}
    for name, parameter in trained(parts["policy"]):
        tensors[name] = parameter.detach()
        for key, value in parts["optimizer"].state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value
    return tensors | reference_tensors(parts)


def write_tensors(partial, tensors):
    """Write each process's share of the tensors into a directory that the first one makes."""
    import torch.distributed.checkpoint as dcp

    from dpo_min.run.contents import Writer

    if distributed.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        make_directory(partial)
    distributed.barrier()
    with warnings.catch_warnings(action="ignore"):  # that there is one process
        dcp.save(tensors, storage_writer=Writer(partial, thread_count=2))


def put_in_place(partial, path, state):
    """Complete a checkpoint, give it its name, and remove what it replaces."""
    write_text(partial / "state.json", json.dumps(state))
    seal(partial)
    sync(path.parents[1] / "metrics.jsonl")  # its lines up to this step must not be lost when this is found
    if path.exists():  # a damaged one, or the run would not be here again
        shutil.rmtree(path)
    os.replace(partial, path)
    sync(path.parent)
    prune(path.parent, state["step"])


def seal(path):
    """Write, last of all, a directory's manifest.json with the SHA-256 of every file in it."""
    files = [file for file in sorted(path.iterdir()) if file.name != MANIFEST]
    with ThreadPoolExecutor() as threads:
        hashes = {file.name: digest for file, digest in zip(files, threads.map(sha256, files), strict=True)}
    write_text(path / MANIFEST, json.dumps({"sha256": hashes}, indent=1))


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

    One that is cut short or altered is skipped with a warning, for the one before it. What the optimizer's groups
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


def damage(path, needed=("state.json", ".metadata")):
    """What is wrong with the files of a sealed directory, by its manifest; None if nothing is."""
    try:
        hashes = read_json(path / MANIFEST)["sha256"]
        missing = set(needed) - hashes.keys()
        wrong = [name for name, digest in hashes.items() if Path(name).name != name or sha256(path / name) != digest]
        return f"damaged ({one_line((*missing, *wrong)[0], 100)})" if missing or wrong else None
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        return f"damaged ({error.strerror if isinstance(error, OSError) else one_line(error or MANIFEST, 200)})"


def read_state(path):
    """The plain numbers of a checkpoint; ValueError, LookupError, TypeError or AttributeError where they are not."""
    state = read_json(path / "state.json")
    plain = [state["step"], state["best"], state["overflows"], *state["totals"].values()]
    numbers = all(type(value) in (int, float) for value in plain)
    if not numbers or number(path) != state["step"] or not {"train", "eval"}.issuperset(state["closing"]):
        raise ValueError("state.json")
    return state


def read_checkpoint(path, parts):
    """Put one checkpoint into `parts` and return its state; `Damaged` if it is that, or of another model."""
    import torch.distributed.checkpoint as dcp

    from dpo_min.run.contents import Reader

    optimizer, tensors, places = parts["optimizer"], {}, {}
    try:
        state, reader = read_state(path), Reader(path)
        contents = reader.contents.state_dict_metadata
        for name, parameter in trained(parts["policy"]):
            tensors[name] = parameter.detach()
            for entry in contents:
                owner, _, key = entry.partition("/")
                if owner == name and key:
                    moment = contents[entry].size == parameter.size()  # or a count of steps
                    count = torch.zeros((), device=parameter.device)  # where the fused optimizer looks for it
                    tensors[entry] = torch.zeros_like(tensors[name]) if moment else count
                    places[entry] = parameter, key
        tensors |= reference_tensors(parts)
        with warnings.catch_warnings(action="ignore"):
            dcp.load(tensors, storage_reader=reader)
        optimizer.state.clear()
        for entry, (parameter, key) in places.items():
            optimizer.state[parameter][key] = tensors[entry]
        parts["scaler"].load_state_dict(state.pop("scaler"))
        state["totals"] = {} if distributed.rank() else state["totals"]
    except (Exception, dcp.api.CheckpointException) as error:
        raise Damaged(f"damaged, or of another model ({reason(error)})") from error
    return state


def trained(model):
    """(name, parameter) of what a run changes, and a checkpoint holds: of LoRA, the adapter alone."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def reference_tensors(parts):
    """Name → tensor of a reference that follows the policy."""
    reference = parts.get("reference")
    return {f"reference/{name}": p.detach() for name, p in reference.named_parameters()} if reference else {}


def reason(error):
    """What an error says, in one line; what the first one inside says, where processes report together."""
    failures = list(getattr(error, "failures", {}).values())
    error = failures[0][0] if failures else error
    text = getattr(error, "strerror", None) or one_line(str(error).partition("\n")[0], 200)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
