"""Tiles on resolved spots: their size and place on each slide, in micrometres."""

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import check_count, check_number, count, did_you_mean, some
from gdml._progress import bar, tell
from gdml.slides import Slide, open_slide
from gdml.slides.geometry import neighbor_mask, tile_side_px
from gdml.slides.scaled import ScaledSlide

from .images import by_name, describe_image, is_hires, names_slides, resolve_image
from .placement import doubt
from .resolve import Spots
from .scale import BOUNDS, BOUNDS_HIRES, check_scale_arguments, slide_scale

_COARSE = 4.0  # enlargement beyond which a tile shows no cells

# Warnings, one for all slides
_CONFLICT = "The sources of the scale disagree by more than 10 %: {}. Pass um_per_px= to decide."
_FEW_PIXELS = "A tile is too few pixels wide to show cells: {}. Pass the full-resolution image."
_GLASS = (
    "Spots lie over glass: {}. Usual causes: x and y are swapped; the coordinates are those of the hires image; the "
    "image is flipped or rotated; it is the image of another slide. Spots beside the tissue count too unless "
    "obs['in_tissue'] marks them. gdml.pp.tile(adata, check=False) skips this check."
)


def tile_spots(
    spots: Spots,
    tile_um: float | None = 112.0,
    *,
    tile_px: int = 224,
    n_side: int = 5,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_pitch_um: float | None = None,
    image: Any = None,
    outside: str = "error",
    check: bool = True,
    report: bool = True,
    stacklevel: int = 3,
) -> Spots:
    """Lay tiles on resolved spots: the computation of :func:`gdml.pp.tile`, which documents results and errors.

    Parameters
    ----------
    spots
        Resolved spots; their ``adata`` is written to.
    tile_um, tile_px, n_side, um_per_px, spot_pitch_um, image, outside, check
        As in :func:`gdml.pp.tile`. Tiles that a tissue map has placed are not compared with the tissue.
    report
        Leave the line that says what was done.
    stacklevel
        Of the warnings.

    Returns
    -------
    ``spots``, or those that are left after ``outside="drop"``.
    """
    _check_arguments(tile_um, tile_px, n_side, outside)
    given = check_scale_arguments(list(spots.slides), um_per_px, spot_pitch_um)
    if image is not None and not names_slides(image) and not is_hires(image) and len(spots.slides) > 1:
        raise ValueError(f"`image` is one image, but there are {len(spots.slides)} slides; pass a dict by slide.")
    images = by_name(image) if names_slides(image) else dict.fromkeys(spots.slides, image)

    slides: dict[str, dict[str, Any]] = {}
    mask = np.zeros((len(spots.xy), n_side**2), bool)
    inside = np.ones(len(spots.xy), bool)
    conflicts: list[str] = []
    doubts: list[str] = []
    coarse: list[str] = []
    with bar(len(spots.slides), desc="tile", unit="slide") as progress:
        for library, rows in spots.slides.items():
            own = images.get(library, image)
            source = resolve_image(spots.adata, library, own, spatial_key=spots.spatial_key)
            slide = open_slide(source)
            scale = slide_scale(
                spots,
                library,
                given=given.get(library),
                metadata=slide.um_per_px,
                pitch_um=spot_pitch_um,
                bounds=BOUNDS_HIRES if is_hires(own) else BOUNDS,
                check=check,
            )
            conflicts.append(scale.conflict)
            side_px, too_few = _side_px(library, slide, tile_um, tile_px, scale.um_per_px)
            coarse.append(too_few)
            origin, size = getattr(slide, "origin", (0.0, 0.0)), slide.size
            xy = spots.xy[rows] - origin
            inside[rows] = ((xy >= 0) & (xy < size)).all(1)
            _refuse_outside(library, size, xy, inside[rows], outside)
            if check and spots.record(_keys.TISSUE) is None:
                doubts.append(doubt(spots, library, slide, xy, inside[rows]))
            mask[rows] = neighbor_mask(xy, side_px, size, n_side)
            slides[library] = {
                "image": describe_image(own, source),
                "fingerprint": slide.fingerprint(),
                "um_per_px": scale.um_per_px,
                "um_per_px_source": scale.source,
                "side_px": side_px,
                "width": size[0],
                "height": size[1],
                "left": float(origin[0]),
                "top": float(origin[1]),
            }
            if slide is not source:
                slide.close()
            progress.update()

    for message, found in ((_CONFLICT, conflicts), (_FEW_PIXELS, coarse), (_GLASS, doubts)):
        if any(found):
            warnings.warn(message.format(some(filter(None, found))), UserWarning, stacklevel=stacklevel)
    record = {
        "tile_um": float("nan" if tile_um is None else tile_um),
        "tile_px": int(tile_px),
        "n_side": int(n_side),
        "library_key": spots.library_key,
        "spatial_key": spots.spatial_key,
        "slides": slides,
    }
    if not inside.all():
        spots = _drop(spots, inside)
    _write(spots, record, mask[inside])
    if report:
        tell(_summary(record))
    return spots


