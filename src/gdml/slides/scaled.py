"""A slide seen in other coordinates: the ``hires`` image in full-resolution px, a SpatialData image in its system."""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ._slide import Slide
from .thumbnail import thumbnail


class ScaledSlide:
    """A slide whose coordinates are scaled and shifted.

    Parameters
    ----------
    slide
        The slide that has the pixels.
    scale
        Its px per unit of the new coordinates, such as ``tissue_hires_scalef``.
    um_per_px
        Micrometres per unit of the new coordinates; None derives them from the slide's own.
    origin
        Upper left corner of the image in the new coordinates.
    """

    def __init__(
        self,
        slide: Slide,
        scale: float = 1.0,
        *,
        um_per_px: float | None = None,
        origin: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"`scale` must be positive, found {scale}; pass the scale factor of the image.")
        self.slide = slide
        self.scale = float(scale)
        self.name = slide.name
        x0, y0 = getattr(slide, "origin", (0.0, 0.0))
        self.origin = (x0 / self.scale + origin[0], y0 / self.scale + origin[1])
        if um_per_px is None and slide.um_per_px is not None:
            um_per_px = slide.um_per_px * self.scale
        self.um_per_px = um_per_px
        self._shift = origin

    @property
    def in_order(self) -> bool:
        """Whether the slide that has the pixels is better read by one thread, from top to bottom."""
        return getattr(self.slide, "in_order", True)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in the new coordinates."""
        width, height = self.slide.size
        return round(width / self.scale), round(height / self.scale)

    def read_region(self, x: float, y: float, width: float, height: float, out: tuple[int, int]) -> NDArray[np.uint8]:
        """Region of the image, resampled, white outside; see :class:`Slide`."""
        s, (x0, y0) = self.scale, self._shift
        return self.slide.read_region((x - x0) * s, (y - y0) * s, width * s, height * s, out)

    def thumbnail(self, longest: int) -> NDArray[np.uint8] | None:
        """Whole image at reduced size; see :func:`gdml.slides.thumbnail.thumbnail`."""
        return thumbnail(self.slide, longest)

    def fingerprint(self) -> str:
        """Hash of the content and, where they are not trivial, of scale and origin."""
        if self.scale == 1.0 and not any(self._shift):
            return self.slide.fingerprint()
        shift = f" {self._shift!r}" if any(self._shift) else ""
        return blake2b(f"{self.slide.fingerprint()} {self.scale!r}{shift}".encode(), digest_size=16).hexdigest()

    def close(self) -> None:
        """Close the slide that has the pixels."""
        self.slide.close()

    def __repr__(self) -> str:
        scale = "unknown scale" if self.um_per_px is None else f"{self.um_per_px:.4g} um/px"
        return f"ScaledSlide({self.name!r}, {self.size[0]} x {self.size[1]} px, {scale})"
