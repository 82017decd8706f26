"""Training: settings of the loop, and trained models in memory and on disk, and what they are worth."""

from .config import TrainingConfig
from .frame import FrameConfig
from .trained import TrainedModel
from .warrant import Warrant

__all__ = ["FrameConfig", "TrainedModel", "TrainingConfig", "Warrant"]


def __dir__() -> list[str]:
    return sorted(__all__)
