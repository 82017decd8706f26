"""Slides in memory or in lazily loaded arrays: NumPy, SpatialData (xarray), squidpy's ImageContainer."""

import weakref
from collections.abc import Sequence
from hashlib import blake2b
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._chunks import Chunks
from ._resample import as_rgb8
from ._slide import PixelSlide
from .patches import patch_hash

_LARGE = 1 << 18  # px of a chunk that is kept, since every region in it costs computing all of it
_KEPT = 1 << 29  # bytes; images that are smaller are one chunk
_kept = Chunks(_KEPT)
_numbers = count()


class ArraySlide(PixelSlide):
    """A slide in an array.

    Parameters
    ----------
    array
        (height, width, 3 or 4), uint8 or float in [0, 1].

    Raises
    ------
    ValueError
        If its shape, dtype or range is another.
    """

    def __init__(self, array: NDArray, *, name: str = "array") -> None:
        check_pixels(array.shape, array.dtype, name)
        as_rgb8(array[:: max(1, array.shape[0] // 512), :: max(1, array.shape[1] // 512)], name)
        super().__init__(name, [(array.shape[1], array.shape[0])])
        self._array = array

    def _pixels(self, level: int, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        window = as_rgb8(self._array[top:bottom, left:right], self.name)
        return window.copy() if np.shares_memory(window, self._array) else window

    def _hash(self) -> str:
        digest = blake2b(repr((self._array.shape, self._array.dtype.str)).encode(), digest_size=16)
        for row in self._array:
            digest.update(np.ascontiguousarray(row).data)
        return digest.hexdigest()


class LazySlide(PixelSlide):
    """A slide in a labelled array, of which only the regions read are computed.

    Parameters
    ----------
    array
        xarray DataArray with dimensions ``y``, ``x`` and one of channels; further ones must have length 1.
    overviews
        The same image at lower resolutions, the finest first, for thumbnails.
    """

    in_order = True  # the graph behind the array may not be safe to compute from several threads

    def __init__(self, array: Any, *, name: str = "image", overviews: Sequence[Any] = ()) -> None:
        array = _y_x_channel(array, name)
        check_pixels(array.shape, array.dtype, name)
        super().__init__(name, [(array.sizes["x"], array.sizes["y"])])
        self._array = array
        self._overviews = overviews
        self._edges = _chunk_edges(array)
        self._number = next(_numbers)
        weakref.finalize(self, _kept.drop, self._number)

    def _pixels(self, level: int, left: int, top: int, right: int, bottom: int) -> NDArray[np.uint8]:
        if not self._edges:
            window = np.array(self._array.isel(y=slice(top, bottom), x=slice(left, right)).values)
        else:
            window = np.empty((bottom - top, right - left, self._array.shape[2]), self._array.dtype)
            rows, columns = (
                range(int(np.searchsorted(edges, first, "right")) - 1, int(np.searchsorted(edges, last)))
                for edges, first, last in zip(self._edges, (top, left), (bottom, right), strict=True)
            )
            for row in rows:
                for column in columns:
                    y, x = self._edges[0][row], self._edges[1][column]
                    chunk = self._chunk(row, column)
                    part = chunk[max(top - y, 0) : bottom - y, max(left - x, 0) : right - x]
                    at_y, at_x = max(y - top, 0), max(x - left, 0)
                    window[at_y : at_y + part.shape[0], at_x : at_x + part.shape[1]] = part
        return as_rgb8(window, self.name)

    def _chunk(self, row: int, column: int) -> NDArray:
        """Pixels of a chunk; those read last are kept."""
        y, x = (slice(*edges[i : i + 2]) for edges, i in zip(self._edges, (row, column), strict=True))
        return _kept.get(self._number, (row, column), lambda: np.asarray(self._array.isel(y=y, x=x).values))

    def close(self) -> None:
        """Free the chunks in memory."""
        _kept.drop(self._number)

    def thumbnail(self, longest: int) -> NDArray[np.uint8] | None:
        """Whole image at reduced size, from the coarsest overview that has as many pixels."""
        fine = [image for image in self._overviews if max(image.sizes["x"], image.sizes["y"]) >= longest]
        return LazySlide(fine[-1], name=self.name).thumbnail(longest) if fine else super().thumbnail(longest)

    def _hash(self) -> str:
        return patch_hash(self, self._array.dtype)


def _chunk_edges(array: Any) -> list[list[int]]:
    """First row and column of each chunk, and the ends; empty where regions are read from the array itself.

    An image read from a file that is no pyramid, such as a JPEG, is decoded as a whole for each region, also where the
    array is divided into small chunks: images that are not large are computed once.
    """
    if not array.chunks:
        return []
    if array.nbytes <= _KEPT:
        return [[0, size] for size in array.shape[:2]]
    if max(array.chunks[0]) * max(array.chunks[1]) < _LARGE:
        return []
    return [np.cumsum([0, *sizes]).tolist() for sizes in array.chunks[:2]]


def _y_x_channel(array: Any, name: str) -> Any:
    rest = [d for d in array.dims if d not in ("y", "x") and array.sizes[d] > 1]
    if "y" not in array.dims or "x" not in array.dims or len(rest) != 1:
        raise ValueError(f"{name}: needs the dimensions y, x and one of channels, found {dict(array.sizes)}.")
    return array.squeeze([d for d in array.dims if d not in ("y", "x", rest[0])]).transpose("y", "x", rest[0])


def check_pixels(shape: tuple[int, ...], dtype: np.dtype, name: str) -> None:
    """Refuse an array that is no RGB image, with a ValueError."""
    if len(shape) != 3 or shape[2] not in (3, 4) or 0 in shape:
        first = len(shape) == 3 and shape[0] in (3, 4)
        mend = "move the channels last: np.moveaxis(image, 0, -1)" if first else "pass an RGB image"
        raise ValueError(f"{name}: needs the shape (height, width, 3 or 4), found {tuple(shape)}; {mend}.")
    if dtype != np.uint8 and dtype.kind != "f":
        raise ValueError(
            f"{name}: needs uint8 or floating point pixels in [0, 1], found {dtype}; scale and cast it first."
        )
