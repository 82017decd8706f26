"""Encoders by name: those in ``ENCODERS`` of the public modules of this folder, and registered ones."""

import inspect
import os
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from gdml._errors import did_you_mean

from ._base import Encoder
from .custom import CustomEncoder
from .timm_models import TimmEncoder

_TIMM = "timm:"
_registered: dict[str, Callable[..., Encoder]] = {}


@cache
def _built_in() -> dict[str, Callable[..., Encoder]]:
    package = __name__.rpartition(".")[0]
    found: dict[str, Callable[..., Encoder]] = {}
    for module in pkgutil.iter_modules(import_module(package).__path__):
        if not module.name.startswith("_"):
            found |= getattr(import_module(f"{package}.{module.name}"), "ENCODERS", {})
    return found


def list_encoders() -> list[str]:
    """Names of the encoders that :func:`get_encoder` makes, without those of timm.

    Returns
    -------
    Sorted names, including registered ones.

    Examples
    --------
    >>> "stain" in list_encoders()
    True
    """
    return sorted(_built_in() | _registered)


def register(name: str, factory: Callable[..., Encoder]) -> None:
    """Register an encoder under a name.

    Parameters
    ----------
    name
        Name for ``encoder=``; an existing one is replaced.
    factory
        Called with the options of :func:`get_encoder`; returns an :class:`Encoder`.

    Raises
    ------
    TypeError
        If ``factory`` cannot be called.
    """
    if not callable(factory):
        raise TypeError(f"`factory` must be callable, found {type(factory).__name__}; pass lambda: encoder.")
    _registered[name] = factory


def get_encoder(
    encoder: str | Path | torch.nn.Module | Callable[[torch.Tensor], torch.Tensor] | Encoder,
    *,
    name: str | None = None,
    **options: Any,
) -> Encoder:
    """Make an encoder from a name, a module or a function.

    Parameters
    ----------
    encoder
        - a name from :func:`list_encoders`: ``"stain"`` needs no weights, ``"box"`` those that you train, and the published
          pathology models ``"uni"``, ``"uni2-h"``, ``"virchow2"``, ``"h-optimus-0"``, ``"h-optimus-1"``, ``"h0-mini"``,
          ``"midnight"``, ``"conch"``, ``"gigapath"`` and ``"phikon-v2"`` need weights, most of them on request from
          their authors, see :class:`~gdml.encoders.pathology.PublishedEncoder`;
        - a timm model, ``"timm:resnet50"`` or its name alone;
        - a :class:`torch.nn.Module` or function from tiles (B, 3, H, W), float32, centred and scaled, to
          tokens (B, T, D) or (B, D), with the options of :class:`CustomEncoder`;
        - an :class:`Encoder`, which is returned as it is.
    name
        Name of the embedding; by default the encoder's own.
    **options
        Options of the encoder. Those made from timm models, published ones too, take ``weights`` (a local file:
        safetensors, or a torch file of tensors), ``pretrained=False`` with ``seed`` (random weights) and timm's own
        arguments.

    Returns
    -------
    The encoder, on the CPU.

    Raises
    ------
    ValueError
        If the name is unknown, an option does not exist, or the weights do not fit.
    TypeError
        If ``encoder`` is none of the above.
    FileNotFoundError
        If the file of weights does not exist.
    PermissionError, ConnectionError
        If weights on the hub are gated or cannot be downloaded.

    Examples
    --------
    >>> get_encoder("stain").dim
    72
    """
    if isinstance(encoder, str | os.PathLike):
        made = _by_name(encoder, options)
    elif isinstance(encoder, Encoder) and not isinstance(encoder, type):
        if options or name is not None:
            raise ValueError(f"`encoder` is made already; pass its name and {sorted(options)} where you make it.")
        return encoder
    elif callable(encoder) and not isinstance(encoder, type):
        made = _make(CustomEncoder, {**options, "function": encoder})
    else:
        raise TypeError(
            f"`encoder` must be a name, a torch module or a function, found {type(encoder).__name__}; "
            "pass an instance, not its class."
        )
    if name is not None:
        made.name = name
    return made


def _by_name(encoder: str | os.PathLike[str], options: dict[str, Any]) -> Encoder:
    factories = _built_in() | _registered
    name = os.fspath(encoder)
    if name in factories:
        return _make(factories[name], options)
    import timm

    if isinstance(encoder, os.PathLike) or Path(name).suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise ValueError(
            f"`encoder` is a file of weights, {name!r}, without an architecture: pass its architecture, "
            f'encoder="timm:vit_base_patch16_224" or "uni", with weights={name!r}.'
        )
    if name.startswith(_TIMM) or timm.is_model(name):
        return _make(TimmEncoder, {**options, "architecture": name.removeprefix(_TIMM)})
    known = [*factories, *timm.list_models()]
    raise ValueError(
        f"`encoder` is {name!r}, which is not known. {did_you_mean(name, known)} "
        "gdml.encoders.list_encoders() lists the built-in ones; any timm model, module or function works too."
    )


def _make(factory: Callable[..., Encoder], options: dict[str, Any]) -> Encoder:
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ValueError(f"`encoder` does not take these options ({error}): {sorted(options)}.") from error
    return factory(**options)
