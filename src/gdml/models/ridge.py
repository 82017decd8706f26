"""Ridge regression on pooled features: the honest floor of every comparison."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Generator, Tensor

from ._base import Shape, SpotModel
from .batch import Batch, Output
from .scaling import Standardize


@dataclass(frozen=True)
class RidgeConfig:
    """Settings of ridge regression.

    Parameters
    ----------
    alpha_min, alpha_max, n_alphas
        Penalties that are tried, evenly spaced in the logarithm.
    """

    alpha_min: float = 1e-1
    alpha_max: float = 1e6
    n_alphas: int = 29


class Ridge(SpotModel):
    """Ridge regression from the mean local and mean neighbour features, both standardised.

    One penalty for all genes, chosen on the training spots by generalised cross-validation
    (Golub, Heath, Wahba 1979) with scikit-learn's ``RidgeCV``.

    Parameters
    ----------
    config
        Penalties.
    shape
        Sizes of the data.
    """

    config_class = RidgeConfig
    citation: ClassVar[str] = "Hoerl, Kennard (1970), Technometrics 12:55"
    closed_form = True
    weight: Tensor
    bias: Tensor

    def __init__(self, config: RidgeConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.standardize = Standardize(2 * shape.dim)
        self.register_buffer("weight", torch.zeros(shape.n_genes, 2 * shape.dim))
        self.register_buffer("bias", torch.zeros(shape.n_genes))
        self.register_buffer("alpha", torch.zeros(()))

    @staticmethod
    def features(batch: Batch) -> Tensor:
        """Mean local token beside the mean of the neighbours inside the image, (N, 2 D) float32."""
        inside = batch.neighbor_mask[..., None].float()
        neighbors = (batch.neighbors.float() * inside).sum(1) / inside.sum(1).clamp(min=1)
        return torch.cat([batch.tokens.float().mean(1), neighbors], 1)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Solve."""
        pairs = [(self.features(batch), batch.expression) for batch in batches]
        x = torch.cat([x for x, _ in pairs])
        y = torch.cat([y for _, y in pairs if y is not None])
        self.standardize.fit([x])
        config: RidgeConfig = self.config
        alphas = np.geomspace(config.alpha_min, config.alpha_max, config.n_alphas)
        solved = RidgeCV(alphas=alphas).fit(self.standardize(x).double().numpy(), y.double().numpy())
        self.weight.copy_(torch.from_numpy(np.atleast_2d(solved.coef_)))
        self.bias.copy_(torch.from_numpy(np.atleast_1d(solved.intercept_)))
        self.alpha.fill_(float(solved.alpha_))  # type: ignore[operator]

    def forward(self, batch: Batch) -> Output:
        """Predict, (N, M)."""
        return Output(self.standardize(self.features(batch)) @ self.weight.T + self.bias)

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Mean squared error, for the record."""
        return {"loss": torch.nn.functional.mse_loss(output.prediction, batch.expression)}  # type: ignore[arg-type]


MODELS = {"ridge": Ridge}
