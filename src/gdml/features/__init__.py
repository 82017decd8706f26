"""The feature bank: features of tiles on disk."""

from ._spec import FeatureSpec
from ._store import FeatureStore, open_path, open_store, read_head, store_path
from ._tiles import distinct_tiles
from .bank import FeatureBank, MemoryBank, SlideFeatures, TileBank

__all__ = [
    "FeatureBank",
    "FeatureSpec",
    "FeatureStore",
    "MemoryBank",
    "SlideFeatures",
    "TileBank",
    "distinct_tiles",
    "open_path",
    "open_store",
    "read_head",
    "store_path",
]


def __dir__() -> list[str]:
    return sorted(__all__)
