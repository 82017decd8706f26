"""The spots of one run as tensors, and the batches that are cut from them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gdml.models.batch import Batch, Slides


@dataclass
class SpotData:
    """All spots of some slides, the rows of a slide next to each other.

    Parameters
    ----------
    tokens
        (n, T, D) float16 local tokens.
    pooled
        (n, D) float16 pooled local features.
    neighbors
        (n, K, D) float16 pooled features of the neighbour tiles.
    neighbor_mask
        (n, K) bool, True where the neighbour tile lies inside the image.
    grid
        (n, 2) int64, row and column on the slide's grid, from 0.
    xy
        (n, 2) float32 spot centres, in units of the tile's side.
    slide
        (n,) int64 number of the slide, ascending.
    names
        Names of the slides.
    groups
        Group of each slide.
    expression
        (n, M) float32 expression of the panel genes; None at prediction.
    """

    tokens: Tensor
    pooled: Tensor
    neighbors: Tensor
    neighbor_mask: Tensor
    grid: Tensor
    xy: Tensor
    slide: Tensor
    names: Sequence[str]
    groups: Sequence[str]
    expression: Tensor | None = None

    def __post_init__(self) -> None:
        lengths = torch.bincount(self.slide, minlength=len(self.names))
        self._lengths = lengths
        self._starts = lengths.cumsum(0) - lengths

    def __len__(self) -> int:
        return len(self.slide)

    def rows_of(self, slide: int) -> Tensor:
        """Rows of a slide, (n_slide,) int64."""
        start = int(self._starts[slide])
        return torch.arange(start, start + int(self._lengths[slide]))

    def batch(self, rows: Tensor) -> Batch:
        """Cut a batch: the spots of ``rows`` (N,), with all spots of the slides that they lie on."""
        touched = self.slide[rows].unique()
        context = torch.cat([self.rows_of(int(slide)) for slide in touched])
        place = torch.full((len(self),), -1, dtype=torch.int64)
        place[context] = torch.arange(len(context))
        return Batch(
            tokens=self.tokens[rows].float(),
            neighbors=self.neighbors[rows].float(),
            neighbor_mask=self.neighbor_mask[rows],
            slides=Slides(self.pooled[context].float(), self.grid[context], tuple(self._lengths[touched].tolist())),
            index=place[rows],
            expression=None if self.expression is None else self.expression[rows],
        )

    def in_order(self, rows: Tensor, size: int) -> Iterator[Batch]:
        """Batches over ``rows``, slide by slide, so that the spots around them are the same in each."""
        for slide in self.slide[rows].unique():
            here = rows[self.slide[rows] == slide]
            yield from map(self.batch, here.split(size))

    def cuts(self, rows: Tensor, size: int, generator: Generator, *, slides: int) -> Iterator[Tensor]:
        """One epoch of row sets of about ``size`` spots, each from at most ``slides`` slides, in random order.

        The slides are dealt anew into sets of about equal number in each epoch, and the spots of a set are
        shared out evenly, so that no batch is much smaller than the others.
        """
        present = self.slide[rows].unique()
        present = present[torch.randperm(len(present), generator=generator)]
        cuts: list[Tensor] = []
        for some in present.tensor_split(-(-len(present) // slides)):
            here = rows[torch.isin(self.slide[rows], some)]
            here = here[torch.randperm(len(here), generator=generator)]
            cuts += here.tensor_split(max(1, round(len(here) / size)))
        for i in torch.randperm(len(cuts), generator=generator).tolist():
            yield cuts[i]

    def smallest_cut(self, rows: Tensor, size: int, *, slides: int) -> int:
        """Give the least number of spots that a row set of :meth:`cuts` can have, however the slides are dealt."""
        lengths = torch.bincount(self.slide[rows])
        lengths = lengths[lengths > 0].sort().values
        n_sets = -(-len(lengths) // slides)
        fewest = int(lengths[: len(lengths) // n_sets].sum())  # the smallest slides meet in one set
        most = int(lengths[-len(lengths) // n_sets :].sum())  # the largest
        return min(n // max(1, round(n / size)) for n in range(fewest, most + 1))
