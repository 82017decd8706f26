"""Names of devices, and what their hardware can do."""

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
        ``"auto"`` for the best that is there, or ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.

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
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind == "auto":
        kind = next(k for k in ("cuda", "mps", "cpu") if there[k])
    if int(index or 0) >= there[kind]:
        has = [k for k in there if there[k]]
        raise ValueError(f"`device` is {str(device)!r}, but torch sees {there[kind]} of these; use one of {has}.")
    return torch.device(kind, int(index)) if index and kind != "cpu" else torch.device(kind)


def use_bf16(device: torch.device, precision: Precision = "auto") -> bool:
    """Whether to compute in bfloat16: where asked for, or (``"auto"``) where ``device`` multiplies it natively.

    Parameters
    ----------
    device
        Where it is computed.
    precision
        ``"auto"``, ``"bf16"`` or ``"fp32"``.

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
    # torch has no public name for these yet
    return device.type == "cpu" and any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )
