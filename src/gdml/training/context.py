"""Which spots of a slide stand for it, and which spots are near to each other."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

#: Spots of a slide that slide attention reads, at most.
MAX_CONTEXT = 4096
#: Nearest spots of each spot, itself included.
N_NEAREST = 9


def even_subset(xy: NDArray[np.floating], most: int) -> NDArray[np.int64]:
    """Choose spots that are spread evenly over a slide.

    The slide is cut into the smallest squares of which no more than ``most`` hold spots, and the spot nearest to the
    centre of each square is chosen. Nothing is drawn at random: the same slide has the same subset everywhere.

    Parameters
    ----------
    xy
        (n, 2) spot centres.
    most
        Number of spots to choose; all are chosen where there are no more.

    Returns
    -------
    (c,) int64 rows of ``xy``, ascending.
    """
    if len(xy) <= most:
        return np.arange(len(xy))
    places = xy.astype(np.float64) - xy.min(0)
    extent = places.max() or 1.0

    def cells(side: float) -> NDArray[np.int64]:
        row, column = np.floor(places / side).astype(np.int64).T
        return row * (int(extent / side) + 2) + column

    low, high = 0.0, 2 * extent
    for _ in range(30):
        side = (low + high) / 2
        low, high = (low, side) if len(np.unique(cells(side))) <= most else (side, high)
    cell = cells(high)
    off_center = np.square(places / high % 1 - 0.5).sum(1)
    order = np.lexsort((off_center, cell))
    first = np.r_[True, np.diff(cell[order]) != 0]
    return np.sort(order[first])


def nearest_spots(xy: NDArray[np.floating], n: int = N_NEAREST) -> NDArray[np.int32]:
    """Find the nearest spots of each spot.

    Parameters
    ----------
    xy
        (n_spots, 2) spot centres of one slide.
    n
        Spots to find, the spot itself included.

    Returns
    -------
    (n_spots, n) int32 rows, the spot itself first, the others by distance; on a slide of fewer spots, itself again.
    """
    own = np.arange(len(xy), dtype=np.int32)
    found = np.repeat(own[:, None], n, axis=1)
    k = min(n, len(xy))
    if k > 1:
        places = xy.astype(np.float64)
        found[:, :k] = KDTree(places).query(places, k=k)[1]
        found[:, 0] = own  # of two spots at one place, each is its own first
    return found
