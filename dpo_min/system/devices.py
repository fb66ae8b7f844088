"""The device that a program computes on, and how the C library is to treat its memory."""

import ctypes
import os
import platform
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from dpo_min.system.launcher import processes

# Variables by which a person chooses the instructions that the libraries below PyTorch use.
DISPATCH = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA", "NVIDIA_TF32_OVERRIDE")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h

try:
    tempfile.gettempdir()
except OSError:  # PyTorch asks for a place of compiled code there, even where nothing is compiled
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.getcwd())


def choose_device(device, dtype):
    """(device, autocast dtype) for the values of --device and --dtype.

    On CUDA, cuDNN's attention is switched off: it plans for tens of milliseconds at every new shape, and nearly every
    batch has a shape of its own.

    Raises:
        ValueError: the machine does not have the device.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if processes() > 1:
        del there["mps"]  # it has nothing to talk to other processes with
    if device == "auto":
        device = next(name for name in there if there[name])
    if not there[device]:
        names = ", ".join(name for name in there if there[name])
        raise ValueError(f"--device {device} is not there; this machine has {names}")
    if device == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
    if dtype == "auto":
        return device, torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return device, getattr(torch, dtype)


def processor(device):
    """What decides the last bits of what a device computes: its kind, and the instructions that are used of it."""
    chosen = [f"{name}={os.environ[name]}" for name in DISPATCH if os.environ.get(name)]
    if device == "cuda":
        return " ".join([torch.cuda.get_device_name(), *chosen])
    kind = dict.fromkeys(("vendor_id", "cpu family", "model", "CPU implementer", "CPU part"), "")
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            if name.strip() in kind:
                kind[name.strip()] = value.strip()
    words = [platform.machine(), *kind.values(), torch.backends.cpu.get_cpu_capability(), *chosen]
    return " ".join(filter(None, words))


def keep_heap():
    """Tell glibc to keep large freed blocks for the next step: giving them back costs a zero fill a step.

    Linux's C library only; elsewhere nothing happens.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 2**31 - 1)
