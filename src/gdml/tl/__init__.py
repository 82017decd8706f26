"""Tools: train a model, predict, evaluate, compare, retrieve."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._ablate import ablate
    from ._comparison import Comparison
    from ._cross_validate import cross_validate
    from ._evaluate import evaluate
    from ._fit import fit
    from ._load_comparison import load_comparison
    from ._predict import predict
    from ._predict_slides import predict_slides
    from ._retrieve import retrieve

__all__ = [
    "Comparison",
    "ablate",
    "cross_validate",
    "evaluate",
    "fit",
    "load_comparison",
    "predict",
    "predict_slides",
    "retrieve",
]

_MODULES = {name: f"_{name.lower()}" for name in __all__}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
