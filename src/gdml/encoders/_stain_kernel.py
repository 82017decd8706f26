"""Sums of stain and texture over the cells of a tile, in compiled loops.

Every entry is a sum over px of level 0, so that the sums of a tile are the sums over its cells.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

GRID = 7  # cells along a side of the tile
CELL = 32  # px along a side of a cell
LEVELS = 6  # averages over 1, 2, 4, ... 32 px; the last is the cell itself
BINS = 48
MAX_OD = 1.2  # upper end of the histograms of stain
MAX_RESIDUAL = 0.3  # what neither stain explains is cut here: ink and pigment
OD_WHITE = 0.12  # below this mean optical density a px is glass or lumen
OD_NUCLEUS = 0.35  # haematoxylin above this, averaged over 2 x 2 px, is a nucleus

# Optical density vectors of haematoxylin and eosin (Ruifrok and Johnston 2001); the third is orthogonal to both.
_H = np.array([0.644211, 0.716556, 0.266844])
_E = np.array([0.092789, 0.954111, 0.283111])
_R = np.cross(_H, _E)
UNMIX = np.linalg.inv(np.stack([_H, _E, _R / np.linalg.norm(_R)])).astype(np.float32)
DENSITY = (-np.log10((np.arange(256) + 1.0) / 256.0)).astype(np.float32)

# First entry of each kind of sum
SQUARES_H, SQUARES_E, PRODUCTS = 0, 6, 12  # by level: H^2, E^2, H E of the averages
MEANS = 18  # H, E
WHITE = 20  # white px at levels 0, 2, 4
TISSUE = 23  # px that are not white, their H, their E
NUCLEI = 26  # px of nuclei, their H, their E
GRADIENT = 29  # squared gradient of optical density at levels 0, 1, 2
BLOBS = 32  # number of peaks of H, their prominence, their height
CORES = 35  # px denser than their tile, and those that remain after 1, 2, 3 erosions
HIST_H = 39
HIST_E = HIST_H + BINS
HIST_ANGLE = HIST_E + BINS
RESIDUAL = HIST_ANGLE + BINS  # density that neither stain explains
N_SUMS = RESIDUAL + 1


def tile_sums(tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute the sums (49, N_SUMS) over the cells, row-major, of a tile (224, 224, 3) uint8."""
    sums = np.zeros((GRID * GRID, N_SUMS), np.float32)
    _tile_sums(tile, DENSITY, UNMIX, sums)
    return sums


@njit(cache=True, nogil=True)
def _halve(a):
    n = a.shape[0] // 2
    out = np.empty((n, n), np.float32)
    for y in range(n):
        for x in range(n):
            out[y, x] = 0.25 * (a[2 * y, 2 * x] + a[2 * y, 2 * x + 1] + a[2 * y + 1, 2 * x] + a[2 * y + 1, 2 * x + 1])
    return out


