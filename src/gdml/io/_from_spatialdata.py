"""From a SpatialData to an AnnData in the layout that gdml, scanpy and squidpy read."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from gdml import _keys
from gdml._errors import count, did_you_mean, some
from gdml._progress import tell
from gdml.slides import Slide, open_slide
from gdml.slides.patches import patch_hash
from gdml.spots.container import ATTRS, Placed, agrees, is_spatialdata, place, region_keys, table_name
from gdml.spots.coordinates import check_adata, libraries
from gdml.spots.images import slide_entry

from .visium_layout import HIRES_PX, LOWRES_PX

if TYPE_CHECKING:
    from spatialdata import SpatialData

_NO_TABLE = "spots"


def from_spatialdata(
    sdata: "SpatialData",
    *,
    image: str | Mapping[str, str] | None = None,
    shapes: str | Sequence[str] | None = None,
    table: str | None = None,
    coordinate_system: str | None = None,
) -> AnnData:
    """Make an AnnData of a table of a SpatialData, its spots in the pixels of their image.

    Each element that the table annotates (circles, polygons, labels) is a slide with one image. The image may be
    rotated or mirrored against the spots. Nothing is written to ``sdata``.

    Parameters
    ----------
    sdata
        With images, and shapes or labels.
    image
        Name of the full-resolution image, or a dict of names by slide. None: the only image that shares a coordinate
        system with the spots of the slide, ``*_hires_image`` and ``*_lowres_image`` aside; of several, the one whose
        name begins with that of the element.
    shapes
        Elements whose spots to take; by default all that the table annotates. Without a table that annotates them,
        every shape is a spot without genes.
    table
        Name of the table; by default the only one, or the only one that annotates ``shapes``.
    coordinate_system
        That spots and image share; by default any, provided that all agree.

    Returns
    -------
    A copy of the table, with

    - ``obs["library_id"]``: slide of each spot, categorical, the name of the element; kept where it is there already
      and no slide has spots of several elements;
    - ``obsm["spatial"]``: spot centres (x, y), px of the image, float64, in place of what the table has there;
    - ``uns["spatial"][library_id]``: ``images`` (``hires``, ``lowres``: uint8, at most 2,000 and 600 px long),
      ``scalefactors``, and ``metadata`` with ``source_image_path``: the file that :func:`gdml.io.to_spatialdata` took
      the image from, if its pixels are the same, else the image in the store of ``sdata``
      (``"x.zarr/images/name"``), which :func:`gdml.slides.open_slide` reads too. Neither is known of an image that is
      in memory alone: write ``sdata`` first.

    Raises
    ------
    TypeError
        If ``sdata`` is not a SpatialData.
    KeyError
        If an element, a table or a coordinate system does not exist.
    ValueError
        If there are several tables or images to choose from, or none; if spots and image share no coordinate system;
        if a transformation is broken, or shears or stretches the image.

    See Also
    --------
    gdml.io.to_spatialdata : The other direction.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.io.from_spatialdata(sdata, table="square_016um")  # doctest: +SKIP
    """
    if not is_spatialdata(sdata):
        raise TypeError(f"`sdata` must be a SpatialData, found {type(sdata).__name__}.")
    name, adata = _chosen_table(sdata, table, shapes)
    region_key = region_keys(adata, name)[0]
    if (
        _keys.LIBRARY not in adata.obs
        or (adata.obs.groupby(_keys.LIBRARY, observed=True)[region_key].nunique() > 1).any()
    ):
        adata.obs[_keys.LIBRARY] = pd.Categorical(adata.obs[region_key].astype(str))
    slides = libraries(adata)
    if isinstance(image, Mapping):
        unknown = [slide for slide in image if slide not in slides]
        if unknown:
            raise KeyError(f"`image` names the unknown slide {unknown[0]!r}. {did_you_mean(unknown[0], slides)}")
    placed = place(sdata, name, adata, slides, image=image, coordinate_system=coordinate_system)

    xy = np.empty((adata.n_obs, 2))
    for slide, rows in slides.items():
        xy[rows] = placed[slide].xy
    same = agrees(adata, _keys.SPATIAL, xy)
    entries = {slide: _entry(sdata, slide_entry(adata, slide), one, same) for slide, one in placed.items()}
    adata.obsm[_keys.SPATIAL] = xy
    adata.uns[_keys.SPATIAL] = entries
    lost = [slide for slide, entry in entries.items() if _keys.IMAGE_PATH not in entry["metadata"]]
    hint = f"; the image of {some(lost)} is in memory alone: call sdata.write first, or pass sdata to the verbs"
    tell(
        f"from_spatialdata: {count(adata.n_obs, 'spot')} x {count(adata.n_vars, 'gene')} on {count(len(slides), 'slide')}"
        f"{hint if lost else ''}"
    )
    return adata


def _chosen_table(sdata: Any, table: str | None, shapes: str | Sequence[str] | None) -> tuple[str, AnnData]:
    """Copy of the table, with the rows of the chosen elements."""
    wanted = None if shapes is None else [shapes] if isinstance(shapes, str) else list(shapes)
    elements = {**sdata.shapes, **sdata.labels}
    for one in wanted or []:
        if one not in elements:
            raise KeyError(
                f"`shapes` names {one!r}, which the SpatialData does not have. {did_you_mean(one, elements)}"
            )
    if table is None and wanted:
        having = [name for name, one in sdata.tables.items() if set(wanted) <= set(_regions(one))]
        if not having:
            return _NO_TABLE, _without_table({one: elements[one] for one in wanted})
        table = having[0] if len(having) == 1 else None
    table = table_name(sdata, "sdata") if table is None else table
    if table not in sdata.tables:
        known = did_you_mean(table, sdata.tables) if len(sdata.tables) else "There are no tables."
        raise KeyError(f"`table` is {table!r}, which is no table of the SpatialData. {known}")
    found = sdata.tables[table]
    check_adata(found, copy=True, name=f"sdata.tables[{table!r}]")
    if wanted is None:
        return table, found.copy()
    regions = found.obs[region_keys(found, table)[0]].astype(str)
    if not set(wanted) <= set(regions):
        raise KeyError(f"The table {table!r} annotates {some(regions.unique())}, not all of `shapes` ({some(wanted)}).")
    adata = found[regions.isin(wanted).to_numpy()].copy()
    adata.uns[ATTRS] = {**adata.uns[ATTRS], "region": wanted}
    return table, adata


def _regions(table: AnnData) -> list[str]:
    regions = (table.uns.get(ATTRS) or {}).get("region", [])
    return [regions] if isinstance(regions, str) else [str(one) for one in regions]


def _without_table(elements: dict[str, Any]) -> AnnData:
    """Spots without genes: one for each shape."""
    from spatialdata import get_centroids
    from spatialdata.transformations import get_transformation

    parts = []
    for name, element in elements.items():
        system = next(iter(get_transformation(element, get_all=True)))
        instances = get_centroids(element, system).index.compute()
        parts.append(pd.DataFrame({"region": name, "instance_id": instances}))
    obs = pd.concat(parts, ignore_index=True)
    obs["region"] = pd.Categorical(obs["region"])
    obs.index = pd.Index([f"{one}-{name}" for one, name in zip(obs["instance_id"], obs["region"], strict=True)])
    adata = AnnData(obs=obs)
    adata.uns[ATTRS] = {"region": list(elements), "region_key": "region", "instance_key": "instance_id"}
    return adata


def _entry(sdata: Any, stored: Mapping[str, Any], placed: Placed, same: bool) -> dict[str, dict[str, Any]]:
    """Entry of a slide in ``uns["spatial"]``; what the table has of it is kept where its coordinates are the ``same``."""
    factors = dict(stored.get("scalefactors", {})) if same else {}
    metadata = dict(stored.get("metadata", {}))
    images, of_images = placed.thumbnails({"hires": HIRES_PX, "lowres": LOWRES_PX})
    factors |= placed.scalefactors() | of_images
    if np.isfinite(placed.diameter):
        factors.setdefault("fiducial_diameter_fullres", placed.diameter)
    path = _path_of(sdata, placed, metadata.pop(_keys.IMAGE_PATH, None))
    return {
        "images": images,
        "scalefactors": factors,
        "metadata": metadata if path is None else {**metadata, _keys.IMAGE_PATH: path},
    }


def _path_of(sdata: Any, placed: Placed, before: Any) -> str | None:
    """Path that has the pixels of the image: the file that they came from, or the image in the store."""
    before = before.decode() if isinstance(before, bytes) else before
    if before is not None and os.path.exists(before) and _same_pixels(open_slide(before), placed.slide):
        return str(before)
    if sdata.path is None:
        return None
    path = Path(sdata.path).absolute() / "images" / placed.image
    return str(path) if path.is_dir() and _same_pixels(open_slide(path), placed.slide) else None


def _same_pixels(one: Slide, other: Slide) -> bool:
    try:
        return one.size == other.size and patch_hash(one) == patch_hash(other)
    finally:
        one.close()
