"""Constants learnt from the training spots: they put features and targets on one scale."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_SMALL = 1e-6


class Moments:
    """Mean and standard deviation per column of rows that come in pieces (Chan et al. 1983)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.square = torch.zeros(width, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in (n, width) rows."""
        rows = rows.double().cpu()
        if not len(rows):
            return
        mean, count = rows.mean(0), len(rows)
        delta, total = mean - self.mean, self.count + count
        self.square += (rows - mean).square().sum(0) + delta.square() * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> Tensor:
        """Population standard deviation, (width,) float64."""
        return (self.square / max(self.count, 1)).sqrt()


class Standardize(nn.Module):
    """(x - mean) / scale per column, with constants of the training spots; ``inverse`` undoes it.

    Parameters
    ----------
    width
        Number of columns. Until ``set`` is called, nothing is changed.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def set(self, mean: Tensor, scale: Tensor) -> None:
        """Take the constants; a column that does not vary is centred only."""
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(scale > _SMALL, scale, torch.ones_like(scale)))

    def fit(self, pieces: Iterable[Tensor]) -> None:
        """Take mean and standard deviation of the rows of all pieces, each (n, width)."""
        moments = Moments(len(self.mean))
        for rows in pieces:
            moments.add(rows)
        self.set(moments.mean, moments.std)

    def forward(self, x: Tensor) -> Tensor:
        """Standardise (..., width)."""
        return (x - self.mean) / self.scale

    def inverse(self, x: Tensor) -> Tensor:
        """Undo it, (..., width)."""
        return x * self.scale + self.mean
