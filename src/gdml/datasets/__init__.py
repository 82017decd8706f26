"""Sample data: real sections by name, synthetic slides by seed."""

from ._her2st import her2st
from ._synthetic import synthetic

__all__ = ["her2st", "synthetic"]


def __dir__() -> list[str]:
    return sorted(__all__)
