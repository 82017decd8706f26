"""From a slide that has no spots to resolved ones: a lattice of tiles on its tissue."""

import os
import warnings
from pathlib import Path
from typing import Any, get_args

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import check_count, check_number, count, did_you_mean
from gdml._progress import tell
from gdml.slides import Slide, open_slide
from gdml.slides.geometry import tile_side_px
from gdml.slides.lattice import Box, Layout, lattice, lattice_shape

from .coordinates import ONE_SLIDE
from .overview import ALL, overview, tissue_of
from .resolve import Spots
from .scale import BOUNDS
from .tiles import tile_spots

GRID = "gdml.pp.grid"
_MOST = 10_000_000  # positions of a lattice; a whole slide has some 100,000 tiles of 112 um


def lattice_spots(
    source: Any,
    tile_um: float | None = 112.0,
    *,
    spacing_um: float | None = None,
    layout: Layout = "square",
    tissue: Any = True,
    min_tissue: float = 0.25,
    region: Any = None,
    um_per_px: float | None = None,
    tile_px: int = 224,
    n_side: int = 5,
    library_id: str | None = None,
    library_key: str = _keys.LIBRARY,
    key: str = _keys.KEY,
    call: str = GRID,
    stacklevel: int = 3,
) -> Spots:
    """Lay a lattice of tiles on the tissue of a slide: the computation of :func:`gdml.pp.grid`, which documents results.

    Parameters
    ----------
    source
        Anything that :func:`gdml.slides.open_slide` takes.
    tile_um, spacing_um, layout, tissue, min_tissue, region, um_per_px, tile_px, n_side, library_id, library_key
        As in :func:`gdml.pp.grid`.
    key
        Name under which the tiles are recorded.
    call
        The function that the user called, for messages.
    stacklevel
        Of the warnings.

    Returns
    -------
    The tiles as the spots of a new AnnData.
    """
    check_lattice(spacing_um, layout, min_tissue)
    _check_arguments(tile_um, um_per_px, library_id, library_key)
    check_count("tile_px", tile_px, hint="most encoders take 224")
    check_count("n_side", n_side, hint="the paper has 5")
    slide = open_slide(source)
    try:
        library = library_id or (Path(slide.name).stem if os.path.isfile(slide.name) else ONE_SLIDE)
        scale = _scale(slide, um_per_px, needed=tile_um is not None or spacing_um is not None, call=call)
        side_px = float(tile_px) if tile_um is None else tile_side_px(float(tile_um), scale)
        spacing_px = side_px if spacing_um is None else spacing_um / scale
        box = _box(slide, region, side_px, spacing_px, layout, stacklevel + 1)
        known = None if np.isnan(scale) else scale
        found, origin = tissue_of(slide, tissue, known)
        places = lattice(box, side_px, spacing_px, layout)
        corner = getattr(slide, "origin", (0.0, 0.0))
        fraction = found.fraction(places.xy - corner, side_px)
        keep = fraction >= min_tissue
        if not keep.any():
            raise ValueError(
                f"None of the {len(keep)} tiles of {side_px:.0f} px has a share of tissue of `min_tissue` "
                f"{min_tissue:g}; the largest is {fraction.max():.2f}. Lower min_tissue=, pass a mask or GeoJSON of the "
                f"tissue as tissue=, or tissue=False to {call} for all tiles."
            )
        path = os.path.abspath(os.path.expanduser(source)) if isinstance(source, str | os.PathLike) else None
        entry = overview(slide, path, side_px=side_px, side_um=side_px * scale, spacing_um=spacing_px * scale)
    finally:
        if slide is not source:
            slide.close()

    row, col = places.row[keep], places.col[keep]
    obs = {
        _keys.TISSUE_FRACTION: fraction[keep],
        _keys.ARRAY_ROW: row,
        _keys.ARRAY_COL: col,
        library_key: pd.Categorical.from_codes(np.zeros(len(row), np.int8), [library]),
    }
    names = [f"{x}x{y}-{library}" for x, y in zip(col.tolist(), row.tolist(), strict=True)]
    adata = ad.AnnData(obs=pd.DataFrame(obs, index=names), obsm={_keys.SPATIAL: places.xy[keep]})
    adata.uns[_keys.SPATIAL] = {library: entry}
    adata.uns[key] = {_keys.TISSUE: {library: {"labels": found.labels, "source": origin}}}
    spots = tile_spots(
        Spots.resolve(adata, key=key, library_key=library_key),
        tile_um,
        tile_px=tile_px,
        n_side=n_side,
        um_per_px=um_per_px,
        image=source,
        check=False,
        report=False,
        stacklevel=stacklevel + 1,
    )
    if known is not None:  # after the tiles, whose record names the source that the scale is from
        entry["scalefactors"]["microns_per_pixel"] = known
    size = f"{tile_px} native px" if tile_um is None else f"{tile_um:g} um"
    share = "" if origin == ALL else f" of {len(keep)} with at least {min_tissue:.0%} tissue ({origin})"
    stated = "argument" if um_per_px is not None else "image metadata"
    where = "unknown" if known is None else f"{known:.3g} ({stated})"
    tell(f"grid: {count(len(row), 'tile')} of {size}{share} on slide {library!r}, um per px {where}")
    return spots


