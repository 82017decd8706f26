"""ST-Net on frozen features: one linear layer that starts at the mean expression."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor, nn

from .base import Shape, SpotModel
from .batch import Batch, Output
from .config import ScaledConfig
from .scaling import Scalers


@dataclass(frozen=True)
class STNetConfig(ScaledConfig):
    """Settings of ST-Net.

    Parameters
    ----------
    features, targets
        Scales by the training spots: features ``"standardize"`` or ``"raw"``; expression ``"center"`` (on the mean of
        each gene), ``"standardize"`` or ``"raw"`` (``"raw"`` and ``"center"`` in the paper).
    """


class STNet(SpotModel):
    """ST-Net: a linear head on the pooled features of a spot's tile, trained by stochastic gradient descent.

    The weights start at zero and the bias at the mean expression of the training spots. The paper fine-tunes
    the encoder (DenseNet121) as well; here the features are frozen and only the head is trained.
    """

    config_class = STNetConfig
    citation: ClassVar[str] = "He et al. (2020), ST-Net, Nature Biomedical Engineering 4:827"
    # the paper's optimiser, batches and epochs; its learning rate of 1e-6 is for a whole network
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

    def forward(self, batch: Batch) -> Output:
        """Predict (N, M) from the pooled local features."""
        # rows of about unit length, so that one learning rate fits encoders of any width
        return self.predicted(self.head(self.scalers.pooled(batch.pooled) * self.shape.dim**-0.5))

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Squared error, summed over genes and averaged over spots, so that the step depends on neither number."""
        losses = super().loss(batch, output, generator)
        return {**losses, "loss": losses["loss_pred"] * self.shape.n_genes}


MODELS = {"stnet": STNet}
