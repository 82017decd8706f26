"""Geometry of spot grids and tiles, full-resolution px."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

_LEGACY_ST_MOST = 64  # legacy ST arrays have 33 x 35 positions; larger square grids are another technology
_FEWEST = 8  # spots needed to recognise a grid
_FITS, _STRAY = 5, 4.0  # fits of a grid; spots with a residual above this multiple of the median are left out
_QUERIES = 2000  # spots whose nearest neighbour is searched


def grid_kind(row: ArrayLike, col: ArrayLike) -> Literal["hex", "square"] | None:
    """Distinguish the hexagonal grid of Visium from the square grid of legacy ST.

    On Visium's grid, row + column has one parity in all spots; on a square grid both occur.

    Parameters
    ----------
    row, col
        Grid position of each spot, (n,).

    Returns
    -------
    None where the positions are not whole numbers, too few, or a square grid too large for legacy ST.
    """
    grid = np.column_stack([np.asarray(row, np.float64), np.asarray(col, np.float64)])
    if len(grid) < _FEWEST or not np.isfinite(grid).all() or not (np.abs(grid - np.rint(grid)) < 1e-6).all():
        return None
    parity = np.rint(grid).sum(1) % 2
    if parity.min() == parity.max():
        return "hex"
    return "square" if np.ptp(grid, axis=0).max() < _LEGACY_ST_MOST else None


def um_per_px_from_grid(xy: ArrayLike, row: ArrayLike, col: ArrayLike, pitch_um: float) -> float:
    """Micrometres per pixel from the known pitch of a spot grid.

    The steps of the grid in px come from the affine map from grid to pixels fitted to all centres (least squares,
    refitted without outliers), so that the jitter of single spots averages out and the grid may be rotated.

    Parameters
    ----------
    xy
        Spot centres, px, (n, 2).
    row, col
        Grid position of each spot, (n,); hexagonal (Visium) or square, see :func:`grid_kind`.
    pitch_um
        Distance between the centres of neighbouring spots, um: Visium 100, legacy ST 200.

    Returns
    -------
    Micrometres per px.

    Raises
    ------
    ValueError
        If the grid is not recognised, is a single line, or does not match the centres.
    """
    xy = np.asarray(xy, np.float64)
    kind = grid_kind(row, col)
    grid = np.column_stack([row, col, np.ones(len(xy))]).astype(np.float64)
    if kind is None or np.linalg.matrix_rank(grid) < 3:
        raise ValueError("`row` and `col` are not a hexagonal or square grid of spots in two dimensions.")
    keep = np.ones(len(xy), bool)
    for _ in range(_FITS):
        steps = np.linalg.lstsq(grid[keep], xy[keep], rcond=None)[0]
        off = np.linalg.norm(xy - grid @ steps, axis=1)
        keep = off <= max(_STRAY * np.median(off), 1e-6)
    row_step, col_step = steps[0], steps[1]
    sides = [2 * col_step, row_step + col_step, row_step - col_step] if kind == "hex" else [row_step, col_step]
    lengths = np.linalg.norm(sides, axis=1)
    if np.median(off) > lengths.mean() / 4 or lengths.max() > 1.25 * lengths.min():
        raise ValueError("`row` and `col` do not match the spot centres: they are not steps of one regular grid.")
    return float(pitch_um / lengths.mean())


def um_per_px_from_neighbors(xy: ArrayLike, pitch_um: float) -> float:
    """Micrometres per pixel from the median distance to the nearest spot.

    A few per cent too large where spots are placed unevenly, since the nearest one is then closer than the pitch;
    prefer :func:`um_per_px_from_grid` where the grid is known.

    Parameters
    ----------
    xy
        Spot centres, px, (n, 2).
    pitch_um
        Distance between the centres of neighbouring spots, um.

    Returns
    -------
    Micrometres per px.

    Raises
    ------
    ValueError
        If there are fewer than two spots, or most coincide.
    """
    xy = np.asarray(xy, np.float64)
    if len(xy) < 2:
        raise ValueError("At least two spots are needed to measure their pitch.")
    asked = np.unique(np.linspace(0, len(xy) - 1, min(len(xy), _QUERIES)).astype(int))
    pitch_px = float(np.median(KDTree(xy).query(xy[asked], k=2)[0][:, 1]))  # the nearest one is the spot itself
    if pitch_px == 0:
        raise ValueError("Most spots coincide with another one, so they have no pitch.")
    return pitch_um / pitch_px


def tile_side_px(tile_um: float, um_per_px: float) -> float:
    """Side of a tile in full-resolution px.

    Parameters
    ----------
    tile_um
        Side of the tile, um.
    um_per_px
        Micrometres per full-resolution px.

    Returns
    -------
    Side, px; usually not a whole number.
    """
    return tile_um / um_per_px


def neighbor_boxes(xy: ArrayLike, side_px: float, n_side: int) -> NDArray[np.float64]:
    """Top-left corners of the tiles of the square region centred on each spot.

    Parameters
    ----------
    xy
        Spot centres, px, (n, 2).
    side_px
        Side of a tile, px.
    n_side
        Tiles along a side of the region, odd.

    Returns
    -------
    (n, n_side**2, 2), row-major from the top left; the tile in the middle is the spot's own.

    Raises
    ------
    ValueError
        If ``n_side`` is not odd and positive.
    """
    if n_side < 1 or n_side % 2 == 0:
        raise ValueError(f"`n_side` must be odd, so that one tile is at the centre; found {n_side}.")
    steps = (np.arange(n_side) - n_side / 2) * side_px
    rows, cols = np.meshgrid(steps, steps, indexing="ij")
    return np.asarray(xy, np.float64)[:, None, :] + np.column_stack([cols.ravel(), rows.ravel()])


def neighbor_mask(xy: ArrayLike, side_px: float, size: tuple[int, int], n_side: int) -> NDArray[np.bool_]:
    """Whether each tile of each region lies wholly inside the image.

    Parameters
    ----------
    xy, side_px, n_side
        As in :func:`neighbor_boxes`.
    size
        Width and height of the image, px.

    Returns
    -------
    (n, n_side**2), row-major. The tile at the centre is always True.
    """
    corners = neighbor_boxes(xy, side_px, n_side)
    slack = 1e-6 * side_px  # against rounding: a tile that touches the edge is inside
    inside = (corners >= -slack) & (corners + side_px <= np.asarray(size) + slack)
    mask: NDArray[np.bool_] = np.logical_and.reduce(inside, axis=2)
    mask[:, n_side**2 // 2] = True
    return mask
