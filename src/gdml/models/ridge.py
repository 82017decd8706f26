"""Ridge regression on pooled features: the honest floor of every comparison."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gdml._errors import did_you_mean

from ._base import Shape, SpotModel
from .batch import Batch, Output
from .linear import RidgeMap, pooled_features, stripes


@dataclass(frozen=True)
class RidgeConfig:
    """Settings of ridge regression.

    Parameters
    ----------
    selection
        How the penalty is chosen on the training spots: ``"gcv"``, generalised cross-validation, or
        ``"stripes"``, five stripes of each slide that are predicted from the others.
    alpha_min, alpha_max, n_alphas
        Penalties that are tried, evenly spaced in the logarithm.
    """

    selection: Literal["gcv", "stripes"] = "gcv"
    alpha_min: float = 1e-1
    alpha_max: float = 1e6
    n_alphas: int = 29

    def __post_init__(self) -> None:
        if self.selection not in ("gcv", "stripes"):
            raise ValueError(f"`selection` is {self.selection!r}. {did_you_mean(self.selection, ('gcv', 'stripes'))}")


class Ridge(SpotModel):
    """Ridge regression from the mean local and mean neighbour features, both standardised.

    One penalty for all genes.

    Parameters
    ----------
    config
        Penalties and how one is chosen.
    shape
        Sizes of the data.
    """

    config_class = RidgeConfig
    citation: ClassVar[str] = "Hoerl, Kennard (1970), Technometrics 12:55"
    closed_form = True
    config: RidgeConfig

    def __init__(self, config: RidgeConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.map = RidgeMap(2 * shape.dim, shape.n_genes)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Solve."""
        c = self.config
        parts = [(pooled_features(batch), batch.expression, stripes(batch)) for batch in batches]
        x = torch.cat([x for x, _, _ in parts])
        y = torch.cat([y for _, y, _ in parts if y is not None])
        folds = torch.cat([f for _, _, f in parts]) if c.selection == "stripes" else None
        self.map.solve(x, y, np.geomspace(c.alpha_min, c.alpha_max, c.n_alphas).tolist(), folds)

    def forward(self, batch: Batch) -> Output:
        """Predict, (N, M)."""
        return Output(self.map(pooled_features(batch)))

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Mean squared error."""
        if batch.expression is None:
            raise ValueError("The batch has no expression to learn from.")
        return {"loss": F.mse_loss(output.prediction, batch.expression)}


MODELS = {"ridge": Ridge}
