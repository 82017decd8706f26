"""Training: settings of the loop, and trained models in memory and on disk."""

from .config import TrainingConfig
from .frame import FrameConfig
from .trained import TrainedModel

__all__ = ["FrameConfig", "TrainedModel", "TrainingConfig"]


def __dir__() -> list[str]:
    return sorted(__all__)
