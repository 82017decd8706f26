"""Readers and writers: from files and other containers to AnnData, and back."""

from ._from_spatialdata import from_spatialdata
from ._st import read_st
from ._to_spatialdata import to_spatialdata

__all__ = ["from_spatialdata", "read_st", "to_spatialdata"]


def __dir__() -> list[str]:
    return sorted(__all__)
