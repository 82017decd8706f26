"""Models: features of spots to expression. One file a model."""

from ._base import Shape, SpotModel, get_model, list_models, register
from ._gene_dml_config import GeneDMLConfig
from .batch import Batch, Nearest, Output, Slides
from .gene_dml import GeneDML
from .ridge import Ridge, RidgeConfig

__all__ = [
    "Batch",
    "GeneDML",
    "GeneDMLConfig",
    "Nearest",
    "Output",
    "Ridge",
    "RidgeConfig",
    "Shape",
    "Slides",
    "SpotModel",
    "get_model",
    "list_models",
    "register",
]