@njit(cache=True, nogil=True)
def _gradient(od, entry, sums):
    n = od.shape[0]
    per = n // GRID
    weight = np.float32((CELL // per) ** 2)
    for y in range(1, n - 1):
        for x in range(1, n - 1):
            gx = od[y, x + 1] - od[y, x - 1]
            gy = od[y + 1, x] - od[y - 1, x]
            sums[(y // per) * GRID + x // per, entry] += weight * (gx * gx + gy * gy)


@njit(cache=True, nogil=True)
def _blobs(h, sums):
    """Peaks of H at 4 px above the rim of a 7 x 7 window: about one per nucleus."""
    n = h.shape[0]
    per = n // GRID
    smooth = np.zeros((n, n), np.float32)
    for y in range(1, n - 1):
        for x in range(1, n - 1):
            total = h[y, x]
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    total += h[y + dy, x + dx]
            smooth[y, x] = total / np.float32(10)
    for y in range(3, n - 3):
        for x in range(3, n - 3):
            top = smooth[y, x]
            peak = True
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    peak = peak and smooth[y + dy, x + dx] <= top
            if not peak:
                continue
            rim = np.float32(0)
            for d in range(-3, 3):
                rim += h[y - 3, x + d] + h[y + 3, x - d] + h[y + d, x + 3] + h[y - d, x - 3]
            rise = top - rim / np.float32(24)
            if rise > np.float32(0.02):
                cell = (y // per) * GRID + x // per
                sums[cell, BLOBS] += 1
                sums[cell, BLOBS + 1] += rise
                sums[cell, BLOBS + 2] += top


@njit(cache=True, nogil=True)
def _cores(h, sums):
    """Erode the dense parts at 4 px by one px three times; the remainders measure their size."""
    n = h.shape[0]
    per = n // GRID
    weight = np.float32((CELL // per) ** 2)
    dense = h > 1.25 * max(h.mean(), 0.1)
    for step in range(4):
        left = dense.copy()
        for y in range(n):
            for x in range(n):
                if not dense[y, x]:
                    continue
                sums[(y // per) * GRID + x // per, CORES + step] += weight
                left[y, x] = (
                    (y == 0 or dense[y - 1, x])
                    and (y == n - 1 or dense[y + 1, x])
                    and (x == 0 or dense[y, x - 1])
                    and (x == n - 1 or dense[y, x + 1])
                )
        dense = left


@njit(cache=True, nogil=True)
def _tile_sums(tile, density, unmix, sums):
    n = tile.shape[0]
    h = np.empty((n, n), np.float32)
    e = np.empty((n, n), np.float32)
    od = np.empty((n, n), np.float32)
    for y in range(n):
        for x in range(n):
            r, g, b = density[tile[y, x, 0]], density[tile[y, x, 1]], density[tile[y, x, 2]]
            od[y, x] = (r + g + b) / np.float32(3)
            h[y, x] = r * unmix[0, 0] + g * unmix[1, 0] + b * unmix[2, 0]
            e[y, x] = r * unmix[0, 1] + g * unmix[1, 1] + b * unmix[2, 1]
            cell = (y // CELL) * GRID + x // CELL
            rest = r * unmix[0, 2] + g * unmix[1, 2] + b * unmix[2, 2]
            sums[cell, RESIDUAL] += min(max(rest, np.float32(-MAX_RESIDUAL)), np.float32(MAX_RESIDUAL))

    for level in range(LEVELS):
        shift = LEVELS - 1 - level  # a cell has 2**shift px along a side
        weight = np.float32((1 << level) ** 2)
        for y in range(GRID << shift):
            row = (y >> shift) * GRID
            for x in range(GRID << shift):
                cell = row + (x >> shift)
                vh, ve = h[y, x], e[y, x]
                sums[cell, SQUARES_H + level] += weight * vh * vh
                sums[cell, SQUARES_E + level] += weight * ve * ve
                sums[cell, PRODUCTS + level] += weight * vh * ve
                white = od[y, x] < OD_WHITE
                if white and level in (0, 2, 4):
                    sums[cell, WHITE + level // 2] += weight
                if level == LEVELS - 1:
                    sums[cell, MEANS] += weight * vh
                    sums[cell, MEANS + 1] += weight * ve
                if level != 1:
                    continue
                sums[cell, HIST_H + min(max(int(vh * (BINS / MAX_OD)), 0), BINS - 1)] += weight
                sums[cell, HIST_E + min(max(int(ve * (BINS / MAX_OD)), 0), BINS - 1)] += weight
                if not white:
                    sums[cell, TISSUE] += weight
                    sums[cell, TISSUE + 1] += weight * vh
                    sums[cell, TISSUE + 2] += weight * ve
                    angle = np.arctan2(max(ve, np.float32(0)), max(vh, np.float32(1e-3))) / np.float32(np.pi / 2)
                    sums[cell, HIST_ANGLE + min(int(angle * BINS), BINS - 1)] += weight
                if vh > OD_NUCLEUS:
                    sums[cell, NUCLEI] += weight
                    sums[cell, NUCLEI + 1] += weight * vh
                    sums[cell, NUCLEI + 2] += weight * ve
        if level <= 2:
            _gradient(od, GRADIENT + level, sums)
        if level == 2:
            _blobs(h, sums)
            _cores(h, sums)
        if level < LEVELS - 1:
            h, e, od = _halve(h), _halve(e), _halve(od)
