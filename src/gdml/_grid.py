"""Neighbouring spots of a slide, by their positions on the grid of the array."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse


def is_hexagonal(row: ArrayLike, col: ArrayLike) -> bool:
    """Whether grid positions are those of a hexagonal array in the coordinates of Visium.

    On such an array row + column is even for all spots or odd for all spots; on a square grid it is both.
    """
    parity = (np.asarray(row, np.int64) + np.asarray(col, np.int64)) % 2
    return len(parity) > 1 and bool((parity == parity[0]).all())


def grid_smoother(row: ArrayLike, col: ArrayLike, library: ArrayLike) -> sparse.csr_array:
    """Matrix that averages each spot with its neighbours on the grid of its slide.

    Square grids: the 3x3 cells around a spot. Hexagonal grids in Visium's coordinates (where row + column is
    even in every spot, or odd in every spot): the spot and its six neighbours. Cells without a spot are left
    out of the average.

    Parameters
    ----------
    row, col
        Grid position of each spot, whole numbers, length n.
    library
        Slide of each spot, length n; spots of different slides are never averaged.

    Returns
    -------
    Sparse, n x n, float64; every row sums to one.

    Raises
    ------
    ValueError
        If a position is not a whole number, or two spots of a slide have the same one.
    """
    row, col = np.asarray(row, np.float64), np.asarray(col, np.float64)
    if not (np.array_equal(row, np.rint(row)) and np.array_equal(col, np.rint(col))):
        raise ValueError("Grid positions (`row`, `col`) must be whole numbers.")
    codes = np.unique(np.asarray(library), return_inverse=True)[1]
    row, col = row.astype(np.int64), col.astype(np.int64)
    # an integer per cell; a margin of five separates neighbours of a row or slide from the next
    width, height = (np.ptp(x) + 5 if len(x) else 0 for x in (col, row))
    cell = (codes * height + row) * width + col
    order = np.argsort(cell)
    ordered = cell[order]
    if (np.diff(ordered) == 0).any():
        raise ValueError("Two spots of one slide have the same grid position (`row`, `col`).")

    square = np.array([(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)])
    hexagon = np.array([(0, 0), (0, -2), (0, 2), (-1, -1), (-1, 1), (1, -1), (1, 1)])
    sources, targets = [], []
    for code in np.unique(codes):
        spots = np.flatnonzero(codes == code)
        offsets = hexagon if is_hexagonal(row[spots], col[spots]) else square
        wanted = cell[spots, None] + offsets @ (width, 1)
        at = np.searchsorted(ordered, wanted).clip(max=len(cell) - 1)
        source, neighbor = np.nonzero(ordered[at] == wanted)
        sources.append(spots[source])
        targets.append(order[at[source, neighbor]])
    source = np.concatenate(sources) if sources else np.empty(0, np.intp)
    target = np.concatenate(targets) if targets else np.empty(0, np.intp)
    weight = 1 / np.bincount(source, minlength=len(row))[source]
    return sparse.csr_array((weight, (source, target)), shape=(len(row), len(row)))
