"""Devices of this machine, and encoders that have their weights here."""

import os
from collections.abc import Iterator
from pathlib import Path

from .doctor import Check

_NVIDIA = Path("/proc/driver/nvidia/version")


def devices() -> Iterator[Check]:
    """Check the CPU, CUDA devices by a small product, and MPS."""
    import psutil
    import torch

    from gdml._cache import shown
    from gdml.encoders.device import use_bf16

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fast = "bf16 (AMX or AVX512-BF16)" if use_bf16(torch.device("cpu")) else "fp32 alone"
    memory = psutil.virtual_memory()
    yield Check("ok", f"CPU: {cores} cores, {fast}, {shown(memory.available)} of {shown(memory.total)} memory free")
    for i in range(torch.cuda.device_count()):
        yield _cuda(i)
    if torch.backends.mps.is_available():
        yield Check("ok", "MPS: available")
    if torch.cuda.device_count():
        return
    if _NVIDIA.exists():
        yield Check(
            "warn",
            f"the machine has an NVIDIA driver, but torch {torch.__version__} sees no device",
            "install a build of torch for its CUDA, see pytorch.org; in a job, ask for a GPU (--gres=gpu:1)",
        )
    elif not torch.backends.mps.is_available():
        yield Check("warn", "no GPU: large encoders are slow", "run on a machine with one, or use --encoder stain")


def _cuda(i: int) -> Check:
    import torch

    from gdml._cache import shown

    try:
        free, total = torch.cuda.mem_get_info(i)
        one = torch.ones(8, 8, device=f"cuda:{i}")
        works = bool((one @ one == 8).all())
    except RuntimeError as error:
        return Check(
            "fail",
            f"cuda:{i} does not compute ({str(error).splitlines()[0]})",
            "install a build of torch for this device and its driver, see pytorch.org",
        )
    if not works:
        return Check("fail", f"cuda:{i} computes a wrong product", "use another device: CUDA_VISIBLE_DEVICES")
    bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32 alone"
    return Check(
        "ok", f"cuda:{i}: {torch.cuda.get_device_name(i)}, {bf16}, {shown(free)} of {shown(total)} memory free"
    )


def encoders() -> Iterator[Check]:
    """Check which encoders have weights in the hub's cache, and whether there is a token to get others."""
    import huggingface_hub

    from gdml.encoders import list_encoders
    from gdml.encoders.pathology import PUBLISHED, find_weights

    for name in list_encoders():
        if name not in (*PUBLISHED, "box"):  # a file of the user's own, which is nowhere to be looked for
            yield Check("ok", f"encoder {name!r} needs no download")
    for name, published in PUBLISHED.items():
        found = find_weights(name)
        if found is not None:
            yield Check("ok", f"encoder {name!r} has weights in {str(found)!r}")
            continue
        yield Check(
            "warn",
            f"encoder {name!r} has no weights here",
            f"ask for access at {published.page}; gdml.encoders.get_encoder({name!r}) then downloads them",
        )
    if huggingface_hub.get_token() is not None:
        yield Check("ok", "a token of the Hugging Face hub is set")
    else:
        yield Check(
            "warn", "no token of the Hugging Face hub, which gated weights need", "set HF_TOKEN, or run `hf auth login`"
        )
