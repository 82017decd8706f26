"""gdml: spatial gene expression from H&E histology, on AnnData.

The namespaces are loaded when they are first used, so that ``import gdml`` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._settings import settings

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "conformal",
    "datasets",
    "encoders",
    "expression",
    "features",
    "io",
    "load",
    "metrics",
    "models",
    "pl",
    "pp",
    "settings",
    "slides",
    "tl",
    "training",
]

_NAMESPACES = {*__all__} - {"__version__", "load", "settings"}

if TYPE_CHECKING:
    from . import conformal, datasets, encoders, expression, features, io, metrics, models, pl, pp, slides, tl, training
    from .training.trained import load


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return import_module(f".{name}", __name__)
    if name == "load":
        return import_module(".training.trained", __name__).load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
