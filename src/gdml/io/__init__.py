"""Readers and writers: from files and other containers to AnnData, and back."""

from ._features import read_features
from ._from_spatialdata import from_spatialdata
from ._geojson import to_geojson
from ._hest import read_hest
from ._st import read_st
from ._to_spatialdata import to_spatialdata
from ._visium import read_visium

__all__ = [
    "from_spatialdata",
    "read_features",
    "read_hest",
    "read_st",
    "read_visium",
    "to_geojson",
    "to_spatialdata",
]


def __dir__() -> list[str]:
    return sorted(__all__)
