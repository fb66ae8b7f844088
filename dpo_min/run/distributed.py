"""More than one device: one process each, as `torchrun` starts them. With one process nothing here does anything.

    torchrun --nproc_per_node=8 train.py …           DDP: every process holds the whole model
    torchrun --nproc_per_node=8 train.py … --shard   FSDP: each holds its share of weights, gradients, optimizer state

A step's pairs and the number that their losses are divided by do not depend on the number of processes: each
takes its share of the same list, and the shares of the gradient add up, as those of micro-batches do.
"""

import gc
import os
import signal
import threading
from contextlib import contextmanager, nullcontext

import torch
import torch.distributed as dist
import torch.nn as nn

from dpo_min.data.batch import batch_logps
from dpo_min.model.lora import merged
from dpo_min.system.launcher import processes, rank
from dpo_min.system.program import mistakes
from dpo_min.system.signals import on_signals
from dpo_min.system.streams import say_at_once
from dpo_min.system.text import one_line

PATIENCE = 10  # seconds of waiting for the other processes without a word


@contextmanager
def joined(device):
    """Together with the other processes that torchrun started, if it started any; `device` is "cpu" or "cuda".

    On GPUs NCCL moves what the model computes; a few numbers of a step, kept on the CPU, go by gloo.

    The program ends with one line where there are more processes on this machine than GPUs, or they do not meet.
    """
    if processes() > 1:
        with mistakes():
            start(device)
    try:
        yield
        barrier()  # torchrun stops the others as soon as one ends
    finally:
        if dist.is_initialized():
            gc.collect()  # what FSDP and the mesh still hold of the group, in cycles, would outlive it into the exit
            dist.destroy_process_group()


def start(device):
    """Join the others; ValueError where that cannot be."""
    if device == "cuda":
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"torchrun --nproc_per_node: this machine has {gpus} GPUs, and each process needs its own")
        torch.cuda.set_device(local)  # from here on "cuda" means this one
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    said = threading.Timer(PATIENCE, say_at_once, (2, f"waiting for the other processes at {place}\n"))
    said.start()
    heard = on_signals(signal.SIG_DFL)  # no handler of Python's is called while C++ waits
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    except RuntimeError as error:
        raise ValueError(f"the processes that WORLD_SIZE counts do not meet: {one_line(error, 200)}") from error
    finally:
        said.cancel()
        for number, handler in heard.items():
            signal.signal(number, handler)
    print(f"{processes()} processes on {device}")


def barrier():
    """Wait until every process is here."""
    any_of(False)


def any_of(flag):
    """Whether `flag` holds in any process."""
    if processes() == 1:
        return flag
    flags = torch.tensor(int(flag))  # on the CPU, whatever the device computes meanwhile
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def sums(numbers):
    """Name → number, added up over the processes; a name may be missing in some of them."""
    shares = everyone(numbers)
    names = dict.fromkeys(name for share in shares for name in share)
    return {name: sum(share.get(name, 0) for share in shares) for name in names}


def everyone(thing):
    """What each process has at this place, as a list in the order of their numbers."""
    if processes() == 1:
        return [thing]
    things = [None] * processes()
    dist.all_gather_object(things, thing)
    return things


class Logps(nn.Module):
    """`batch_logps` as a module of its own: DDP and FSDP then see all of a computation that ends beyond the model's."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch, reduce="sum"):
        """Log π(y|x) of every row, as `batch_logps` gives it."""
        return batch_logps(self.model, batch, reduce)


def wrap(model, shard=False):
    """`Logps` of a model, whose gradients are then the mean over the processes; under `shard`, by FSDP.

    FSDP replaces the model's parameters, so its optimizer has to be made afterwards.
    """
    module = Logps(model)
    if processes() == 1:
        return module
    if not shard:
        return nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh  # these two take a second
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.head_weight.device.type, (processes(),))
    for part in (*model.blocks, module):  # what no block holds, the embeddings above all, is gathered with the whole
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return module


def micro_batches(pairs, size):
    """Yield this process's share of a step's pairs in micro-batches of at most `size`: (pairs, weight, the last?).

    Of W processes every one takes every W-th pair, so that all get pairs of like lengths, and all take part in
    equally many micro-batches: a process with nothing left repeats a pair with weight 0. The other weights are W,
    because DDP and FSDP divide the sum of gradients by it.
    """
    world = processes()
    share = pairs[rank() :: world]
    most = -(-len(pairs) // world)  # pairs of the largest share
    for start in range(0, most, size):
        micro = share[start : start + size]
        yield (micro or pairs[:1]), (world if micro else 0), start + size >= most


def sync(module, last):
    """The context of one micro-batch's forward and backward; `last`, whether it is the step's last.

    DDP adds up the gradients with the last one only; FSDP with each, since whole gradients kept in between would
    cost the memory that it is there to save.
    """
    ddp = isinstance(module, nn.parallel.DistributedDataParallel)
    return module.no_sync() if ddp and not last else nullcontext()


def whole(tensor):
    """A tensor as every process sees it: put together where it is sharded, else itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def gather(model):
    """A model with whole weights, an adapter merged, on the CPU where the model is sharded, else the model itself.

    Every process must take part; only the first gets the weights, the others None.
    """
    if not any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        return model if rank() == 0 else None
    tensors = {}
    for name, tensor in merged(model, whole):
        if rank() == 0:
            tensors[name] = tensor.cpu()
    if rank():
        return None
    with torch.device("meta"):  # shapes without memory
        gathered = type(model)(model.config)
    gathered.load_state_dict(tensors, assign=True)
    return gathered
