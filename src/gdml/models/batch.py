"""What a model is given and what it returns: the same objects for every model."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

#: Parts of a batch that a model names in ``needs`` to have them read; all others are absent.
PARTS = ("tokens", "neighbors", "summary", "slides", "counts", "nearest")

_T = TypeVar("_T")


@dataclass
class _OnDevice:
    def to(self, device: torch.device | str) -> Self:
        """Copy every tensor to a device."""
        return replace(self, **{f.name: _move(getattr(self, f.name), device) for f in fields(self)})


@dataclass
class Slides(_OnDevice):
    """Context of a batch: spots of the slides that it touches, one slide after the other.

    On a slide of moderate size the context is all of its spots. On a larger one it is a fixed, spatially even subset,
    and the other spots of the batch are its :class:`Visitors`.

    Parameters
    ----------
    features
        (S, D) float32 pooled local features.
    grid
        (S, 2) int64, row and column of each spot on its slide's grid, from 0.
    lengths
        Context spots of each of the B slides, in the order of the rows; sums to S.
    nearest
        (S, K) int64, rows of the K context spots of the same slide that are nearest to each spot, itself first; on a
        slide with fewer spots, itself again.
    extent
        (B, 2) int64, rows and columns of the whole grid of each slide; None for those of the context.
    memo
        Intermediate results of :meth:`once`; None to keep none.
    """

    features: Tensor
    grid: Tensor
    lengths: tuple[int, ...]
    nearest: Tensor | None = None
    extent: Tensor | None = None
    memo: dict[nn.Module, Any] | None = field(default=None, compare=False, repr=False)

    @property
    def slide(self) -> Tensor:
        """Place in ``lengths`` of each spot's slide, (S,) int64."""
        lengths = torch.tensor(self.lengths)
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(self.grid.device)

    def once(self, module: nn.Module, compute: Callable[[], _T]) -> _T:
        """Return what ``module`` computes from the context, kept in ``memo`` in evaluation mode.

        Many batches that share a context and its ``memo`` compute it once. A memo is valid for one set of weights.
        """
        if self.memo is None or module.training:
            return compute()
        if module not in self.memo:
            self.memo[module] = compute()
        return self.memo[module]


@dataclass
class Visitors(_OnDevice):
    """Spots of a batch that are not in the context of their slide.

    A visitor attends to the context and to itself, and nothing attends to it: its prediction does not depend on the
    other visitors of the batch.

    Parameters
    ----------
    features
        (V, D) float32 pooled local features.
    grid
        (V, 2) int64, row and column of each spot on its slide's grid.
    slide
        (V,) int64, place of each spot's slide in ``Slides.lengths``.
    nearest
        (V, K) int64, the spot itself (S + v for visitor v), then the rows of the K - 1 nearest context spots of the
        same slide; where there are fewer, itself again.
    """

    features: Tensor
    grid: Tensor
    slide: Tensor
    nearest: Tensor | None = None


@dataclass
class Nearest(_OnDevice):
    """The K spots nearest to each spot of a batch, itself first.

    Parameters
    ----------
    tokens
        (N, K, T, D) their local tokens.
    expression
        (N, K, M) their expression, NaN for spots outside the training set; None at prediction.
    """

    tokens: Tensor
    expression: Tensor | None = None


@dataclass
class Batch(_OnDevice):
    """N spots with all the data that a model may use.

    A model names in ``needs`` which of ``PARTS`` it reads. The others are not read from disk: tokens and neighbours are then empty (T = 0, K = 0), the others None.

    Parameters
    ----------
    tokens
        (N, T, D) float32 local tokens; the first is the class token where the encoder has one.
    pooled
        (N, D) float32 pooled local features.
    neighbors
        (N, K, D) float32 pooled features of the K = side x side neighbour tiles, row-major; zeros outside the image.
    neighbor_mask
        (N, K) bool, True where the neighbour tile lies inside the image.
    slide
        (N,) int64 number of each spot's slide, unique within a run.
    spot
        (N,) int64 number of each spot, unique within a run.
    summary
        (N, 4 D) float32 mean and spread of tokens and neighbours, see ``gdml.models.summary.summarize``.
    weight
        (N,) float32 weight of each spot in a loss, about 1 on average; None where all weigh the same.
    stripe
        (N,) int64 in 0..4, stripe of the slide across the longer side of its grid, see
        ``gdml.models.ridge.stripes``; None at prediction.
    slides
        Context: spots of the slides that the batch touches.
    visitors
        Spots of the batch that are not in the context; None where there are none.
    index
        (N,) int64 row of each spot in ``slides``; S + v for visitor v. None without ``slides``.
    expression
        (N, M) float32 expression of the panel genes on the training scale; None at prediction. Only ``loss`` and
        ``prepare`` may read it.
    counts
        (N, M) float32 raw counts of the panel genes; None at prediction.
    nearest
        The spots around each spot.
    """

    tokens: Tensor
    pooled: Tensor
    neighbors: Tensor
    neighbor_mask: Tensor
    slide: Tensor
    spot: Tensor
    summary: Tensor | None = None
    weight: Tensor | None = None
    stripe: Tensor | None = None
    slides: Slides | None = None
    visitors: Visitors | None = None
    index: Tensor | None = None
    expression: Tensor | None = None
    counts: Tensor | None = None
    nearest: Nearest | None = None

    @property
    def measured(self) -> Tensor:
        """``expression``, (N, M).

        Raises
        ------
        ValueError
            If the batch has none.
        """
        if self.expression is None:
            raise ValueError("The batch has no expression to learn from.")
        return self.expression

    @property
    def summarized(self) -> Tensor:
        """``summary``, (N, 4 D).

        Raises
        ------
        ValueError
            If the batch has none.
        """
        if self.summary is None:
            raise ValueError('The batch has no summary: name "summary" in the `needs` of the model.')
        return self.summary

    @property
    def context(self) -> tuple[Slides, Tensor, Tensor]:
        """Slides, pooled features of context and visitors (S + V, D), and the row of each spot among them (N,).

        Raises
        ------
        ValueError
            If the batch has no slides.
        """
        if self.slides is None or self.index is None:
            raise ValueError('The batch has no slides: name "slides" in the `needs` of the model.')
        features = self.slides.features
        if self.visitors is not None:
            features = torch.cat([features, self.visitors.features])
        return self.slides, features, self.index

    def __len__(self) -> int:
        return len(self.spot)


@dataclass
class Output:
    """What a model returns.

    Parameters
    ----------
    prediction
        (N, M) predicted expression on the training scale.
    embedding
        (N, d) embedding in the shared space; None where a model has none.
    parts
        Further tensors that the model's own loss needs, by name.
    """

    prediction: Tensor
    embedding: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)


def _move(part: Any, device: torch.device | str) -> Any:
    if isinstance(part, Tensor):
        return part.to(device, non_blocking=True)
    return part.to(device) if isinstance(part, _OnDevice) else part
