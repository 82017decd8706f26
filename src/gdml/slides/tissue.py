"""Tissue of a slide: detected on a thumbnail, from a mask, or from polygons."""

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._slide import Slide
from ._tissue_classes import classify
from ._tissue_map import CLASSES, TISSUE, TissueMap
from ._tissue_shapes import tissue_from_geojson
from .thumbnail import read_in_bands, thumbnail

__all__ = ["CLASSES", "TissueMap", "find_tissue", "look_at", "tissue_from_geojson", "tissue_from_mask"]

_UM_PER_PX, _SHORTEST, _LONGEST = 8.0, 256, 3072  # of a map; its longer side, px: about 10 s and 1 GB at most
_LARGEST_MASK = 4096  # px; larger ones are shrunk
_UNKNOWN_EXTENT, _UNKNOWN_PX = 10_000.0, 1024  # um and px of the longer side of a slide of unknown scale
_SHARP = 2  # full-resolution px per px of the map from which focus is judged
_ASPECT = 0.02  # relative difference of the aspect ratios of a mask and its slide


def find_tissue(slide: Slide, *, um_per_px: float | None = None) -> TissueMap:
    """Detect tissue on a thumbnail of the slide.

    Glass is smooth and tissue is textured and denser than the glass around it (:func:`gdml.slides.glass.glass`). Holes
    up to the size of a tile (112 um square) are tissue, pieces below 0.05 mm2 are dust, and an image without any glass
    is tissue throughout. Not tissue are also pen marks, folds that are far denser than the slide and long, and what is
    out of focus by more than about 10 um; each of them is rather missed than seen where it is not.

    Parameters
    ----------
    slide
        The slide.
    um_per_px
        Micrometres per full-resolution px; by default the slide's own.

    Returns
    -------
    The map, at the size of the thumbnail: 8 um per px, at least 256 and at most 3072 px. Where the scale is not known
    it has 1024 px, the longer side of the slide is taken to be 10 mm, and focus is not judged.

    Raises
    ------
    ValueError
        If no tissue is found, or ``um_per_px`` is not positive.

    Warns
    -----
    UserWarning
        If all of a large image has to be read, because it has no smaller levels.
    """
    found, _ = look_at(slide, um_per_px=um_per_px)
    labels = found.labels
    if not (labels == TISSUE).any():
        others = [f"{CLASSES[code]} {np.mean(labels == code):.0%}" for code in range(len(CLASSES)) if code != TISSUE]
        raise ValueError(
            f"No tissue was found on the slide {slide.name!r} ({', '.join(others)}). Look at it with "
            "gdml.pl.tissue(slide); pass `tissue=False` to gdml.pp.grid to take the whole image, or `tissue=mask` or "
            "the path of a GeoJSON file with the outline."
        )
    return found


def look_at(slide: Slide, *, um_per_px: float | None = None) -> tuple[TissueMap, NDArray[np.uint8]]:
    """Map of a slide, also where it has no tissue, and the thumbnail it was made from; see :func:`find_tissue`."""
    if um_per_px is not None and not (np.isfinite(um_per_px) and um_per_px > 0):
        raise ValueError(f"`um_per_px` must be positive, found {um_per_px}.")
    scale, longest = um_per_px or slide.um_per_px, max(slide.size)
    extent = _UNKNOWN_EXTENT if scale is None else longest * scale
    wanted = _UNKNOWN_PX if scale is None else int(np.clip(extent / _UM_PER_PX, _SHORTEST, _LONGEST))
    image = _overview(slide, wanted)
    side = max(image.shape[:2])
    labels = classify(image, extent / side, focus=scale is not None and longest >= _SHARP * side)
    return TissueMap(labels, slide.size), image


def _overview(slide: Slide, longest: int) -> NDArray[np.uint8]:
    small = thumbnail(slide, longest)
    if small is not None:
        return small
    width, height = slide.size
    warnings.warn(
        f"The image {slide.name!r} ({width} x {height} px) has no smaller levels: all of it is read to find tissue. "
        f"Save it as a pyramid to read it faster: pyvips.Image.new_from_file({slide.name!r}).tiffsave('pyramid.tif', "
        "tile=True, pyramid=True, compression='jpeg').",
        stacklevel=4,
    )
    return read_in_bands(slide, longest)


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
    numbers = values.dtype.kind in "buif" and np.isfinite(found).all() and found[0] >= 0
    if not numbers or len(found) > 2 or (len(found) == 2 and found[0] != 0):
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
    """Mask of at most ``_LARGEST_MASK`` px."""
    if max(mask.shape) <= _LARGEST_MASK:
        return mask
    height, width = (max(round(side * _LARGEST_MASK / max(mask.shape)), 1) for side in mask.shape)
    # a band of rows at a time: integer sums of whole masks of slides would need gigabytes
    rows, columns = (np.arange(n) * side // n for n, side in zip((height, width), mask.shape, strict=True))
    ends = np.append(rows[1:], mask.shape[0])
    wide = np.diff(np.append(columns, mask.shape[1]))
    shares = np.empty((height, width), np.float32)
    for i, (first, last) in enumerate(zip(rows, ends, strict=True)):
        counts = np.add.reduceat(mask[first:last].sum(0), columns)
        shares[i] = counts / (wide * (last - first))
    return shares >= 0.5