def check_lattice(spacing_um: Any, layout: Any, min_tissue: Any) -> None:
    """Refuse what no slide could be tiled with.

    Parameters
    ----------
    spacing_um, layout, min_tissue
        As in :func:`gdml.pp.grid`.

    Raises
    ------
    TypeError, ValueError
        If one is of another kind, or out of its range.
    """
    if spacing_um is not None:
        check_number("spacing_um", spacing_um, above=0, hint="give um between the centres of neighbouring tiles")
    if layout not in get_args(Layout):
        raise ValueError(f"`layout` is {layout!r}. {did_you_mean(str(layout), get_args(Layout))}")
    check_number("min_tissue", min_tissue, at_least=0, hint="give a share from 0 to 1")
    if min_tissue > 1:
        raise ValueError(f"`min_tissue` must be at most 1, found {min_tissue!r}; give a share from 0 to 1.")


def _check_arguments(tile_um: Any, um_per_px: Any, library_id: Any, library_key: Any) -> None:
    if tile_um is not None:
        check_number("tile_um", tile_um, above=0, hint="give um, or None for native pixels")
    if um_per_px is not None:
        check_number("um_per_px", um_per_px, above=0, hint="give um per px of the full-resolution image")
        if not BOUNDS[0] <= um_per_px <= BOUNDS[1]:
            raise ValueError(f"`um_per_px` is {um_per_px!r}, outside the plausible range ({BOUNDS[0]} to {BOUNDS[1]}).")
    for name, value in (("library_id", library_id), ("library_key", library_key)):
        if value is not None and (not isinstance(value, str) or not value or "/" in value):
            raise ValueError(f"`{name}` must be a name without '/', found {value!r}.")


def _scale(slide: Slide, um_per_px: float | None, *, needed: bool, call: str) -> float:
    """Micrometres per px of a slide; NaN where it is unknown and not needed."""
    scale = slide.um_per_px if um_per_px is None else float(um_per_px)
    if scale is not None:
        return scale
    if needed:
        native = ", or tile_um=None for tiles of native pixels" if call == GRID else ""
        raise ValueError(
            f"um per px of the slide {slide.name!r} is unknown: its metadata do not state it. Pass um_per_px= to "
            f"{call}{native}."
        )
    return float("nan")


def _box(slide: Slide, region: Any, side_px: float, spacing_px: float, layout: Layout, stacklevel: int) -> Box:
    """Part of the slide that is tiled: left, top, right, bottom."""
    (width, height), (left, top) = slide.size, getattr(slide, "origin", (0.0, 0.0))
    image = np.array([left, top, left + width, top + height])
    box = image if region is None else _clipped(region, image, stacklevel + 1)
    extent = box[2:] - box[:2]
    if spacing_px < 1:
        raise ValueError(f"`spacing_um` is {spacing_px:.2g} px on the slide {slide.name!r}, less than one; enlarge it.")
    n_rows, n_cols = lattice_shape(extent[0], extent[1], side_px, spacing_px, layout)
    where = "image" if region is None else "`region`"
    if not n_rows * n_cols:
        raise ValueError(
            f"No tile of {side_px:.0f} px fits into the {where} of {extent[0]:.0f} x {extent[1]:.0f} px of the slide "
            f"{slide.name!r}; is um per px right?"
        )
    if n_rows * n_cols > _MOST:
        raise ValueError(
            f"{n_rows} x {n_cols} tiles of {side_px:.0f} px, {spacing_px:.0f} px apart, are more than {_MOST:,}; enlarge "
            "`spacing_um`, or pass a `region`."
        )
    return float(box[0]), float(box[1]), float(box[2]), float(box[3])


def _clipped(region: Any, image: NDArray[np.float64], stacklevel: int) -> NDArray[np.float64]:
    """Region as numbers, cut at the edges of the image."""
    shown = lambda box: "(" + ", ".join(f"{value:g}" for value in box) + ")"
    try:
        box = np.asarray(region, np.float64)
    except (TypeError, ValueError):
        box = np.empty(0)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise ValueError(f"`region` must be (left, top, right, bottom) in full-resolution px, found {region!r}.")
    if (box[:2] >= box[2:]).any():
        raise ValueError(
            f"`region` is {shown(box)}; it must be (left, top, right, bottom), with left below right and top below bottom."
        )
    cut = np.concatenate([np.maximum(box[:2], image[:2]), np.minimum(box[2:], image[2:])])
    if (cut[:2] >= cut[2:]).any():
        raise ValueError(f"`region` is {shown(box)}, wholly outside the image, which is {shown(image)}.")
    if (cut != box).any():
        warnings.warn(
            f"`region` {shown(box)} reaches beyond the image and was cut to {shown(cut)}.", UserWarning, stacklevel
        )
    return cut
