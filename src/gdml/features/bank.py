"""The distinct tiles of a slide, read by row."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ._rows import DamagedShardError, Rows
from ._store import damage, read_head, read_xy
from ._tiles import TileIndex


@runtime_checkable
class TileBank(Protocol):
    """Features of the distinct tiles of a slide; spots and their neighbours are rows of it.

    Attributes
    ----------
    n_tokens
        Tokens of a spot's own tile, T.
    dim
        Width of a token, D.
    """

    n_tokens: int
    dim: int

    def __len__(self) -> int: ...

    def tokens(self, rows: NDArray[np.integer]) -> NDArray[np.float16]:
        """Tokens of some tiles.

        Parameters
        ----------
        rows
            (n,) rows of the spots' own tiles, whose tokens are kept.

        Returns
        -------
        float16, (n, T, D).
        """
        ...

    def pooled(self, rows: NDArray[np.integer]) -> NDArray[np.float16]:
        """Pooled embeddings of some tiles, float16, (n, D); ``rows`` of any tiles."""
        ...


@dataclass(frozen=True)
class MemoryBank:
    """Features held in memory: for small data, tests, and as the yardstick of reading from disk.

    Parameters
    ----------
    own_tokens
        float16, (n_own, T, D) tokens of the spots' own tiles, the first rows of the bank.
    all_pooled
        float16, (n, D) pooled embeddings of all tiles, the own ones first.
    """

    own_tokens: NDArray[np.float16]
    all_pooled: NDArray[np.float16]

    @property
    def n_tokens(self) -> int:
        """Tokens of a tile, T."""
        return self.own_tokens.shape[1]

    @property
    def dim(self) -> int:
        """Width of a token, D."""
        return self.all_pooled.shape[1]

    def __len__(self) -> int:
        return len(self.all_pooled)

    def tokens(self, rows: NDArray[np.integer]) -> NDArray[np.float16]:
        """Tokens of some of the own tiles, float16, (n, T, D)."""
        return self.own_tokens[rows]

    def pooled(self, rows: NDArray[np.integer]) -> NDArray[np.float16]:
        """Pooled embeddings of some tiles, float16, (n, D)."""
        return self.all_pooled[rows]


@dataclass
class SlideFeatures:
    """Features of the spots of a slide, as :func:`gdml.pp.load_features` returns them.

    Attributes
    ----------
    tokens
        Tokens of the spot's own tile, float16, (n, T, D).
    pooled
        Pooled embedding of that tile, float16, (n, D).
    neighbors
        Pooled embeddings of the tiles of the neighbour region, row-major, float16, (n, n_side**2, D); zeros outside
        the image.
    neighbor_mask
        True where the tile lies inside the image, bool, (n, n_side**2).
    """

    tokens: NDArray[np.float16]
    pooled: NDArray[np.float16]
    neighbors: NDArray[np.float16]
    neighbor_mask: NDArray[np.bool_]


class FeatureBank:
    """Features of a slide on disk: the rows of the spots' own tiles, then those of the other tiles.

    Rows are copied out of memory maps, and nothing else is held in memory. Pickling, for the workers of a DataLoader,
    keeps the paths and the numbers of rows. A file is checked against its checksums when a process first reads it.

    Parameters
    ----------
    own
        Folder of the store of the spots' own tiles.
    neighbors
        Folder of the store of all other tiles; None or ``own`` where one store holds all.

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`open_path`.

    Notes
    -----
    ``n_tokens`` and ``dim`` are as in :class:`TileBank`; ``n_own`` is the number of rows of the own tiles.
    """

    def __init__(self, own: str | Path, neighbors: str | Path | None = None) -> None:
        self.paths = [Path(own)] if neighbors is None or neighbors == own else [Path(own), Path(neighbors)]
        heads = [read_head(path) for path in self.paths]
        self.n_tokens, self.dim = int(heads[0]["n_tokens"]), int(heads[0]["dim"])
        self._centers = [Rows(path / "xy") for path in self.paths]
        self._pooled = [Rows(path / "pooled") for path in self.paths]
        self._tokens = Rows(self.paths[0] / "tokens") if heads[0]["spec"]["tokens"] != "pooled" else None
        self.n_own = self._centers[0].shape[0]

    def __len__(self) -> int:
        return sum(centers.shape[0] for centers in self._centers)

    def rows(self, xy: NDArray[np.float64]) -> NDArray[np.int32]:
        """Rows of the tiles with centres ``xy`` (n, 2), full-resolution px: int32 (n,), -1 for tiles not stored."""
        rows = np.full(len(xy), -1, np.int32)
        for part, centers in enumerate(self._centers):
            index, stored = TileIndex(), read_xy(centers, np.arange(centers.shape[0]))
            at = np.flatnonzero(np.isfinite(stored[:, 0]))
            index.add(stored[at], at)
            unknown = np.flatnonzero(rows < 0)
            found = index.rows(xy[unknown])
            rows[unknown] = np.where(found < 0, -1, found + part * self.n_own)
        return rows

    def tokens(self, rows: NDArray[np.integer]) -> NDArray[np.float16]:
        """Tokens of some of the own tiles.

        Parameters
        ----------
        rows
            (n,) rows below the number of own tiles.

        Returns
        -------
        float16, (n, T, D).

        Raises
        ------
        ValueError
            If a file is damaged.
        """
        if self._tokens is None:
            return self.pooled(rows)[:, None]
        return self._take(self._tokens, 0, rows)

    def pooled(self, rows: NDArray[np.integer]) -> NDArray[np.float16]:
        """Pooled embeddings of any tiles, float16, (n, D); raises as :meth:`tokens`."""
        other = rows >= self.n_own
        if not other.any():
            return self._take(self._pooled[0], 0, rows)
        pooled = np.empty((len(rows), self.dim), np.float16)
        pooled[~other] = self._take(self._pooled[0], 0, rows[~other])
        pooled[other] = self._take(self._pooled[1], 1, rows[other] - self.n_own)
        return pooled

    def _take(self, array: Rows, part: int, rows: NDArray[np.integer]) -> NDArray[np.float16]:
        if len(rows) and not 0 <= rows.min() <= rows.max() < array.shape[0]:
            raise IndexError(f"Rows {rows.min()} to {rows.max()} of {array.shape[0]} were asked for.")
        try:
            taken = array.take(rows)
        except DamagedShardError as error:
            if not self.paths[part].is_dir():
                raise FileNotFoundError(f"The feature store {str(self.paths[part])!r} does not exist.") from error
            raise ValueError(damage(self.paths[part], str(error))) from error
        if np.isnan(taken[..., 0]).any():  # a damaged file was removed, and not all its tiles are back
            raise ValueError(damage(self.paths[part], "features are missing"))
        return taken
