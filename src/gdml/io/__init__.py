"""Readers: from files to AnnData."""

from ._st import read_st
from ._visium import read_visium

__all__ = ["read_st", "read_visium"]


def __dir__() -> list[str]:
    return sorted(__all__)
