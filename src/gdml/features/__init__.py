"""The feature bank: features of tiles on disk."""

from ._spec import FeatureSpec
from .bank import FeatureBank, MemoryBank, SlideFeatures, TileBank
from .store import FeatureStore, open_path, open_store

__all__ = [
    "FeatureBank",
    "FeatureSpec",
    "FeatureStore",
    "MemoryBank",
    "SlideFeatures",
    "TileBank",
    "open_path",
    "open_store",
]


def __dir__() -> list[str]:
    return sorted(__all__)
