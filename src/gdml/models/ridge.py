"""Ridge regression on pooled features: the honest floor of every comparison."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gdml._errors import did_you_mean

from .base import Shape, SpotModel
from .batch import Batch, Output
from .linear import RidgeMap, pooled_features, stripes


@dataclass(frozen=True)
class RidgeConfig:
    """Settings of ridge regression.

    Parameters
    ----------
    selection
        How the penalty is chosen on the training spots: ``"stripes"``, five stripes of each slide that are predicted
        from the others; ``"gcv"``, generalised cross-validation, which takes neighbouring spots for independent;
        ``"hest"``, not at all: 100 / (width M) after PCA, and no intercept, as the probe of the HEST benchmark
        :cite:p:`Jaume2024`, which predicts the profile of a spot but not the level of a gene.
    inputs
        Mean local and mean neighbour features, or the local ones alone.
    n_components
        Principal components that are kept; 0 for all.
    alpha_min, alpha_max, n_alphas
        Penalties that are tried, evenly spaced in the logarithm.
    """

    selection: Literal["stripes", "gcv", "hest"] = "stripes"
    inputs: Literal["local+neighbors", "local"] = "local+neighbors"
    n_components: int = 0
    alpha_min: float = 1e-1
    alpha_max: float = 1e6
    n_alphas: int = 29

    def __post_init__(self) -> None:
        for name, known in (("selection", ("stripes", "gcv", "hest")), ("inputs", ("local+neighbors", "local"))):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"`{name}` is {value!r}. {did_you_mean(str(value), known)}")
        if self.n_components < 0:
            raise ValueError(f"`n_components` must not be negative, found {self.n_components}.")


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
    presets: ClassVar[dict[str, Any]] = {"hest": RidgeConfig(selection="hest", inputs="local", n_components=256)}
    closed_form = True
    config: RidgeConfig

    def __init__(self, config: RidgeConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.map = RidgeMap(shape.dim * (1 if config.inputs == "local" else 2), shape.n_genes)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Solve."""
        c = self.config
        parts = [(self._inputs(batch), batch.expression, stripes(batch)) for batch in batches]
        x = torch.cat([x for x, _, _ in parts])
        y = torch.cat([y for _, y, _ in parts if y is not None])
        if c.selection == "hest":
            self.map.solve_hest(x, y, c.n_components)
            return
        folds = torch.cat([f for _, _, f in parts]) if c.selection == "stripes" else None
        alphas = np.geomspace(c.alpha_min, c.alpha_max, c.n_alphas).tolist()
        self.map.solve(x, y, alphas, folds, n_components=c.n_components)

    def forward(self, batch: Batch) -> Output:
        """Predict, (N, M)."""
        return Output(self.map(self._inputs(batch)))

    def _inputs(self, batch: Batch) -> Tensor:
        pooled = pooled_features(batch)
        return pooled[:, : self.shape.dim] if self.config.inputs == "local" else pooled

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Mean squared error."""
        if batch.expression is None:
            raise ValueError("The batch has no expression to learn from.")
        return {"loss": F.mse_loss(output.prediction, batch.expression)}


MODELS = {"ridge": Ridge}
