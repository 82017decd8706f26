"""Local binary patterns of the cells of a tile at several scales, in compiled loops.

Which of the eight px around a px are denser than it hardly depends on the strength of the stain, and how many they are
does not depend on orientation (Ojala, Pietikäinen and Mäenpää 2002, riu2). Everything is counted in integers, so that
turning a tile changes nothing.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ._stain_kernel import CELL, DENSITY, GRID

STEPS = (4, 8)  # sides of the px that are compared, px of the tile
PATTERNS = 10  # 0 to 8 denser px in one run, and all others
MARGIN = 0.004  # optical density by which a px must be denser
_UNIT = 1024
_DENSITIES = np.round(DENSITY * _UNIT).astype(np.int32)


def pattern_counts(tile: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the patterns in the cells of a tile.

    Parameters
    ----------
    tile
        (224, 224, 3) uint8.

    Returns
    -------
    (49, len(STEPS), PATTERNS), cells row-major. Px at the border of the tile have no pattern.
    """
    counts = np.zeros((GRID * GRID, len(STEPS), PATTERNS), np.int64)
    total = _densities(tile, _DENSITIES, STEPS[0])
    for i, step in enumerate(STEPS):
        if i:
            total = _halve(total)
        _count(total, round(MARGIN * _UNIT * 3 * step**2), CELL // step, counts[:, i])
    return counts


@njit(cache=True, nogil=True)
def _densities(tile, densities, step):
    n = tile.shape[0] // step
    total = np.zeros((n, n), np.int32)
    for y in range(n * step):
        for x in range(n * step):
            total[y // step, x // step] += (
                densities[tile[y, x, 0]] + densities[tile[y, x, 1]] + densities[tile[y, x, 2]]
            )
    return total


@njit(cache=True, nogil=True)
def _halve(a):
    n = a.shape[0] // 2
    out = np.empty((n, n), np.int32)
    for y in range(n):
        for x in range(n):
            out[y, x] = a[2 * y, 2 * x] + a[2 * y, 2 * x + 1] + a[2 * y + 1, 2 * x] + a[2 * y + 1, 2 * x + 1]
    return out


@njit(cache=True, nogil=True)
def _count(total, margin, per, counts):
    n = total.shape[0]
    for y in range(1, n - 1):
        for x in range(1, n - 1):
            limit = total[y, x] + margin
            around = (
                total[y - 1, x - 1] > limit,
                total[y - 1, x] > limit,
                total[y - 1, x + 1] > limit,
                total[y, x + 1] > limit,
                total[y + 1, x + 1] > limit,
                total[y + 1, x] > limit,
                total[y + 1, x - 1] > limit,
                total[y, x - 1] > limit,
            )
            denser, changes = 0, 0
            for i in range(8):
                denser += around[i]
                changes += around[i] != around[i - 1]
            counts[(y // per) * GRID + x // per, denser if changes <= 2 else PATTERNS - 1] += 1
