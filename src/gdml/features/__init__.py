"""The feature bank: what was extracted, on disk."""

from ._spec import FeatureSpec
from ._store import FeatureStore, SlideFeatures, distinct_tiles, open_path, open_store, read_head, store_path
from ._tile_stores import TileStores

__all__ = [
    "FeatureSpec",
    "FeatureStore",
    "SlideFeatures",
    "TileStores",
    "distinct_tiles",
    "open_path",
    "open_store",
    "read_head",
    "store_path",
]


def __dir__() -> list[str]:
    return sorted(__all__)
