"""Memory that is kept from step to step.

A step of training makes and frees the same large tensors again and again. glibc gives freed memory back to the system,
and every page that it takes again costs a page fault: on a CPU these took longer than the arithmetic on the tensors.
"""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# options of mallopt in malloc.h, with their values while memory is kept, and afterwards
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
_GIVE_BACK = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 1024}


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep freed memory for later tensors inside the block, and give it back to the system at its end.

    It acts on the whole process where the tensors are those of a CPU and memory comes from glibc; elsewhere, or where
    the user has set ``MALLOC_...`` or ``GLIBC_TUNABLES``, it does nothing.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc" or chosen:
        yield
        return
    libc = ctypes.CDLL(None)
    for option, value in _KEEP.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _GIVE_BACK.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
