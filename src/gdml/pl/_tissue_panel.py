"""What is drawn of a slide and its tissue: from the slide itself, or from an AnnData of gdml.pp.grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import did_you_mean
from gdml.slides import open_slide
from gdml.slides.tissue import look_at


@dataclass(frozen=True)
class TissuePanel:
    """A slide with the classes of its pixels."""

    title: str
    image: NDArray[Any]
    labels: NDArray[np.uint8]
    size: tuple[float, float]  # full-resolution px
    origin: tuple[float, float]
    um_per_px: float | None
    tiles: NDArray[np.float64] | None = None  # corners, (n, 4, 2)


def of_slide(data: Any, um_per_px: float | None) -> TissuePanel:
    """Panel of a slide, on which tissue is detected."""
    slide = open_slide(data, um_per_px=um_per_px)
    try:
        found, image = look_at(slide)
        origin = getattr(slide, "origin", (0.0, 0.0))
        return TissuePanel("", image, found.labels, slide.size, origin, slide.um_per_px)
    finally:
        if slide is not data:
            slide.close()


def of_adata(adata: AnnData, library_id: str | Sequence[str] | None) -> list[TissuePanel]:
    """Panels of the slides of an AnnData of gdml.pp.grid; KeyError where there is no map or no image."""
    maps = {str(name): entry for name, entry in adata.uns.get(_keys.KEY, {}).get(_keys.TISSUE, {}).items()}
    if not maps:
        raise KeyError(
            "The AnnData has no map of tissue (adata.uns['gdml']['tissue']); make it with gdml.pp.grid(slide), or pass "
            "the path of the image to gdml.pl.tissue."
        )
    wanted = list(maps) if library_id is None else np.ravel(np.asarray(library_id, dtype=object)).astype(str).tolist()
    panels = []
    for name in wanted:
        if name not in maps:
            raise KeyError(f"`library_id` names {name!r}, which has no map of tissue. {did_you_mean(name, maps)}")
        panels.append(_of_library(adata, name, np.asarray(maps[name]["labels"]), named=len(maps) > 1))
    return panels


def _of_library(adata: AnnData, name: str, labels: NDArray[np.uint8], *, named: bool) -> TissuePanel:
    visium: dict[str, Any] = next(
        (entry for key, entry in adata.uns.get(_keys.SPATIAL, {}).items() if str(key) == name), {}
    )
    factors = visium.get("scalefactors", {})
    if "hires" not in visium.get("images", {}) or "tissue_hires_scalef" not in factors:
        raise KeyError(
            f"adata.uns['spatial'][{name!r}] has no hires image with its scale factor; pass the path of the image to "
            "gdml.pl.tissue instead."
        )
    image = np.asarray(visium["images"]["hires"])
    size = (image.shape[1] / factors["tissue_hires_scalef"], image.shape[0] / factors["tissue_hires_scalef"])
    tiles = adata.uns[_keys.KEY].get(_keys.TILES, {})
    of_slide = {str(key): entry for key, entry in tiles.get("slides", {}).items()}.get(name, {})
    scale = float(of_slide.get("um_per_px", np.nan))
    corners = None
    library_key = str(tiles.get("library_key", _keys.LIBRARY))
    if library_key in adata.obs and _keys.SPATIAL in adata.obsm and "spot_diameter_fullres" in factors:
        own = adata.obs[library_key].astype(str).to_numpy() == name
        square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * factors["spot_diameter_fullres"] / 2
        corners = np.asarray(adata.obsm[_keys.SPATIAL], np.float64)[own, None] + square
    return TissuePanel(name if named else "", image, labels, size, (0.0, 0.0), scale if scale > 0 else None, corners)
