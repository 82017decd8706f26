"""Encoders by name: every public module of this folder that declares ``ENCODERS`` takes part."""

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module

from ._base import Encoder

_registered: dict[str, Callable[..., Encoder]] = {}


@cache
def _built_in() -> dict[str, Callable[..., Encoder]]:
    package = __package__ or "gdml.encoders"
    found: dict[str, Callable[..., Encoder]] = {}
    for module in pkgutil.iter_modules(import_module(package).__path__):
        if not module.name.startswith("_"):
            found |= getattr(import_module(f"{package}.{module.name}"), "ENCODERS", {})
    return found


def factories() -> dict[str, Callable[..., Encoder]]:
    """Every known name with the function that makes its encoder; registered ones come last and win."""
    return _built_in() | _registered
