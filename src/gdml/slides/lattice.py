"""Tiles at the points of a regular lattice, without spots."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Layout = Literal["square", "hex"]
Box = tuple[float, float, float, float]  # left, top, right, bottom
_SLACK = 1e-6  # of a spacing, against rounding: a tile that touches the edge is inside


class Lattice(NamedTuple):
    """Tiles of a lattice, row by row from the upper left.

    Attributes
    ----------
    xy
        Centres, px, (n, 2).
    row, col
        Positions on the lattice, int64, (n,). Columns of a hexagonal lattice are counted in halves, as Visium's are:
        even in even rows, odd in odd rows.
    """

    xy: NDArray[np.float64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]


def lattice_shape(width: float, height: float, side_px: float, spacing_px: float, layout: Layout) -> tuple[int, int]:
    """Rows of the lattice, and tiles in its longest row, that lie wholly inside a box; the arguments of :func:`lattice`.

    Parameters
    ----------
    width, height
        Of the box, px.
    side_px, spacing_px, layout
        As in :func:`lattice`.
    """
    fits = lambda extent, step: max(int(np.floor((extent - side_px) / step + _SLACK)) + 1, 0)
    return fits(height, _row_step(spacing_px, layout)), fits(width, spacing_px)


def lattice(box: Box, side_px: float, spacing_px: float, layout: Layout) -> Lattice:
    """Lay a lattice of tiles into a box; each lies wholly inside it, the first in its upper left corner.

    Parameters
    ----------
    box
        Left, top, right and bottom, px.
    side_px
        Side of a tile, px.
    spacing_px
        Distance between the centres of neighbouring tiles, px.
    layout
        ``"square"``, or ``"hex"``: every second row is shifted by half a spacing, and rows are sqrt(3)/2 spacings
        apart, so that the six neighbours of a tile are equally far.

    Returns
    -------
    The tiles; none where not one fits.
    """
    left, top, right, bottom = box
    shape = lattice_shape(right - left, bottom - top, side_px, spacing_px, layout)
    row, along = (at.ravel() for at in np.indices(shape, np.int64))
    shifted = row % 2 if layout == "hex" else np.zeros_like(row)
    x = left + side_px / 2 + (along + shifted / 2) * spacing_px
    y = top + side_px / 2 + row * _row_step(spacing_px, layout)
    col = 2 * along + shifted if layout == "hex" else along
    fits = x <= right - side_px / 2 + _SLACK * spacing_px
    return Lattice(np.stack([x, y], 1)[fits], row[fits], col[fits])


def _row_step(spacing_px: float, layout: Layout) -> float:
    return spacing_px * (np.sqrt(0.75) if layout == "hex" else 1.0)
