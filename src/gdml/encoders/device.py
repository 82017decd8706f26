"""Devices by name, and their precision."""

from typing import Literal

import torch

from gdml._errors import did_you_mean

_KINDS = ("auto", "cpu", "cuda", "mps")
Precision = Literal["auto", "bf16", "fp32"]


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Device by name.

    Parameters
    ----------
    device
        ``"auto"`` for the best available, or ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.

    Returns
    -------
    The device.

    Raises
    ------
    ValueError
        If the name is unknown or this machine has no such device.
    """
    kind, _, index = str(device).partition(":")
    if kind not in _KINDS or (index and not index.isdigit()):
        raise ValueError(f"`device` is {str(device)!r}. {did_you_mean(kind, _KINDS)}")
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind == "auto":
        kind = next(k for k in ("cuda", "mps", "cpu") if available[k])
    if int(index or 0) >= available[kind]:
        usable = [k for k in available if available[k]]
        raise ValueError(
            f"`device` is {str(device)!r}, but torch sees {available[kind]} of these; use one of {usable}."
        )
    return torch.device(kind, int(index)) if index and kind != "cpu" else torch.device(kind)


def use_bf16(device: torch.device, precision: Precision = "auto") -> bool:
    """Whether to compute in bfloat16.

    Parameters
    ----------
    device
        Device of the computation.
    precision
        ``"bf16"``, ``"fp32"``, or ``"auto"`` for bfloat16 where the device has instructions for it.

    Returns
    -------
    True for bfloat16.

    Raises
    ------
    ValueError
        If ``precision`` is unknown.
    """
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"`precision` is {precision!r}. {did_you_mean(precision, ('auto', 'bf16', 'fp32'))}")
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public names for these
    return device.type == "cpu" and any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