def _drop(spots: Spots, keep: NDArray[np.bool_]) -> Spots:
    adata = spots.adata
    adata._inplace_subset_obs(keep)
    logg.info(f"tile: dropped {(~keep).sum()} of {len(keep)} spots outside their image")
    library_key = spots.library_key if spots.library_key in adata.obs else None
    return Spots.resolve(adata, key=spots.key, library_key=library_key, spatial_key=spots.spatial_key)


def _write(spots: Spots, record: dict[str, Any], mask: NDArray[np.bool_]) -> None:
    adata, key = spots.adata, spots.key
    ours = dict(adata.uns.get(key, {}))
    if _keys.FEATURES in ours and _geometry(ours[_keys.TILES]) != _geometry(record):
        del ours[_keys.FEATURES]
        logg.info("tile: the tiles or their images have changed: features are removed; call gdml.pp.embed(adata)")
    adata.uns[key] = {**ours, _keys.TILES: record}
    adata.obsm[_keys.neighbor_mask(key)] = mask
    for library, slide in record["slides"].items():
        logg.info(
            f"tile: slide {library}: {slide['side_px']:.1f} px a side at {slide['um_per_px']:.4g} um/px "
            f"({slide['um_per_px_source']})"
        )
    logg.info(f"    {1 - mask.mean():.1%} of the neighbour tiles extend beyond their image and are masked")


def _summary(record: Mapping[str, Any]) -> str:
    """Line that the verb leaves: size of the tiles, um per px and where it is from."""
    slides = record["slides"].values()
    what = f"{record['tile_px']} native px" if np.isnan(record["tile_um"]) else f"{record['tile_um']:g} um"
    scales = np.array([slide["um_per_px"] for slide in slides])
    low, high = scales.min(), scales.max()
    value = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
    sources = Counter(slide["um_per_px_source"] for slide in slides)
    origin = next(iter(sources)) if len(sources) == 1 else ", ".join(f"{name}: {n}" for name, n in sources.items())
    shown = "um per px unknown" if np.isnan(scales).all() else f"{value} um per px ({origin})"
    return f"tile: tiles of {what} on {count(len(scales), 'slide')}, {shown}"


def _geometry(record: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce to what decides the pixels of the tiles, comparable after a round trip through a file."""
    slides = {
        name: (str(slide["image"]), str(slide.get("fingerprint", "")), float(slide["side_px"]))
        for name, slide in record["slides"].items()
    }
    return {"tile_px": int(record["tile_px"]), "n_side": int(record["n_side"]), "slides": slides}


def _check_arguments(tile_um: float | None, tile_px: int, n_side: int, outside: str) -> None:
    if tile_um is not None:
        check_number("tile_um", tile_um, above=0, hint="give um, or None for native pixels")
    check_count("tile_px", tile_px, hint="most encoders take 224")
    check_count("n_side", n_side, hint="the paper has 5")
    if n_side % 2 == 0:
        raise ValueError(f"`n_side` must be an odd whole number, found {n_side!r}; the paper has 5.")
    if outside not in ("error", "drop"):
        raise ValueError(f"`outside` is {outside!r}. {did_you_mean(outside, ['error', 'drop'])}")


def _side_px(library: str, slide: Slide, tile_um: float | None, tile_px: int, um_per_px: float) -> tuple[float, str]:
    """Side of a tile in full-resolution px, and a text where the image has too few pixels for it."""
    if tile_um is None:
        return float(tile_px), ""
    if np.isnan(um_per_px):
        raise ValueError(
            f"um per px of slide {library!r} is unknown: neither its scale factors nor the metadata of its image have "
            "it, and its spots are no grid of a known pitch. Pass um_per_px= or spot_pitch_um= to gdml.pp.tile, or "
            "tile_um=None for native pixels."
        )
    side_px = tile_side_px(float(tile_um), um_per_px)
    shown = side_px * (slide.scale if isinstance(slide, ScaledSlide) else 1.0)
    if shown < 1:
        raise ValueError(f"A tile of {tile_um} um is {shown:.2g} px on slide {library!r}; enlarge `tile_um`.")
    return side_px, f"{shown:.0f} px on slide {library!r}" if tile_px / shown > _COARSE else ""


def _refuse_outside(
    library: str, size: tuple[int, int], xy: NDArray[np.float64], inside: NDArray[np.bool_], outside: str
) -> None:
    if inside.all() or (outside == "drop" and inside.any()):
        return
    low, high = xy.min(0), xy.max(0)
    mend = 'pass outside="drop" to gdml.pp.tile to remove them, or' if inside.any() else ""
    raise ValueError(
        f"{(~inside).sum()} of {len(inside)} spots of slide {library!r} lie outside its image of {size[0]} x {size[1]} px "
        f"(x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}): {mend} pass the image that the "
        "coordinates belong to with image= (not a downscaled one)."
    )
