"""The spots that features are assigned to: tiles of the files as spots of a new AnnData, or measured ones."""

from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scanpy import logging as logg
from scipy.spatial import KDTree

from gdml import _keys
from gdml._errors import count, some
from gdml.features.tiles import tile_keys
from gdml.spots.images import IN_MEMORY
from gdml.spots.overview import overview
from gdml.spots.resolve import Spots

from ._feature_file import FeatureFile
from ._feature_inputs import Image
from ._feature_tiles import Tiles, match_spots, unmatched_text


def new_spots(files: Mapping[str, FeatureFile], library_key: str, key: str) -> Spots:
    """Make spots of the tiles of files, each tile once, slide after slide; in px of the images."""
    xy, names, library = [], [], []
    for name, file in files.items():
        first = np.sort(np.unique(tile_keys(file.centers), return_index=True)[1])
        if len(first) < len(file):
            logg.info(f"read_features: {len(file) - len(first)} tiles of slide {name} are in its file twice")
        xy.append(file.centers[first])
        names += [f"{x:.10g}x{y:.10g}-{name}" for x, y in file.corners[first].tolist()]
        library += [name] * len(first)
    obs = pd.DataFrame({library_key: pd.Categorical(library, categories=list(files))}, index=names)
    adata = ad.AnnData(obs=obs, obsm={_keys.SPATIAL: np.concatenate(xy)})
    return Spots.resolve(adata, key=key, library_key=library_key)


def place(spots: Spots, tiles: Mapping[str, Tiles], entries: Mapping[str, Any]) -> Spots:
    """Put new spots into the coordinates of their images, and write the ``entries`` of the slides."""
    adata = spots.adata
    for name, rows in spots.slides.items():
        adata.obsm[_keys.SPATIAL][rows] += (tiles[name].record["left"], tiles[name].record["top"])
    adata.uns[_keys.SPATIAL] = dict(entries)
    return Spots.resolve(adata, key=spots.key, library_key=spots.library_key)


def tiles_of_spots(
    files: Mapping[str, FeatureFile], tiles: Mapping[str, Tiles], spots: Spots, *, drop: bool
) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.intp]]]:
    """Find the tile of each spot.

    Parameters
    ----------
    files, tiles
        By slide.
    spots
        The spots.
    drop
        Accept spots without a tile, as long as each slide has others.

    Returns
    -------
    kept : bool, (n_obs,)
        Spots that have a tile.
    rows
        Row of the file for each spot of a slide, by slide; -1 for spots without a tile.

    Raises
    ------
    ValueError
        If spots have no tile.
    """
    kept = np.ones(len(spots), bool)
    found, lacking = {}, []
    for name, file in files.items():
        at = spots.slides[name]
        xy, names = spots.xy[at], spots.adata.obs_names[at].to_numpy(str)
        rows = match_spots(file, tiles[name].centers, xy, names)
        found[name] = rows
        kept[at] = rows >= 0
        if (rows < 0).any() and not (drop and (rows >= 0).any()):
            far = unmatched_text(tiles[name].centers, xy, rows < 0)
            lacking.append(f"{(rows < 0).sum()} of {count(len(rows), 'spot')} of slide {name!r} ({far})")
    if lacking:
        raise ValueError(
            f"Spots have no features: {some(lacking)}. A tile is a spot's if its centre lies within 1 px of it: compute "
            'features at the spots, or pass unmatched="drop" to leave out those without a tile. If all are far, '
            "coordinates or slides differ."
        )
    return kept, found


def tile_entry(image: Image, tiles: Tiles) -> dict[str, Any]:
    """Entry of a slide of tiles in ``uns["spatial"]``, as :func:`gdml.pp.grid` makes it; without an image, its scale alone.

    A scale that is known by the magnification alone is left out: it is no measurement.
    """
    measured = tiles.record["um_per_px_source"] != "magnification"
    um_per_px = float(tiles.record["um_per_px"]) if measured else float("nan")
    side_px = float(tiles.record["side_px"])
    if image.slide is None:
        entry: dict[str, Any] = {"images": {}, "scalefactors": {"spot_diameter_fullres": side_px}, "metadata": {}}
    else:
        apart = KDTree(tiles.centers).query(tiles.centers, k=2)[0][:, 1] if len(tiles.centers) > 1 else [side_px]
        path = None if image.name == IN_MEMORY else image.name
        entry = overview(
            image.slide,
            path,
            side_px=side_px,
            side_um=side_px * um_per_px,
            spacing_um=float(np.median(apart)) * um_per_px,
        )
    if np.isfinite(um_per_px):
        entry["scalefactors"]["microns_per_pixel"] = um_per_px
    return entry
