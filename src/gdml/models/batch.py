"""What a model is given: one object for every model, its parts in the field's words."""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass
class Slides:
    """All spots of the slides that a batch touches, one slide after the other.

    Parameters
    ----------
    features
        (S, D) pooled local features of every spot.
    grid
        (S, 2) int64, row and column of each spot on its slide's grid, from 0.
    lengths
        Number of spots of each slide, in the order of the rows; sums to S.
    nearest
        (S, K) int64, rows of the K spots of the same slide that lie nearest to each spot, itself first; on a
        slide of fewer spots, itself again.
    """

    features: Tensor
    grid: Tensor
    lengths: tuple[int, ...]
    nearest: Tensor | None = None


@dataclass
class Nearest:
    """The K spots nearest to each spot of a batch, as ``Slides.nearest`` has them.

    Parameters
    ----------
    tokens
        (N, K, T, D) their local tokens.
    expression
        (N, K, M) their expression, NaN for spots that are not learnt from; None at prediction.
    """

    tokens: Tensor
    expression: Tensor | None = None


@dataclass
class Batch:
    """N spots and everything that a model may ask about them.

    A model names in ``needs`` which of ``tokens``, ``neighbors``, ``counts`` and ``nearest`` it reads; tokens and
    neighbours that it does not name have no entries (T = 0, K = 0), the others are None.

    Parameters
    ----------
    tokens
        (N, T, D) local tokens; where the encoder has a class token it is the first.
    neighbors
        (N, K, D) pooled features of the K = side x side neighbour tiles, row-major.
    neighbor_mask
        (N, K) bool, True where the neighbour tile lies inside the image.
    slides
        All spots of the slides that the batch touches.
    index
        (N,) int64, row of each spot in ``slides``.
    expression
        (N, M) expression of the panel genes on the training scale; None at prediction. Only ``loss`` and
        ``prepare`` may read it.
    counts
        (N, M) float32 raw counts of the panel genes; None at prediction.
    spot
        (N,) int64 number of each spot, unique within a run.
    nearest
        The spots around each spot.
    """

    tokens: Tensor
    neighbors: Tensor
    neighbor_mask: Tensor
    slides: Slides
    index: Tensor
    expression: Tensor | None = None
    counts: Tensor | None = None
    spot: Tensor | None = None
    nearest: Nearest | None = None

    @property
    def local(self) -> Tensor:
        """Pooled local features of the spots, (N, D)."""
        return self.slides.features[self.index]

    def to(self, device: torch.device | str) -> Self:
        """Copy the batch to another device."""
        move = lambda part: _move(part, device)
        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self)})

    def __len__(self) -> int:
        return len(self.index)


@dataclass
class Output:
    """What a model answers.

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
    """Copy a tensor, or the tensors of a dataclass, to a device; leave anything else."""
    if isinstance(part, Tensor):
        return part.to(device, non_blocking=True)
    if is_dataclass(part) and not isinstance(part, type):
        return replace(part, **{f.name: _move(getattr(part, f.name), device) for f in fields(part)})
    return part
