"""Tiles: where they lie, in micrometres. No pixel is read yet."""

import warnings
from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import did_you_mean
from gdml.slides import ScaledSlide, Slide, neighbor_mask, open_slide, tile_side_px
from gdml.spots.coordinates import check_adata, libraries, spot_coordinates
from gdml.spots.images import HIRES, describe_image, resolve_image
from gdml.spots.scale import BOUNDS, BOUNDS_HIRES, check_scale_arguments, slide_scale

_COARSE = 4.0  # enlarging tiles more than this shows blur, not cells


def tile(
    adata: AnnData,
    tile_um: float | None = 112.0,
    *,
    tile_px: int = 224,
    n_side: int = 5,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_pitch_um: float | None = None,
    image: str | PathLike | NDArray | Slide | Mapping[str, Any] | Any | None = None,
    outside: Literal["error", "drop"] = "error",
    library_key: str = _keys.LIBRARY,
    spatial_key: str = _keys.SPATIAL,
    key_added: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Lay a square tile on each spot, and the square of its neighbour tiles around it.

    The same number of micrometres is covered on every slide, whatever its resolution: an encoder sees
    cells at one size. The micrometres per pixel of a slide are, in this order, ``um_per_px``, those of the
    image's metadata (where within 0.05 to 5), or those that follow from the spot pitch.

    Parameters
    ----------
    adata
        Spots of one or more slides, centres (x, y) in ``obsm[spatial_key]``, full-resolution px.
    tile_um
        Side of a tile, um. None takes ``tile_px`` pixels as they are, without resampling, as the paper does.
    tile_px
        Side of the image that an encoder is given, px.
    n_side
        Tiles along a side of the neighbour region, odd.
    um_per_px
        Micrometres per full-resolution px, for all slides or by slide.
    spot_pitch_um
        Distance between neighbouring spots, um. None looks for ``uns[spatial_key][library]["metadata"]
        ["spot_pitch_um"]``, then at ``obs["array_row"]`` and ``obs["array_col"]``: 100 on the hexagonal grid
        of Visium, 200 on the square one of legacy ST.
    image
        The full-resolution image: anything that :func:`gdml.slides.open_slide` takes, or a dict of these by
        slide. None takes ``uns[spatial_key][library]["metadata"]["source_image_path"]``; ``"hires"`` insists
        on the downscaled image in ``uns``.
    outside
        What to do with spots whose centre lies outside the image: ``"error"``, or ``"drop"`` them from
        ``adata``.
    library_key
        Column of ``obs`` that names the slide of each spot. Not needed where there is one.
    spatial_key
        Place of the spot centres in ``obsm``, and of the slides in ``uns``.
    key_added
        Replaces ``gdml`` in the names below.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or a copy of ``adata``. Sets:

    ``obsm["gdml_neighbor_mask"]`` : bool, (n_obs, n_side**2)
        True where a tile of the region lies wholly inside the image; row-major from the top left, the
        spot's own tile in the middle and always True.
    ``uns["gdml"]["tiles"]``
        ``tile_um`` (NaN where None), ``tile_px``, ``n_side``, ``library_key``, ``spatial_key``, and for each of
        ``slides``: ``image`` (path, "hires" or "in memory"), ``um_per_px`` (NaN where unknown),
        ``um_per_px_source``, ``side_px`` (side of a tile in full-resolution px), ``width`` and ``height``
        (of the image, px). Features of tiles that lay elsewhere are forgotten (``uns["gdml"]["features"]``).

    Raises
    ------
    KeyError
        If the coordinates, the column of slides or an entry of ``image`` is missing.
    FileNotFoundError
        If an image does not exist.
    ValueError
        If an argument or coordinate is not valid, an image can't be opened or only a downscaled one is
        known, the micrometres per pixel are unknown or absurd, or spots lie outside the image.

    See Also
    --------
    gdml.pp.embed : Reads the tiles and encodes them.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.datasets.synthetic()
    >>> gdml.pp.tile(adata, tile_um=112)
    >>> adata.obsm["gdml_neighbor_mask"].shape == (adata.n_obs, 25)
    True
    """
    check_adata(adata, copy=copy)
    _check_arguments(tile_um, tile_px, n_side, outside)
    xy = spot_coordinates(adata, spatial_key)
    by_slide = libraries(adata, library_key, spatial_key=spatial_key)
    check_scale_arguments(list(by_slide), um_per_px, spot_pitch_um)
    if image is not None and not isinstance(image, Mapping) and not _is_hires(image) and len(by_slide) > 1:
        raise ValueError(f"`image` is one image, but there are {len(by_slide)} slides; pass a dict by slide.")

    slides: dict[str, dict[str, Any]] = {}
    mask = np.zeros((adata.n_obs, n_side**2), bool)
    inside = np.ones(adata.n_obs, bool)
    for library, rows in by_slide.items():
        own_image = image[library] if isinstance(image, Mapping) and library in image else image
        source = resolve_image(adata, library, own_image, spatial_key=spatial_key)
        slide = open_slide(source)
        scale, scale_source = slide_scale(
            adata,
            library,
            rows,
            xy[rows],
            given=um_per_px,
            metadata=slide.um_per_px,
            pitch_um=spot_pitch_um,
            spatial_key=spatial_key,
            bounds=BOUNDS_HIRES if _is_hires(own_image) else BOUNDS,
        )
        side_px = _side_px(library, slide, tile_um, tile_px, scale)
        width, height = slide.size
        if slide is not source:
            slide.close()
        inside[rows] = ((xy[rows] >= 0) & (xy[rows] < (width, height))).all(1)
        _refuse_outside(library, (width, height), xy[rows], inside[rows], outside)
        mask[rows] = neighbor_mask(xy[rows], side_px, (width, height), n_side)
        slides[library] = {
            "image": describe_image(own_image, source),
            "um_per_px": scale,
            "um_per_px_source": scale_source,
            "side_px": side_px,
            "width": width,
            "height": height,
        }

    record = {
        "tile_um": float("nan" if tile_um is None else tile_um),
        "tile_px": int(tile_px),
        "n_side": int(n_side),
        "library_key": library_key,
        "spatial_key": spatial_key,
        "slides": slides,
    }
    if copy:
        adata = adata.copy()
    if not inside.all():
        adata._inplace_subset_obs(inside)
        logg.info(f"tile: dropped {(~inside).sum()} of {len(inside)} spots outside their image")
    _write(adata, record, mask[inside], key_added)
    return adata if copy else None


def _write(adata: AnnData, record: dict[str, Any], mask: NDArray[np.bool_], key: str) -> None:
    ours = dict(adata.uns.get(key, {}))
    if _keys.FEATURES in ours and _geometry(ours[_keys.TILES]) != _geometry(record):
        del ours[_keys.FEATURES]
        logg.info("tile: the tiles have moved, their features are forgotten; call gdml.pp.embed(adata)")
    adata.uns[key] = {**ours, _keys.TILES: record}
    adata.obsm[_keys.neighbor_mask(key)] = mask
    for library, slide in record["slides"].items():
        logg.info(
            f"tile: slide {library}: {slide['side_px']:.1f} px a side at {slide['um_per_px']:.4g} um/px "
            f"({slide['um_per_px_source']})"
        )
    logg.info(f"    {1 - mask.mean():.1%} of the neighbour tiles leave their image and are masked")


def _geometry(record: Mapping[str, Any]) -> tuple:
    """Reduce to what decides the pixels of the tiles, comparable after a round trip through a file too."""
    slides = {name: (str(slide["image"]), float(slide["side_px"])) for name, slide in record["slides"].items()}
    return int(record["tile_px"]), int(record["n_side"]), slides


def _is_hires(image: Any) -> bool:
    return isinstance(image, str) and image == HIRES


def _check_arguments(tile_um: float | None, tile_px: int, n_side: int, outside: str) -> None:
    if tile_um is not None and not (np.isfinite(tile_um) and tile_um > 0):
        raise ValueError(f"`tile_um` must be a positive number of um, found {tile_um}; None takes native pixels.")
    if not isinstance(tile_px, int | np.integer) or tile_px < 1:
        raise ValueError(f"`tile_px` must be a positive whole number, found {tile_px!r}; most encoders want 224.")
    if not isinstance(n_side, int | np.integer) or n_side < 1 or n_side % 2 == 0:
        raise ValueError(f"`n_side` must be an odd whole number, found {n_side!r}; 5 is the paper's.")
    if outside not in ("error", "drop"):
        raise ValueError(f"`outside` is {outside!r}. {did_you_mean(outside, ['error', 'drop'])}")


def _side_px(library: str, slide: Slide, tile_um: float | None, tile_px: int, scale: float) -> float:
    if tile_um is None:
        return float(tile_px)
    if np.isnan(scale):
        raise ValueError(
            f"um per px of slide {library!r} is unknown: its image has none in its metadata, and no grid of spots "
            "with a known pitch is recognised. Pass um_per_px= or spot_pitch_um=, or tile_um=None for native pixels."
        )
    side_px = tile_side_px(tile_um, scale)
    shown = side_px * (slide.scale if isinstance(slide, ScaledSlide) else 1.0)
    if shown < 1:
        raise ValueError(f"A tile of {tile_um} um is {shown:.2g} px on slide {library!r}; enlarge `tile_um`.")
    if tile_px / shown > _COARSE:
        warnings.warn(
            f"A tile of {tile_um:g} um is only {shown:.0f} px wide on slide {library!r} and is enlarged to {tile_px} px: "
            "cells can't be seen. Name the full-resolution image with image=.",
            UserWarning,
            stacklevel=3,
        )
    return side_px


def _refuse_outside(
    library: str, size: tuple[int, int], xy: NDArray[np.float64], inside: NDArray[np.bool_], outside: str
) -> None:
    if inside.all() or (outside == "drop" and inside.any()):
        return
    low, high = xy.min(0), xy.max(0)
    mend = 'pass outside="drop" to leave them out, or' if inside.any() else ""
    raise ValueError(
        f"{(~inside).sum()} of {len(inside)} spots of slide {library!r} lie outside its image of {size[0]} x {size[1]} px "
        f"(x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}): {mend} name the image that the "
        "coordinates belong to with image= (a downscaled one doesn't do)."
    )
