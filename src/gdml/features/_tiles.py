"""Tiles are identified by their centres, rounded to 1/64 px."""

import numpy as np
from numpy.typing import NDArray

_GRAIN = 64  # cells per px: a coordinate that is computed again may be rounded differently
_MOST_RECENT = 4096  # tiles that are looked up in a dict before they are sorted into the array


class TileIndex:
    """Rows of tiles by their centres.

    Sorted keys are searched by bisection. Recently added tiles wait in a dict, so that adding a few of them does not
    copy the whole index.
    """

    def __init__(self) -> None:
        self._keys = np.empty(0, np.int64)
        self._rows = np.empty(0, np.int32)
        self._recent: dict[int, int] = {}

    def add(self, xy: NDArray[np.float64], rows: NDArray[np.integer]) -> None:
        """Add tiles with centres ``xy`` (n, 2), full-resolution px, at ``rows`` (n,)."""
        keys = tile_keys(xy)
        if len(self._recent) + len(keys) <= _MOST_RECENT:
            self._recent.update(zip(keys.tolist(), rows.tolist(), strict=True))
            return
        keys = np.concatenate([self._keys, np.array(list(self._recent), np.int64), keys])
        rows = np.concatenate([self._rows, np.array(list(self._recent.values()), np.int32), rows])
        order = np.argsort(keys, kind="stable")
        self._keys, self._rows, self._recent = keys[order], rows[order].astype(np.int32), {}

    def rows(self, xy: NDArray[np.float64]) -> NDArray[np.int32]:
        """Rows of the tiles with centres ``xy`` (n, 2), int32 (n,); -1 for unknown tiles."""
        keys = tile_keys(xy)
        rows = np.full(len(keys), -1, np.int32)
        if len(self._keys):
            at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            rows = np.where(self._keys[at] == keys, self._rows[at], rows)
        if self._recent:
            unknown = np.flatnonzero(rows < 0)
            rows[unknown] = [self._recent.get(key, -1) for key in keys[unknown].tolist()]
        return rows


def tile_keys(xy: NDArray[np.float64]) -> NDArray[np.int64]:
    """Key of each tile, int64 (n,), from its centre (n, 2) in full-resolution px; unique within 3e7 px of the origin."""
    cells = np.floor(np.asarray(xy, np.float64).reshape(-1, 2) * _GRAIN + 0.5).astype(np.int64)
    return (cells[:, 1] << 32) + cells[:, 0]


def distinct_tiles(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Tiles without repetitions, from top to bottom and then from left to right.

    Parameters
    ----------
    xy
        Tile centres, full-resolution px, (n, 2).

    Returns
    -------
    float64, (m, 2).
    """
    xy = np.asarray(xy, np.float64).reshape(-1, 2)
    xy = xy[np.lexsort(xy.T)]
    return xy[np.sort(np.unique(tile_keys(xy), return_index=True)[1])]
