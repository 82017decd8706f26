"""Readers and writers: from files and other containers to AnnData, and back."""

from ._features import read_features
from ._geojson import to_geojson
from ._hest import read_hest
from ._st import read_st

__all__ = ["read_features", "read_hest", "read_st", "to_geojson"]


def __dir__() -> list[str]:
    return sorted(__all__)
