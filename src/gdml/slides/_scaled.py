"""A slide seen in other coordinates, such as the ``hires`` image in full-resolution ones."""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ._slide import Slide


class ScaledSlide:
    """A slide whose coordinates are those of a larger image.

    Parameters
    ----------
    slide
        The slide that has the pixels.
    scale
        Its px per full-resolution px, such as ``tissue_hires_scalef``.
    um_per_px
        Micrometres per full-resolution px; None takes the slide's own.
    """

    def __init__(self, slide: Slide, scale: float = 1.0, *, um_per_px: float | None = None) -> None:
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"`scale` must be positive, found {scale}; pass the scale factor of the image.")
        self.slide = slide
        self.scale = float(scale)
        self.name = slide.name
        if um_per_px is None and slide.um_per_px is not None:
            um_per_px = slide.um_per_px * self.scale
        self.um_per_px = um_per_px

    @property
    def in_order(self) -> bool:
        """Whether the slide that has the pixels wants its regions in order."""
        return getattr(self.slide, "in_order", True)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, full-resolution px."""
        width, height = self.slide.size
        return round(width / self.scale), round(height / self.scale)

    def read_region(self, x: float, y: float, width: float, height: float, out: tuple[int, int]) -> NDArray[np.uint8]:
        """Region of the image, resampled, white outside; see :class:`Slide`."""
        s = self.scale
        return self.slide.read_region(x * s, y * s, width * s, height * s, out)

    def fingerprint(self) -> str:
        """Hash of the content and, where it is not 1, the scale."""
        if self.scale == 1.0:
            return self.slide.fingerprint()
        return blake2b(f"{self.slide.fingerprint()} {self.scale!r}".encode(), digest_size=16).hexdigest()

    def close(self) -> None:
        """Close the slide that has the pixels."""
        self.slide.close()

    def __repr__(self) -> str:
        scale = "unknown scale" if self.um_per_px is None else f"{self.um_per_px:.4g} um/px"
        return f"ScaledSlide({self.name!r}, {self.size[0]} x {self.size[1]} px, {scale})"
