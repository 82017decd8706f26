"""The scales that a model's features and targets are brought to, learnt from the training spots."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from .batch import Batch
from .scaling import Moments, Standardize

FEATURES = ("standardize", "raw")
TARGETS = ("center", "standardize", "raw")


class Scalers(nn.Module):
    """Scales of local tokens, pooled features and expression.

    Tokens have constants of their own; pooled local features and neighbours share theirs, since both are pooled
    features of a tile.

    Parameters
    ----------
    dim
        Width D of a token.
    n_genes
        Panel genes M.
    features
        ``"standardize"`` each column on the training spots, or ``"raw"``.
    targets
        ``"center"``: less each gene's mean over the training spots, so that a model starts there in place of
        learning it from zero. ``"standardize"``: divided by its standard deviation too. ``"raw"``: as it is.
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

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Take the constants from the training spots."""
        features, targets = self.kinds
        tokens, pooled = (Moments(len(self.tokens.mean)) for _ in range(2))
        target = Moments(len(self.target.mean))
        for batch in batches:
            tokens.add(batch.tokens.flatten(0, 1))
            pooled.add(batch.local)
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
