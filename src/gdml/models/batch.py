"""What a model is given: one object for every model, its parts in the field's words."""

from dataclasses import dataclass, field, replace
from typing import Self

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
    """

    features: Tensor
    grid: Tensor
    lengths: tuple[int, ...]


@dataclass
class Batch:
    """N spots and everything that a model may ask about them.

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
        (N, M) expression of the panel genes on the training scale; None at prediction.
    """

    tokens: Tensor
    neighbors: Tensor
    neighbor_mask: Tensor
    slides: Slides
    index: Tensor
    expression: Tensor | None = None

    def to(self, device: torch.device | str) -> Self:
        """Copy the batch to another device."""
        move = lambda t: t.to(device, non_blocking=True)
        return replace(
            self,
            tokens=move(self.tokens),
            neighbors=move(self.neighbors),
            neighbor_mask=move(self.neighbor_mask),
            slides=Slides(move(self.slides.features), move(self.slides.grid), self.slides.lengths),
            index=move(self.index),
            expression=None if self.expression is None else move(self.expression),
        )

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
