"""The two stores of a slide, of the spots' own tiles and of those around them, seen as one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ._store import FeatureStore


@dataclass
class TileStores:
    """Where the features of one view of one slide lie.

    A tile is in one store or the other: where spots stand as close as tiles are wide, the neighbour of one spot
    is the own tile of the next.

    Attributes
    ----------
    own
        Tiles of spots, with the tokens that the user wants to keep.
    neighbors
        All other tiles, pooled; the same store where no more than that is kept of the own ones.
    """

    own: FeatureStore
    neighbors: FeatureStore

    def missing(self, xy: NDArray[np.float64], *, verify: bool = False) -> NDArray[np.bool_]:
        """Which tiles neither store has; as :meth:`FeatureStore.missing`."""
        missing = self.own.missing(xy, verify=verify)
        if self.neighbors is not self.own and missing.any():
            missing[missing] = self.neighbors.missing(xy[missing], verify=verify)
        return missing

    def read_pooled(self, xy: NDArray[np.float64]) -> NDArray[np.float16]:
        """Pooled embeddings from whichever store has them; as :meth:`FeatureStore.read_pooled`."""
        elsewhere = self.own.missing(xy)
        pooled = np.empty((len(xy), self.own.dim), np.float16)
        pooled[~elsewhere] = self.own.read_pooled(xy[~elsewhere])
        pooled[elsewhere] = self.neighbors.read_pooled(xy[elsewhere])
        return pooled
