"""Row and column of each spot on the grid of its slide."""

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import some
from gdml._grid import is_hexagonal


def grid_positions(adata: AnnData, rows: NDArray[np.intp], xy: NDArray[np.float64], name: str) -> NDArray[np.int64]:
    """Row and column of the spots of a slide on a dense grid, from 0, each position once.

    Taken from ``array_row`` and ``array_col`` where they are whole numbers (the columns of Visium's hexagonal
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
        Name of the slide, for messages.

    Returns
    -------
    (n, 2) int64.

    Raises
    ------
    TypeError
        If the array positions are text.
    ValueError
        If two spots have the same position.
    """
    if {_keys.ARRAY_ROW, _keys.ARRAY_COL} <= set(adata.obs.columns):
        grid = array_positions(adata)[rows]
        if np.isfinite(grid).all() and (grid == np.rint(grid)).all():
            grid = grid.astype(np.int64)
            if is_hexagonal(grid[:, 0], grid[:, 1]):
                grid[:, 1] //= 2
            return _distinct(grid - grid.min(0), adata, rows, name)
    return _distinct(_grid_of_coordinates(xy), adata, rows, name)


def array_positions(adata: AnnData) -> NDArray[np.float64]:
    """``array_row`` and ``array_col`` of all spots, (n_obs, 2).

    Raises
    ------
    TypeError
        If a column is not numeric.
    """
    columns = []
    for name in (_keys.ARRAY_ROW, _keys.ARRAY_COL):
        try:
            columns.append(pd.to_numeric(adata.obs[name]).to_numpy(np.float64))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"obs[{name!r}] must be numbers, found {adata.obs[name].dtype} ({error}); it is the grid position of each "
                "spot: convert it with pandas.to_numeric, or remove it."
            ) from error
    return np.stack(columns, 1)


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
    # irregular positions: the order from top to bottom, one row per spot
    return np.stack([np.argsort(np.argsort(xy[:, 1])), np.zeros(len(xy), np.int64)], 1)


def _distinct(grid: NDArray[np.int64], adata: AnnData, rows: NDArray[np.intp], name: str) -> NDArray[np.int64]:
    twice = pd.DataFrame(grid).duplicated(keep=False).to_numpy()
    if twice.any():
        raise ValueError(
            f"Slide {name!r}: {twice.sum()} spots share a grid position (obs[{_keys.ARRAY_ROW!r}], "
            f"obs[{_keys.ARRAY_COL!r}]): {some(adata.obs_names[rows[twice]])}. If several slides are taken for one, name "
            "the column with the slide of each spot: gdml.pp.tile(adata, library_key=...)."
        )
    return grid
