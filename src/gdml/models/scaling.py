"""Constants learnt from the training spots that bring features and targets to one scale."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from .batch import Batch

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
        """Standardise ``x`` (..., width)."""
        return (x - self.mean) / self.scale

    def inverse(self, x: Tensor) -> Tensor:
        """Bring standardised ``x`` (..., width) back to its own scale."""
        return x * self.scale + self.mean


class Scalers(nn.Module):
    """Scales of local tokens, pooled features and expression.

    Tokens have constants of their own; pooled local features and neighbours share theirs, since both are pooled
    features of a tile. Parts that a model does not read keep their scale.

    Parameters
    ----------
    dim
        Width D of a token.
    n_genes
        Panel genes M.
    features
        ``"standardize"`` each column on the training spots, or ``"raw"``.
    targets
        ``"center"``: the mean of each gene over the training spots is subtracted, so that a model starts there;
        ``"standardize"``: each gene is also divided by its standard deviation; ``"raw"``: as measured.
    """

    def __init__(
        self,
        dim: int,
        n_genes: int,
        features: Literal["standardize", "raw"] = "standardize",
        targets: Literal["center", "standardize", "raw"] = "center",
    ) -> None:
        super().__init__()
        self.tokens = Standardize(dim)
        self.pooled = Standardize(dim)
        self.target = Standardize(n_genes)
        self.kinds = (features, targets)

    def prepare(self, batches: Iterable[Batch], *, neighbors: bool = True) -> None:
        """Compute the constants from the training spots; neighbours count where the model reads them."""
        features, targets = self.kinds
        tokens, pooled = (Moments(len(self.tokens.mean)) for _ in range(2))
        target = Moments(len(self.target.mean))
        for batch in batches:
            tokens.add(batch.tokens.flatten(0, 1))
            pooled.add(batch.pooled)
            if neighbors:
                pooled.add(batch.neighbors[batch.neighbor_mask])
            if batch.expression is not None:
                target.add(batch.expression)
        if features == "standardize":
            self.tokens.set(tokens.mean, tokens.std)
            self.pooled.set(pooled.mean, pooled.std)
        if targets != "raw":
            self.target.set(target.mean, target.std if targets == "standardize" else torch.ones_like(target.std))

    def local_and_neighbors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scaled local tokens (N, T, D) and neighbours (N, K, D)."""
        return self.tokens(batch.tokens), self.pooled(batch.neighbors)
