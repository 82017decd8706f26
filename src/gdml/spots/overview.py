"""What an AnnData keeps of a slide without spots: its overview in the Visium layout, and where its tissue is."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from scanpy import logging as logg

from gdml import _keys
from gdml.slides import Slide, open_slide
from gdml.slides.thumbnail import HIRES_PX, LOWRES_PX, thumbnail
from gdml.slides.tissue import TissueMap, find_tissue, tissue_from_geojson, tissue_from_mask

ALL = "all"


def overview(slide: Slide, path: str | None, *, side_px: float, side_um: float, spacing_um: float) -> dict[str, Any]:
    """Entry of a slide in ``uns["spatial"]``: thumbnails, scale factors, path of the image.

    Parameters
    ----------
    slide
        Its thumbnails are read; it is left without images where that would take too long.
    path
        Absolute path of its file; None where it is in memory.
    side_px, side_um
        Side of a tile, full-resolution px and um; it takes the place of the spot diameter and of the size of a bin.
    spacing_um
        Distance between neighbouring tiles.
        NaN in either of the last two means unknown.
    """
    factors = {"spot_diameter_fullres": side_px, "fiducial_diameter_fullres": side_px}
    metadata: dict[str, Any] = {}
    if np.isfinite(side_um):  # tiles are squares, as the bins of Visium HD are
        factors["bin_size_um"] = side_um
    if np.isfinite(spacing_um):
        metadata[_keys.SPOT_PITCH] = spacing_um
    if path is not None:
        metadata[_keys.IMAGE_PATH] = path
    images, of = {}, slide
    for name, longest in (("hires", HIRES_PX), ("lowres", LOWRES_PX)):
        small = thumbnail(of, longest)
        if small is None:
            logg.info(f"grid: the slide {slide.name!r} is too large and has no overview: no thumbnails are kept")
            break
        images[name], of = small, open_slide(small)  # each is made of the last
        factors[f"tissue_{name}_scalef"] = max(small.shape[:2]) / max(slide.size)
    return {"images": images, "scalefactors": factors, "metadata": metadata}


def tissue_of(slide: Slide, tissue: Any, um_per_px: float | None) -> tuple[TissueMap, str]:
    """Map of the tissue of a slide, and where it is from.

    Parameters
    ----------
    slide
        The slide.
    tissue
        As in :func:`gdml.pp.grid`.
    um_per_px
        Micrometres per full-resolution px; None where unknown.

    Returns
    -------
    The map, and ``"detected"``, ``"all"``, ``"mask"``, or the path of a GeoJSON file (``"GeoJSON"`` for its content).

    Raises
    ------
    TypeError
        If ``tissue`` is nothing of the kind.
    ValueError
        If it does not fit the slide.
    """
    if isinstance(tissue, bool | np.bool_):
        if tissue:
            return find_tissue(slide, um_per_px=um_per_px), "detected"
        return TissueMap(np.ones((1, 1), np.uint8), slide.size), ALL
    if isinstance(tissue, TissueMap):
        if tuple(tissue.size) != tuple(slide.size):
            raise ValueError(
                f"`tissue` is a map of a slide of {tissue.size[0]} x {tissue.size[1]} px, but this one has "
                f"{slide.size[0]} x {slide.size[1]}; make it of this slide: gdml.slides.tissue.find_tissue(slide)."
            )
        return tissue, "mask"
    if isinstance(tissue, str | os.PathLike):
        return tissue_from_geojson(tissue, slide.size), os.path.abspath(os.path.expanduser(tissue))
    if isinstance(tissue, Mapping):
        return tissue_from_geojson(tissue, slide.size), "GeoJSON"
    if hasattr(tissue, "__array__"):
        return tissue_from_mask(tissue, slide.size), "mask"
    raise TypeError(
        "`tissue` must be True (detect it), False (the whole image), a mask (h, w) of the whole slide, or the path of a "
        f"GeoJSON file, found {type(tissue).__name__}."
    )
