"""The device that a program computes on, and how the C library is to treat its memory."""

import ctypes
import platform
import sys

import torch

from dpo_min.system.launcher import processes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def choose_device(device, dtype):
    """(device, autocast dtype) for the values of --device and --dtype.

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
    if dtype == "auto":
        return device, torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return device, getattr(torch, dtype)


def keep_heap():
    """Tell glibc to keep large freed blocks for the next step: giving them back costs a zero fill a step.

    Linux's C library only; elsewhere nothing happens.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 2**31 - 1)
