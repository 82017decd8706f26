"""Images of slides behind one small protocol: files, arrays, SpatialData and squidpy images."""

from ._open import open_slide
from ._slide import Slide

__all__ = ["Slide", "open_slide"]


def __dir__() -> list[str]:
    return sorted(__all__)
