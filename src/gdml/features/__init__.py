"""The feature bank: what was extracted, on disk."""

from ._spec import FeatureSpec
from ._store import FeatureStore, SlideFeatures, open_path, open_store, store_path

__all__ = ["FeatureSpec", "FeatureStore", "SlideFeatures", "open_path", "open_store", "store_path"]
