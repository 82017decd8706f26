"""Tissue of a slide: detected on a thumbnail, from a mask, or from polygons."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._slide import Slide
from ._tissue_map import CLASSES, TISSUE, TissueMap
from ._tissue_shapes import tissue_from_geojson
from .glass import glass
from .thumbnail import thumbnail

__all__ = ["CLASSES", "TissueMap", "find_tissue", "tissue_from_geojson", "tissue_from_mask"]

_LONGEST = 4096  # px of a map; larger masks are shrunk
_ASPECT = 0.02  # relative difference of the aspect ratios of a mask and its slide


def find_tissue(slide: Slide, *, um_per_px: float | None = None) -> TissueMap:
    """Detect tissue on a thumbnail of the slide.

    Parameters
    ----------
    slide
        The slide.
    um_per_px
        Micrometres per full-resolution px; by default the slide's own.

    Returns
    -------
    The map, at the size of the thumbnail.

    Raises
    ------
    ValueError
        If no tissue is found.
    """
    small = thumbnail(slide)
    smooth = None if small is None else glass(small)
    labels = np.full(small.shape[:2] if small is not None else (1, 1), TISSUE, np.uint8)
    if smooth is not None:
        labels[smooth] = 0
    return TissueMap(labels, slide.size)


def tissue_from_mask(mask: ArrayLike, slide_size: tuple[int, int]) -> TissueMap:
    """Tissue from a mask of the whole slide.

    Parameters
    ----------
    mask
        True, or one value above zero, where there is tissue, (h, w), at any scale.
    slide_size
        Width and height of the slide, full-resolution px.

    Returns
    -------
    The map, at the size of the mask; larger ones are shrunk to 4096 px, where a pixel is tissue if most of it is.

    Raises
    ------
    ValueError
        If the mask has another shape than (h, w) or another aspect ratio than the slide (by more than 2 %), has more
        than two values, or no tissue.
    """
    values = np.asarray(mask)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"`tissue` must be a mask (h, w), found an array of shape {values.shape}.")
    height, width = values.shape
    if abs(width / height * slide_size[1] / slide_size[0] - 1) > max(_ASPECT, 1 / width, 1 / height):
        raise ValueError(
            f"The mask is {width} x {height} px (width x height) and the slide {slide_size[0]} x {slide_size[1]} px: "
            "their aspect ratios differ. The mask must cover the whole slide, at any scale; transpose or crop it."
        )
    return TissueMap(_shrunk(_binary(values)).astype(np.uint8), slide_size)


def _binary(values: NDArray) -> NDArray[np.bool_]:
    """Mask as booleans; 0 and one other value, such as 1 or 255."""
    found = np.unique(values)
    if values.dtype.kind not in "buif" or len(found) > 2 or (len(found) == 2 and found[0] != 0) or found[0] < 0:
        some = ", ".join(str(value) for value in found[:5]) + (", ..." if len(found) > 5 else "")
        raise ValueError(
            f"The mask must have two values, 0 where there is no tissue and another one where there is; found "
            f"{len(found)} of type {values.dtype}: {some}. Pass a comparison, such as mask == 1."
        )
    binary = values != 0
    if not binary.any():
        raise ValueError("The mask has no tissue: all its values are 0. Pass `tissue=False` for the whole image.")
    return binary


def _shrunk(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask of at most ``_LONGEST`` px."""
    if max(mask.shape) <= _LONGEST:
        return mask
    height, width = (max(round(side * _LONGEST / max(mask.shape)), 1) for side in mask.shape)
    # a band of rows at a time: integer sums of whole masks of slides would need gigabytes
    rows, columns = (np.arange(n) * side // n for n, side in zip((height, width), mask.shape, strict=True))
    ends = np.append(rows[1:], mask.shape[0])
    wide = np.diff(np.append(columns, mask.shape[1]))
    shares = np.empty((height, width), np.float32)
    for i, (first, last) in enumerate(zip(rows, ends, strict=True)):
        counts = np.add.reduceat(mask[first:last].sum(0), columns)
        shares[i] = counts / (wide * (last - first))
    return shares >= 0.5
