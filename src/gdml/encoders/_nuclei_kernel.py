"""Nuclei of a tile by their size, in compiled loops.

A px of 2 x 2 px of the tile (1 um in the default tile of 112 um) belongs to a nucleus where haematoxylin stands out from
its surround, so that the strength of the stain matters little and nuclei that touch fall apart; pieces joined by a side
are one nucleus. Sums are integers, so that turning a tile changes nothing.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ._stain_kernel import CELL, DENSITY, GRID, UNMIX

STEP = 2  # side of a px here, px of the tile
NEAR, WIDE = 8, 24  # half sides of the surrounds, px
CONTRAST, RISE = 1.1, 0.02  # haematoxylin of a nucleus is above CONTRAST times that of its surround, and RISE more
FLOOR = 0.1  # optical density of haematoxylin below which nothing is a nucleus
MIN_AREA, MAX_AREA = 12, 400  # px; smaller is dirt, larger a clump
SIZES = (30, 60, 110)  # px between small, medium, large and very large nuclei
N_SIZES = len(SIZES) + 1
_UNIT = 256 * STEP**2  # of the integers, per optical density


def nuclei_mask(tile: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Find the px (112, 112) that belong to a nucleus in a tile (224, 224, 3) uint8."""
    return _mask(_haematoxylin(tile, DENSITY, UNMIX))


def nuclei_counts(tile: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Count the nuclei of each size (49, N_SIZES) in the cells, row-major, of a tile (224, 224, 3) uint8.

    A nucleus across a border of cells counts in each by its share of the area.
    """
    counts = np.zeros((GRID * GRID, N_SIZES))
    _count(nuclei_mask(tile), SIZES, counts)
    return counts


@njit(cache=True, nogil=True)
def _haematoxylin(tile, density, unmix):
    n = tile.shape[0] // STEP
    h = np.zeros((n, n), np.int32)
    for y in range(n * STEP):
        for x in range(n * STEP):
            r, g, b = density[tile[y, x, 0]], density[tile[y, x, 1]], density[tile[y, x, 2]]
            here = r * unmix[0, 0] + g * unmix[1, 0] + b * unmix[2, 0]
            h[y // STEP, x // STEP] += np.int32(np.floor(256 * here + np.float32(0.5)))
    return h


@njit(cache=True, nogil=True)
def _mean(upto, y, x, half):
    """Mean over the px at most ``half`` away, within the tile, from the sums of all px above and left."""
    n = upto.shape[0] - 1
    y0, y1, x0, x1 = max(y - half, 0), min(y + half + 1, n), max(x - half, 0), min(x + half + 1, n)
    return (upto[y1, x1] - upto[y0, x1] - upto[y1, x0] + upto[y0, x0]) / ((y1 - y0) * (x1 - x0))


@njit(cache=True, nogil=True)
def _mask(h):
    n = h.shape[0]
    upto = np.zeros((n + 1, n + 1), np.int64)
    for y in range(n):
        row = 0
        for x in range(n):
            row += h[y, x]
            upto[y + 1, x + 1] = upto[y, x + 1] + row
    mask = np.zeros((n, n), np.bool_)
    for y in range(n):
        for x in range(n):
            here = _mean(upto, y, x, 1)
            mask[y, x] = (
                here > FLOOR * _UNIT
                and here > CONTRAST * _mean(upto, y, x, NEAR) + RISE * _UNIT
                and here > _mean(upto, y, x, WIDE)
            )
    return mask


@njit(cache=True, nogil=True)
def _count(mask, sizes, counts):
    """Visit the px of one nucleus after the other; ``mask`` is used up."""
    n = mask.shape[0]
    per = CELL // STEP
    found = np.empty((n * n, 2), np.int32)
    for top in range(n):
        for left in range(n):
            if not mask[top, left]:
                continue
            mask[top, left] = False
            found[0, 0], found[0, 1] = top, left
            done, area = 0, 1
            while done < area:
                y, x = found[done]
                done += 1
                for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                    v, u = y + dy, x + dx
                    if 0 <= v < n and 0 <= u < n and mask[v, u]:
                        mask[v, u] = False
                        found[area, 0], found[area, 1] = v, u
                        area += 1
            if area < MIN_AREA or area > MAX_AREA:
                continue
            size = 0
            for limit in sizes:
                size += area >= limit
            for i in range(area):
                counts[(found[i, 0] // per) * GRID + found[i, 1] // per, size] += 1 / area
