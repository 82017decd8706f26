"""Preprocessing: tiles, embeddings, normalised expression and the gene panel."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gdml.spots.features import load_features

    from ._embed import embed
    from ._grid import grid
    from ._normalize import normalize
    from ._select_genes import select_genes
    from ._tile import tile

__all__ = ["embed", "grid", "load_features", "normalize", "select_genes", "tile"]


def __getattr__(name: str) -> Any:
    if name == "load_features":
        return import_module("gdml.spots.features").load_features
    if name in __all__:
        return getattr(import_module(f"._{name}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
