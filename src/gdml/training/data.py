"""The spots of one run as tensors, and the batches that are cut from them."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self

import torch
from scipy.spatial import KDTree
from torch import Generator, Tensor

from gdml.models.batch import Batch, Nearest, Slides
from gdml.models.ridge import stripes

#: Spots of ``Slides.nearest``, the spot itself included.
N_NEAREST = 9
_PARTS = ("tokens", "neighbors", "slides")


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
    counts
        (n, M) float32 raw counts of the panel genes, for the models that learn from them.
    seen
        (n,) bool, spots that are learnt from: the expression of no other one is shown as a neighbour's. None: all.
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
    counts: Tensor | None = None
    seen: Tensor | None = None

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

    @cached_property
    def nearest(self) -> Tensor:
        """Rows of the spots nearest to each spot on its slide, itself first: (n, N_NEAREST) int64."""
        found = torch.arange(len(self))[:, None].repeat(1, N_NEAREST)
        for slide in range(len(self.names)):
            rows = self.rows_of(slide)
            k = min(N_NEAREST, len(rows))
            if k > 1:
                xy = self.xy[rows].double().numpy()
                others = torch.from_numpy(KDTree(xy).query(xy, k=k)[1])
                # two spots at one place: each is the first of its own
                others[:, 0] = torch.arange(len(rows))
                found[rows, :k] = rows[others]
        return found

    def learning_from(self, rows: Tensor) -> Self:
        """Give the same spots, of which ``rows`` are learnt from."""
        return replace(self, seen=torch.zeros(len(self), dtype=torch.bool).index_fill_(0, rows, True))

    def select(self, slides: Sequence[int]) -> Self:
        """Give the spots of some slides alone, slide by slide in the order given."""
        rows = torch.cat([self.rows_of(slide) for slide in slides])
        cut = {f.name: getattr(self, f.name) for f in fields(self)}
        cut = {name: part[rows] for name, part in cut.items() if isinstance(part, Tensor)}
        cut["slide"] = torch.repeat_interleave(torch.arange(len(slides)), self._lengths[list(slides)])
        return replace(self, names=[self.names[i] for i in slides], groups=[self.groups[i] for i in slides], **cut)

    def batch(self, rows: Tensor, needs: Collection[str] = _PARTS) -> Batch:
        """Cut a batch: the spots of ``rows`` (N,), with all spots of the slides that they lie on.

        ``needs`` are the parts that a model names, see :class:`gdml.models.Batch`.
        """
        has_tokens, has_neighbors = "tokens" in needs, "neighbors" in needs
        slides, index = self._context(rows) if "slides" in needs else (None, None)
        return Batch(
            tokens=(self.tokens[rows] if has_tokens else self.tokens[rows, :0]).float(),
            pooled=self.pooled[rows].float(),
            neighbors=(self.neighbors[rows] if has_neighbors else self.neighbors[rows, :0]).float(),
            neighbor_mask=self.neighbor_mask[rows] if has_neighbors else self.neighbor_mask[rows, :0],
            slide=self.slide[rows],
            spot=rows,
            stripe=self.stripe[rows],
            slides=slides,
            index=index,
            expression=None if self.expression is None else self.expression[rows],
            counts=None if self.counts is None or "counts" not in needs else self.counts[rows],
            nearest=self._nearest(rows) if "nearest" in needs else None,
        )

    @cached_property
    def stripe(self) -> Tensor:
        """Stripe of the slide that each spot lies in, (n,) int64."""
        each = [stripes(self.grid[self.rows_of(slide)]) for slide in range(len(self.names)) if self._lengths[slide]]
        return torch.cat(each)

    def _context(self, rows: Tensor) -> tuple[Slides, Tensor]:
        touched = self.slide[rows].unique()
        context = torch.cat([self.rows_of(int(slide)) for slide in touched])
        place = torch.full((len(self),), -1, dtype=torch.int64)
        place[context] = torch.arange(len(context))
        slides = Slides(
            self.pooled[context].float(),
            self.grid[context],
            tuple(self._lengths[touched].tolist()),
            place[self.nearest[context]],
        )
        return slides, place[rows]

    def _nearest(self, rows: Tensor) -> Nearest:
        around = self.nearest[rows]
        expression = None
        if self.expression is not None:
            expression = self.expression[around]
            if self.seen is not None:
                expression = expression.masked_fill(~self.seen[around][..., None], torch.nan)
        return Nearest(self.tokens[around].float(), expression)

    def in_order(self, rows: Tensor, size: int, needs: Collection[str] = _PARTS) -> Iterator[Batch]:
        """Batches over ``rows``, slide by slide, so that the spots around them are the same in each."""
        for slide in self.slide[rows].unique():
            here = rows[self.slide[rows] == slide]
            for cut in here.split(size):
                yield self.batch(cut, needs)

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
