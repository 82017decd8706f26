"""The protocol of a slide, and the reading of regions that all readers of pixels share."""

import warnings
from abc import ABC, abstractmethod
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ._resample import resample
from .thumbnail import MOST_PX, read_in_bands


class BrokenLevelError(ValueError):
    """A level of a pyramid cannot be read."""


@runtime_checkable
class Slide(Protocol):
    """An H&E image from which regions are read at any scale.

    Attributes
    ----------
    name
        Path, or kind of object; used in messages.
    size
        Width and height, full-resolution px.
    um_per_px
        Micrometres per full-resolution px from the metadata; None where absent or implausible.

    Notes
    -----
    Optional attributes: ``in_order = False`` where several threads may read regions at once, in any order;
    ``origin``, the coordinates (x, y) of the image's upper left corner where that is not (0, 0); and a method
    ``thumbnail(longest)`` where the whole image at reduced size can be had faster than by reading all of it.
    """

    name: str
    um_per_px: float | None

    @property
    def size(self) -> tuple[int, int]: ...

    def read_region(self, x: float, y: float, width: float, height: float, out: tuple[int, int]) -> NDArray[np.uint8]:
        """Region of the image, resampled.

        Parameters
        ----------
        x, y
            Top-left corner, full-resolution px; pixel (i, j) covers [i, i + 1) x [j, j + 1).
        width, height
            Extent, full-resolution px.
        out
            Width and height of the result, px.

        Returns
        -------
        RGB, (out height, out width, 3). What lies outside the image is white.
        """
        ...

    def fingerprint(self) -> str:
        """Hash of the content, hexadecimal: equal for equal pixels from the same kind of source."""
        ...

    def close(self) -> None:
        """Close files and free buffers."""
        ...


class PixelSlide(ABC):
    """A slide with one or more levels of resolution.

    Parameters
    ----------
    name
        Path, or kind of object; used in messages.
    level_sizes
        Width and height of each level, px, the full resolution first.
    um_per_px
        Micrometres per px of the first level, where known.

    Attributes
    ----------
    in_order
        True where regions are better read by one thread, from top to bottom.
    """

    in_order = False

    def __init__(self, name: str, level_sizes: list[tuple[int, int]], um_per_px: float | None = None) -> None:
        self.name = name
        self.um_per_px = um_per_px
        self._level_sizes = level_sizes
        self._fingerprint: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, full-resolution px."""
        return self._level_sizes[0]

    @abstractmethod
    def _pixels(self, level: int, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        """RGB of a window that lies inside the level, (bottom - top, right - left, 3)."""

    @abstractmethod
    def _hash(self) -> str:
        """Hash of the content."""

    def read_region(self, x: float, y: float, width: float, height: float, out: tuple[int, int]) -> NDArray[np.uint8]:
        """Region of the image, resampled, white outside; see :class:`Slide`.

        Reads the smallest level of sufficient resolution, or the next larger one where that is damaged. At native
        resolution (``out`` equal to the extent) the corner is rounded to the nearest pixel and the pixels are copied;
        otherwise the corner has sub-pixel precision.

        Raises
        ------
        ValueError
            If the extent or ``out`` is not positive, a coordinate is not finite, or the full resolution is damaged.

        Warns
        -----
        UserWarning
            If a smaller level is damaged.
        """
        out = (int(out[0]), int(out[1]))
        if not np.isfinite([x, y, width, height]).all() or min(width, height, *out) <= 0:
            raise ValueError(
                f"read_region needs finite coordinates and positive extents, found x={x}, y={y}, "
                f"width={width}, height={height}, out={out}."
            )
        if (width, height) == out:
            x, y = np.floor(x + 0.5), np.floor(y + 0.5)
        level = self._level(min(width / out[0], height / out[1]))
        while True:
            by_x, by_y = self._downsample(level)
            box = (x / by_x, y / by_y, (x + width) / by_x, (y + height) / by_y)
            try:
                return resample(partial(self._pixels, level), self._level_sizes[level], box, out)
            except BrokenLevelError as error:
                if level == 0:
                    raise
                # for this region alone, so that no result depends on what was read before
                warnings.warn(f"{error} Its regions are read from level {level - 1}, more slowly.", stacklevel=2)
                level -= 1

    def _level(self, shrink: float) -> int:
        """Find the smallest level that shrinks by at most this factor (with 1 % tolerance for rounding)."""
        levels = range(len(self._level_sizes))
        return max((i for i in levels if max(self._downsample(i)) <= shrink * 1.01), default=0)

    def _downsample(self, level: int) -> tuple[float, float]:
        """Full-resolution px per px of a level.

        Levels shrink by whole numbers and their sizes are rounded, so the ratio of the sizes would shift positions
        far from the origin: 1030 px become 128 at a factor of 8, not of 8.05.
        """
        factors = []
        for full, small in zip(self.size, self._level_sizes[level], strict=True):
            whole = max(round(full / small), 1)
            factors.append(float(whole) if abs(full - whole * small) <= whole else full / small)
        return factors[0], factors[1]

    def thumbnail(self, longest: int) -> NDArray[np.uint8] | None:
        """Whole image at reduced size; see :func:`gdml.slides.thumbnail.thumbnail`."""
        width, height = self._level_sizes[self._level(max(self.size) / longest)]
        return read_in_bands(self, longest) if width * height <= MOST_PX else None

    def fingerprint(self) -> str:
        """Hash of the content, hexadecimal; computed once."""
        if self._fingerprint is None:
            self._fingerprint = self._hash()
        return self._fingerprint

    def close(self) -> None:  # noqa: B027 - arrays have nothing to close
        """Close files and free buffers."""

    def __repr__(self) -> str:
        scale = "unknown scale" if self.um_per_px is None else f"{self.um_per_px:.4g} um/px"
        return f"{type(self).__name__}({self.name!r}, {self.size[0]} x {self.size[1]} px, {scale})"
