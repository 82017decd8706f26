"""Readers: from files to AnnData."""

from ._st import read_st

__all__ = ["read_st"]


def __dir__() -> list[str]:
    return sorted(__all__)
