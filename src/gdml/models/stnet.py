"""ST-Net on frozen features: one linear layer that starts at the mean expression."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gdml._errors import did_you_mean

from .base import Shape, SpotModel
from .batch import Batch, Output
from .scales import FEATURES, TARGETS, Scalers


@dataclass(frozen=True)
class STNetConfig:
    """Settings of ST-Net.

    Parameters
    ----------
    features
        Scale of the features: ``"standardize"`` each column on the training spots, or ``"raw"`` (paper).
    targets
        ``"center"``: the bias starts at the mean expression of the training spots (paper); ``"standardize"``:
        each gene is divided by its standard deviation too; ``"raw"``: the bias starts at zero.
    """

    features: Literal["standardize", "raw"] = "standardize"
    targets: Literal["center", "standardize", "raw"] = "center"

    def __post_init__(self) -> None:
        for name, choices in (("features", FEATURES), ("targets", TARGETS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"`{name}` is {value!r}. {did_you_mean(str(value), choices)}")


class STNet(SpotModel):
    """ST-Net: a linear head on the pooled features of a spot's tile, trained by stochastic gradient descent.

    The weights start at zero and the bias at the mean expression of the training spots. The paper fine-tunes
    the encoder (DenseNet121) with it; here its features are frozen, and the head alone learns.

    Parameters
    ----------
    config
        Scales of features and targets.
    shape
        Sizes of the data.
    """

    config_class = STNetConfig
    citation: ClassVar[str] = "He et al. (2020), ST-Net, Nature Biomedical Engineering 4:827"
    # the paper's optimiser, batches and epochs; its learning rate of 1e-6 is that of a whole network
    recipe = {
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "batch_size": 32,
        "max_epochs": 50,
        "warmup_steps": 0,
        "clip": 0.0,
        "average": 0.0,
    }
    needs = frozenset()
    config: STNetConfig

    def __init__(self, config: STNetConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.scalers = Scalers(shape.dim, shape.n_genes, config.features, config.targets)
        self.head = nn.Linear(shape.dim, shape.n_genes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Take the scales, and with them the mean expression, from the training spots."""
        self.scalers.prepare(batches)

    def forward(self, batch: Batch) -> Output:
        """Predict, (N, M)."""
        # rows of about unit length, so that one learning rate serves encoders of any width
        x = self.scalers.pooled(batch.local) * self.shape.dim**-0.5
        prediction = self.head(x)
        return Output(self.scalers.target.inverse(prediction.float()), parts={"prediction": prediction})

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Squared error, summed over genes and averaged over spots, so that the size of neither sets the step."""
        if batch.expression is None:
            raise ValueError("The batch has no expression to learn from.")
        target = self.scalers.target(batch.expression)
        with torch.autocast(target.device.type, enabled=False):
            error = F.mse_loss(output.parts["prediction"].float(), target)
        return {"loss": error * self.shape.n_genes, "loss_pred": error}


MODELS = {"stnet": STNet}
