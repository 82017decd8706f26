"""Feature stores of wsidata, which LazySlide writes: a SpatialData with tiles as shapes and a table per encoder.

The layout is that of ``wsidata.io.add_tiles`` and ``add_features``: ``shapes["tiles"]``, squares in px of level 0;
``attrs["tile_spec"]["tiles"]``; ``tables["{encoder}_tiles"]``, rows assigned by ``tile_id``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from gdml._errors import did_you_mean, some

from ._feature_file import ROWS, FeatureFile, check_tiles
from ._values import positive

_SQUARE = 1e-3  # px by which the sides of tiles may differ


def open_wsidata(path: Path, encoder: str | None = None, *, tile_key: str = "tiles") -> FeatureFile:
    """Open a store of wsidata; the features of one encoder are read into memory.

    Parameters
    ----------
    path
        Folder of the zarr store.
    encoder
        Encoder whose features are read; may be left out where there is one.
    tile_key
        Name of the tiles.

    Raises
    ------
    ImportError
        If spatialdata is not installed.
    ValueError
        If the store cannot be read, lacks tiles, their size or features, or has features of several encoders.
    """
    sdata = _read(path)
    if tile_key not in sdata.shapes:
        hint = did_you_mean(tile_key, sdata.shapes) if len(sdata.shapes) else "It has no shapes."
        raise ValueError(f"{str(path)!r} has no tiles {tile_key!r}. {hint} tile_key= names others.")
    spec = sdata.attrs.get("tile_spec", {}).get(tile_key)
    if not spec:
        raise ValueError(
            f"{str(path)!r} does not state the size of the tiles {tile_key!r}: attrs['tile_spec'] lacks it. Tile the slide "
            "again with a present version of LazySlide."
        )
    name, table = _table(sdata, path, encoder, tile_key)
    tiles = sdata.shapes[tile_key]
    bounds = tiles.geometry.bounds.to_numpy(np.float64)
    sides = np.concatenate([bounds[:, 2] - bounds[:, 0], bounds[:, 3] - bounds[:, 1]])
    if len(sides) and np.ptp(sides) > _SQUARE:
        raise ValueError(
            f"{str(path)!r}: the tiles {tile_key!r} are no squares of one size ({sides.min():g} to {sides.max():g} px)."
        )
    ids = tiles["tile_id"].to_numpy() if "tile_id" in tiles else tiles.index.to_numpy()
    rows = _rows(path, table, ids)
    values: Any = table.X
    mpp = positive(spec.get("mpp"))
    properties = sdata.attrs.get("slide_properties", {})
    height, width = (int(side) for side in properties.get("shape", (0, 0)))
    return FeatureFile(
        path=path,
        program="wsidata",
        encoder=name,
        corners=check_tiles(path, bounds[:, :2], len(rows)),
        side_px=float(sides[0]),
        tile_px=int(spec["width"]),
        tile_um=int(spec["width"]) * mpp if mpp else None,
        um_per_px=positive(properties.get("mpp")),
        size=(width, height) if width and height else None,
        dim=int(values.shape[1]),
        dtype=str(values.dtype),
        chunks=lambda: _chunks(values, rows),
    )


def _read(path: Path) -> Any:
    try:
        import spatialdata
    except ImportError as error:
        raise ImportError("Stores of wsidata are read with spatialdata: pip install 'gdml[spatial]'.") from error
    try:
        return spatialdata.read_zarr(path, selection=("shapes", "tables"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as a SpatialData store: it is incomplete or another kind of folder ({error})."
        ) from error


def _table(sdata: Any, path: Path, encoder: str | None, tile_key: str) -> tuple[str, ad.AnnData]:
    """Name of the encoder and its table."""
    region = lambda table: table.uns.get("spatialdata_attrs", {}).get("region")
    found = {
        name.removesuffix(f"_{tile_key}"): table
        for name, table in sdata.tables.items()
        if tile_key in np.atleast_1d(region(table)) and table.X is not None and table.n_vars
    }
    if not found:
        raise ValueError(
            f"{str(path)!r} has no features of the tiles {tile_key!r} (tables: {some(sdata.tables) or 'none'}); compute "
            "them with lazyslide.tl.feature_extraction, and write the store."
        )
    if encoder is None and len(found) > 1:
        raise ValueError(
            f"{str(path)!r} has features of {len(found)} encoders ({some(found)}): choose one, encoder={next(iter(found))!r}."
        )
    name = next(iter(found)) if encoder is None else encoder.removesuffix(f"_{tile_key}")
    if name not in found:
        raise ValueError(
            f"`encoder` is {encoder!r}, of which {str(path)!r} has no features. {did_you_mean(name, found)}"
        )
    return name, found[name]


def _rows(path: Path, table: ad.AnnData, ids: NDArray[Any]) -> NDArray[np.intp]:
    """Row of the table for each tile."""
    key = table.uns["spatialdata_attrs"].get("instance_key", "tile_id")
    at = pd.Index(table.obs[key]).get_indexer(ids) if pd.Index(table.obs[key]).is_unique else np.full(len(ids), -1)
    if (at < 0).any():
        raise ValueError(
            f"{str(path)!r}: {int((at < 0).sum())} of {len(ids)} tiles have no features, or more than one row of them: the "
            "tiles were made again after the features. Compute the features again."
        )
    return at


def _chunks(values: Any, rows: NDArray[np.intp]) -> Iterator[NDArray[np.floating]]:
    for start in range(0, len(rows), ROWS):
        part = values[rows[start : start + ROWS]]
        yield part.toarray() if sparse.issparse(part) else np.asarray(part)
