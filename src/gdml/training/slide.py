"""The spots of a slide, as an index into its tile bank."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gdml.features import TileBank
from gdml.models.ridge import stripes
from gdml.models.scaling import Moments
from gdml.models.summary import summarize

from .context import MAX_CONTEXT, even_subset, nearest_spots
from .frame import PARTS

_PIECE = 512  # spots whose features are read at once


@dataclass(frozen=True, eq=False)
class SlideSpots:
    """The spots of one slide, as an index into its tile bank.

    Parameters
    ----------
    name, group
        Of the slide.
    bank
        Its distinct tiles.
    own
        (n,) int32 row of each spot's own tile in the bank.
    neighbors
        (n, K) int32 rows of the neighbour tiles, -1 outside the image.
    grid
        (n, 2) int64 row and column on the slide's grid, from 0.
    xy
        (n, 2) float32 spot centres, in units of the tile's side.
    key
        Provenance key: slides with the same key have the same features, positions and counts.
    known
        Part of the same slide whose moments stand for the slide; None: its own.
    """

    name: str
    group: str
    bank: TileBank
    own: NDArray[np.int32]
    neighbors: NDArray[np.int32]
    grid: NDArray[np.int64]
    xy: NDArray[np.float32]
    key: str = ""
    known: "SlideSpots | None" = None
    _moments: dict[str, Moments] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.own)

    def take(self, at: NDArray[np.integer], *, known: "SlideSpots | None" = None) -> Self:
        """Give a part of the slide as a slide of its own, which knows nothing of the other spots.

        Parameters
        ----------
        at
            (m,) spots of the part.
        known
            As above: the moments of the part that is learnt from.
        """
        places = {name: getattr(self, name)[at] for name in ("own", "neighbors", "grid", "xy")}
        return replace(self, **places, known=known, _moments={})

    @property
    def n_moments(self) -> int:
        """Number of spots that :meth:`moments` stand for."""
        return len(self.known or self)

    @cached_property
    def nearest(self) -> NDArray[np.int32]:
        """(n, N_NEAREST) int32 nearest spots of each spot, itself first."""
        return nearest_spots(self.xy)

    @cached_property
    def stripe(self) -> NDArray[np.int8]:
        """(n,) int8 stripe of the slide that each spot lies in, see :func:`gdml.models.ridge.stripes`."""
        return stripes(torch.from_numpy(self.grid)).numpy().astype(np.int8)

    def summary(self, at: NDArray[np.integer]) -> Tensor:
        """Summary of the tokens and neighbours of some spots, see ``gdml.models.summary.summarize``: (N, 4 D)."""
        around = self.neighbors[at]
        inside = around >= 0
        distinct, place = np.unique(around[inside], return_inverse=True)
        neighbors = torch.zeros(*around.shape, self.bank.dim)
        neighbors[torch.from_numpy(inside)] = torch.from_numpy(self.bank.pooled(distinct)[place]).float()
        tokens = torch.from_numpy(self.bank.tokens(self.own[at]))
        return summarize(tokens, neighbors, torch.from_numpy(inside))

    def moments(self, part: str) -> Moments:
        """Moments of ``"tokens"``, ``"pooled"`` or ``"summary"`` over the spots of the slide, 4,096 spread evenly at most.

        They are computed once.
        """
        if self.known is not None:
            return self.known.moments(part)
        if part not in self._moments:
            rows = even_subset(self.xy, MAX_CONTEXT)
            found = Moments(self.bank.dim * PARTS[part])
            for at in np.array_split(rows, -(-len(rows) // _PIECE)) if len(rows) else ():
                found.add(self.part(part, at).flatten(0, -2))
            self._moments[part] = found
        return self._moments[part]

    def part(self, part: str, at: NDArray[np.integer]) -> Tensor:
        """Read ``"tokens"`` (n, T, D), ``"pooled"`` (n, D) or ``"summary"`` (n, 4 D) of some spots, float32."""
        if part == "summary":
            return self.summary(at)
        if part == "pooled":
            return torch.from_numpy(self.bank.pooled(self.own[at])).float()
        return torch.from_numpy(self.bank.tokens(self.own[at])).float()
