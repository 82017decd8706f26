"""The distinct tiles of a slide, read by row."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@runtime_checkable
class TileBank(Protocol):
    """Features of the distinct tiles of a slide, wherever they lie; spots and neighbours are rows of it.

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
            (n,) rows of tiles whose tokens are kept (the spots' own).

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
