"""Training: the spots of a run, splits, the loop, and models on disk."""

from .config import TrainingConfig, make_training_config
from .data import SpotData
from .loop import Run, make_fabric, predict_rows, train
from .split import Split, split_by_block, split_by_group
from .trained import TrainedModel, load, weights_digest

__all__ = [
    "Run",
    "Split",
    "SpotData",
    "TrainedModel",
    "TrainingConfig",
    "load",
    "make_fabric",
    "make_training_config",
    "predict_rows",
    "split_by_block",
    "split_by_group",
    "train",
    "weights_digest",
]
