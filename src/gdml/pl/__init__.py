"""Plots: maps of expression and tissue, scores of genes and models, the shared space, training history."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._ablation import ablation
    from ._benchmark import benchmark
    from ._embedding import embedding
    from ._gene_scores import gene_scores
    from ._history import history
    from ._spatial import spatial_pred
    from ._tissue import tissue
    from ._warrant import warrant

__all__ = ["ablation", "benchmark", "embedding", "gene_scores", "history", "spatial_pred", "tissue", "warrant"]

_MODULES = {name: f"_{name}" for name in __all__} | {"spatial_pred": "_spatial"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
