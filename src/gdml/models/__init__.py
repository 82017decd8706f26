"""Models: features of spots to expression. One file a model."""

from ._base import Shape, SpotModel, config_record, get_model, list_models, make_config
from .batch import Batch, Output, Slides

__all__ = [
    "Batch",
    "Output",
    "Shape",
    "Slides",
    "SpotModel",
    "config_record",
    "get_model",
    "list_models",
    "make_config",
]
