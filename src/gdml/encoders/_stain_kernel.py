"""Sums of stain and texture over the cells of a tile, in one pass of compiled loops.

Everything is a plain sum or a histogram, so that the sums of a whole tile are those of its cells added up.
"""

import numpy as np
from numba import njit

GRID = 7  # cells along a side
CELL = 32  # px of a cell: five halvings
LEVELS = 6  # the cell itself is level 5
BINS = 48
MAX_OD = 1.2
OD_WHITE = 0.12  # summed over nothing: mean optical density below which a px is glass or lumen
OD_NUCLEUS = 0.35  # haematoxylin of a nucleus, averaged over 2 x 2 px

# Optical density vectors of haematoxylin and eosin (Ruifrok and Johnston 2001); the third is orthogonal to both.
_H = np.array([0.644211, 0.716556, 0.266844])
_E = np.array([0.092789, 0.954111, 0.283111])
_R = np.cross(_H, _E)
UNMIX = np.linalg.inv(np.stack([_H, _E, _R / np.linalg.norm(_R)])).astype(np.float32)
DENSITY = (-np.log10((np.arange(256) + 1.0) / 256.0)).astype(np.float32)

# slots of the sums
RGB, HER, SQ_H, SQ_E, CROSS, SQ_R = 0, 3, 6, 12, 18, 24
WHITE = 30  # levels 0, 2, 4
TISSUE = 33  # px with tissue, their H, E
NUCLEI = 36  # px of nuclei (fixed threshold), their H, E, R
DENSE = 40  # px above 1.5 x the cell's haematoxylin
TENSOR = 41  # levels 0, 1, 2: xx, yy, xy of OD; then the same of H
BLOBS = 50  # count, contrast, H at the top, distance-free sharpness
ANGLE_N = 54
SCALARS = 56
HIST_H, HIST_E, HIST_ANGLE = SCALARS, SCALARS + BINS, SCALARS + 2 * BINS
N_SUMS = SCALARS + 3 * BINS


@njit(cache=True, nogil=True)
def _halve(a):
    n = a.shape[0] // 2
    out = np.empty((n, n), np.float32)
    for y in range(n):
        for x in range(n):
            out[y, x] = 0.25 * (a[2 * y, 2 * x] + a[2 * y, 2 * x + 1] + a[2 * y + 1, 2 * x] + a[2 * y + 1, 2 * x + 1])
    return out


@njit(cache=True, nogil=True)
def _tensor(a, slot, acc):
    n = a.shape[0]
    per = n // GRID
    weight = np.float32((CELL / per) ** 2)
    for y in range(1, n - 1):
        for x in range(1, n - 1):
            gx = a[y, x + 1] - a[y, x - 1]
            gy = a[y + 1, x] - a[y - 1, x]
            cell = (y // per) * GRID + x // per
            acc[cell, slot] += weight * gx * gx
            acc[cell, slot + 1] += weight * gy * gy
            acc[cell, slot + 2] += weight * gx * gy


@njit(cache=True, nogil=True)
def _blobs(h, acc):
    """Peaks of haematoxylin at 2 um per px that stand out of a 7 x 7 ring: about one a nucleus."""
    n = h.shape[0]
    per = n // GRID
    smooth = np.zeros((n, n), np.float32)
    for y in range(1, n - 1):
        for x in range(1, n - 1):
            s = np.float32(0)
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    s += h[y + dy, x + dx]
            smooth[y, x] = (s + h[y, x]) / np.float32(10)
    for y in range(3, n - 3):
        for x in range(3, n - 3):
            v = smooth[y, x]
            peak = True
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if smooth[y + dy, x + dx] > v:
                        peak = False
            if not peak:
                continue
            ring = np.float32(0)
            for d in range(-3, 3):
                ring += h[y - 3, x + d] + h[y + 3, x - d] + h[y + d, x + 3] + h[y - d, x - 3]
            rise = v - ring / np.float32(24)
            if rise > np.float32(0.02):
                cell = (y // per) * GRID + x // per
                acc[cell, BLOBS] += 1
                acc[cell, BLOBS + 1] += rise
                acc[cell, BLOBS + 2] += v
                acc[cell, BLOBS + 3] += rise * rise


@njit(cache=True, nogil=True)
def tile_sums(tile, density, unmix, acc):
    """Add the sums of one tile (224, 224, 3) uint8 to ``acc`` (49, N_SUMS) float32, zeroed by the caller."""
    n = tile.shape[0]
    h = np.empty((n, n), np.float32)
    e = np.empty((n, n), np.float32)
    r = np.empty((n, n), np.float32)
    od = np.empty((n, n), np.float32)
    for y in range(n):
        row = (y // CELL) * GRID
        for x in range(n):
            a, b, c = density[tile[y, x, 0]], density[tile[y, x, 1]], density[tile[y, x, 2]]
            cell = row + x // CELL
            acc[cell, RGB] += a
            acc[cell, RGB + 1] += b
            acc[cell, RGB + 2] += c
            od[y, x] = (a + b + c) / np.float32(3)
            h[y, x] = a * unmix[0, 0] + b * unmix[1, 0] + c * unmix[2, 0]
            e[y, x] = a * unmix[0, 1] + b * unmix[1, 1] + c * unmix[2, 1]
            r[y, x] = a * unmix[0, 2] + b * unmix[1, 2] + c * unmix[2, 2]

    for level in range(LEVELS):
        per = CELL >> level
        weight = np.float32((1 << level) ** 2)
        for y in range(GRID * per):
            row = (y // per) * GRID
            for x in range(GRID * per):
                cell = row + x // per
                vh, ve, vr = h[y, x], e[y, x], r[y, x]
                acc[cell, SQ_H + level] += weight * vh * vh
                acc[cell, SQ_E + level] += weight * ve * ve
                acc[cell, CROSS + level] += weight * vh * ve
                acc[cell, SQ_R + level] += weight * vr * vr
                white = od[y, x] < OD_WHITE
                if level % 2 == 0 and white:
                    acc[cell, WHITE + level // 2] += weight
                if level == 5:
                    acc[cell, HER] += weight * vh
                    acc[cell, HER + 1] += weight * ve
                    acc[cell, HER + 2] += weight * vr
                if level == 1:
                    if not white:
                        acc[cell, TISSUE] += weight
                        acc[cell, TISSUE + 1] += weight * vh
                        acc[cell, TISSUE + 2] += weight * ve
                        angle = np.arctan2(max(ve, np.float32(0)), max(vh, np.float32(1e-3))) / np.float32(1.5708)
                        acc[cell, HIST_ANGLE + min(int(angle * BINS), BINS - 1)] += weight
                        acc[cell, ANGLE_N] += weight * angle
                        acc[cell, ANGLE_N + 1] += weight * angle * angle
                    if vh > OD_NUCLEUS:
                        acc[cell, NUCLEI] += weight
                        acc[cell, NUCLEI + 1] += weight * vh
                        acc[cell, NUCLEI + 2] += weight * ve
                        acc[cell, NUCLEI + 3] += weight * vr
                    acc[cell, HIST_H + min(max(int(vh * (BINS / MAX_OD)), 0), BINS - 1)] += weight
                    acc[cell, HIST_E + min(max(int(ve * (BINS / MAX_OD)), 0), BINS - 1)] += weight
        if level < 3:
            _tensor(od, TENSOR + 3 * level, acc)
        if level == 2:
            _blobs(h, acc)
        if level < LEVELS - 1:
            h, e, r, od = _halve(h), _halve(e), _halve(r), _halve(od)
