"""From the rows of an AnnData to the tensors of a run."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from gdml import _keys
from gdml._errors import some
from gdml._grid import is_hexagonal
from gdml.training import SpotData

from .coordinates import libraries, spot_coordinates
from .counts import raw_counts
from .features import load_features


def spot_data(
    adata: AnnData,
    *,
    key: str,
    expression: NDArray[np.float32] | None = None,
    counts: NDArray[np.float32] | None = None,
    groups: dict[str, str] | None = None,
) -> tuple[SpotData, NDArray[np.intp]]:
    """Gather features, geometry and expression of all spots.

    Parameters
    ----------
    adata
        Tiled and embedded spots.
    key
        Name under which they were.
    expression
        (n_obs, n_genes), rows as in ``adata``.
    counts
        (n_obs, n_genes) raw counts.
    groups
        Group of each slide; by default each slide is its own.

    Returns
    -------
    The spots, those of a slide next to each other, and the row of ``adata`` that each came from.
    """
    tiles = adata.uns[key][_keys.TILES]
    xy = spot_coordinates(adata, tiles["spatial_key"])
    by_slide = libraries(adata, tiles["library_key"], spatial_key=tiles["spatial_key"])
    features = load_features(adata, key=key)
    names = list(by_slide)
    order = np.concatenate([by_slide[name] for name in names])
    side = np.concatenate([np.full(len(by_slide[n]), float(tiles["slides"][n]["side_px"])) for n in names])
    stack = lambda part: torch.from_numpy(np.concatenate([getattr(features[name], part) for name in names]))
    data = SpotData(
        tokens=stack("tokens"),
        pooled=stack("pooled"),
        neighbors=stack("neighbors"),
        neighbor_mask=stack("neighbor_mask"),
        grid=torch.from_numpy(np.concatenate([grid_positions(adata, by_slide[n], xy[by_slide[n]], n) for n in names])),
        xy=torch.from_numpy((xy[order] / side[:, None]).astype(np.float32)),
        slide=torch.from_numpy(np.repeat(np.arange(len(names)), [len(by_slide[n]) for n in names])),
        names=names,
        groups=[groups[name] if groups else name for name in names],
        expression=None if expression is None else torch.from_numpy(expression[order]),
        counts=None if counts is None else torch.from_numpy(counts[order]),
    )
    return data, order


def panel_counts(adata: AnnData, panel: pd.Index, layer: str | None) -> NDArray[np.float32]:
    """Raw counts of the panel genes, (n_obs, n_panel) float32; zero for genes that ``adata`` lacks."""
    at = adata.var_names.get_indexer(panel)
    found = raw_counts(adata, layer)[:, at[at >= 0]]
    counts = np.zeros((adata.n_obs, len(at)), np.float32)
    counts[:, at >= 0] = found.toarray() if sparse.issparse(found) else found
    return counts


def grid_positions(adata: AnnData, rows: NDArray[np.intp], xy: NDArray[np.float64], name: str) -> NDArray[np.int64]:
    """Row and column of the spots of a slide on a dense grid, from 0, no two alike.

    From ``array_row`` and ``array_col`` where they are whole numbers (the columns of Visium's hexagonal
    array, of which every second is empty, are halved), else from the coordinates and their spacing.

    Parameters
    ----------
    adata
        The spots.
    rows
        Rows of the slide.
    xy
        (n, 2) their centres.
    name
        Of the slide, for messages.

    Returns
    -------
    (n, 2) int64.

    Raises
    ------
    ValueError
        If two spots have the same position.
    """
    if {_keys.ARRAY_ROW, _keys.ARRAY_COL} <= set(adata.obs.columns):
        grid = adata.obs[[_keys.ARRAY_ROW, _keys.ARRAY_COL]].to_numpy(np.float64)[rows]
        if np.isfinite(grid).all() and (grid == np.rint(grid)).all():
            grid = grid.astype(np.int64)
            if is_hexagonal(grid[:, 0], grid[:, 1]):
                grid[:, 1] //= 2
            return _distinct(grid - grid.min(0), adata, rows, name)
    return _distinct(_grid_of_coordinates(xy), adata, rows, name)


def _grid_of_coordinates(xy: NDArray[np.float64]) -> NDArray[np.int64]:
    """Cells as wide as the spots are apart; narrower where two spots would share one."""
    from scipy.spatial import KDTree

    if len(xy) < 2:
        return np.zeros((len(xy), 2), np.int64)
    pitch = float(np.median(KDTree(xy).query(xy, k=2)[0][:, 1]))
    shifted = (xy - xy.min(0))[:, ::-1]
    for _ in range(6 if pitch > 0 else 0):
        cells = np.rint(shifted / pitch).astype(np.int64)
        if len(np.unique(cells, axis=0)) == len(cells):
            return cells
        pitch *= 0.75
    # irregular positions: ranks keep the order, one row a spot where ranks tie
    return np.stack([np.argsort(np.argsort(xy[:, 1])), np.zeros(len(xy), np.int64)], 1)


def _distinct(grid: NDArray[np.int64], adata: AnnData, rows: NDArray[np.intp], name: str) -> NDArray[np.int64]:
    twice = pd.DataFrame(grid).duplicated(keep=False).to_numpy()
    if twice.any():
        raise ValueError(
            f"Slide {name!r}: {twice.sum()} spots share a grid position (obs[{_keys.ARRAY_ROW!r}], "
            f"obs[{_keys.ARRAY_COL!r}]): {some(adata.obs_names[rows[twice]])}. Are several slides taken for one? "
            "Name the column that tells them apart: gdml.pp.tile(adata, library_key=...)."
        )
    return grid


def slide_groups(adata: AnnData, groups: str | None, *, key: str) -> dict[str, str] | None:
    """Group of each slide from a column of ``obs``, or None.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a slide has spots of two groups, or of none.
    """
    if groups is None:
        return None
    if groups not in adata.obs:
        raise KeyError(f"`groups` is {groups!r}, which is no column of obs (it has: {some(adata.obs.columns, 10)}).")
    tiles: Any = adata.uns[key][_keys.TILES]
    column = adata.obs[groups]
    found = {}
    for name, rows in libraries(adata, tiles["library_key"], spatial_key=tiles["spatial_key"]).items():
        values = column.iloc[rows]
        if values.isna().any():
            raise ValueError(f"obs[{groups!r}] is missing for {int(values.isna().sum())} spots of slide {name!r}.")
        if values.nunique() > 1:
            raise ValueError(
                f"Slide {name!r} has spots of several groups in obs[{groups!r}] ({some(values.unique())}): "
                "a slide must belong to one group."
            )
        found[name] = str(values.iloc[0])
    return found
