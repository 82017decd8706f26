"""BLEEP: expression retrieved from the training spots by a space that image and expression share."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .bank import ReferenceBank, nearest_rows
from .base import Shape, SpotModel
from .batch import Batch, Output
from .config import ScaledConfig
from .layers import ProjectionHead
from .scaling import Scalers


@dataclass(frozen=True)
class BLEEPConfig(ScaledConfig):
    """Settings of BLEEP; the defaults are the paper's, except for ``features`` and ``targets``.

    Parameters
    ----------
    width
        Width of the shared space.
    dropout
        In both projection heads.
    temperature
        Divides the logits of the loss, and multiplies the similarities in its targets.
    normalize
        Bring embeddings to unit length in the loss (the authors do not). Its targets are then close to uniform,
        at any temperature.
    n_neighbors
        Training spots whose expression is averaged to a prediction.
    weighting
        Weights of these spots: equal (``"mean"``), or the softmax of the logits of the loss (``"similarity"``).
    features, targets
        Scales by the training spots: features ``"standardize"`` or ``"raw"``; expression ``"center"`` (on the mean of
        each gene), ``"standardize"`` or ``"raw"`` (both ``"raw"`` in the paper).
    """

    width: int = 256
    dropout: float = 0.1
    temperature: float = 1.0
    normalize: bool = False
    n_neighbors: int = 50
    weighting: Literal["mean", "similarity"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_positive("temperature")
        self.check_at_least(1, "n_neighbors")


def soft_clip_loss(image: Tensor, gene: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of matching images and expression, with targets softened by similarity within each modality.

    The target of spots i and j is the softmax over j of the mean of their similarity as images and as expression,
    so that similar spots are not pushed apart. Gradients flow through it.

    Parameters
    ----------
    image, gene
        (N, d) embeddings of the same spots.
    temperature
        Divides the logits, multiplies the similarities.

    Returns
    -------
    Of finding the expression of each image, and the image of each expression, scalars.
    """
    logits = gene @ image.T / temperature
    targets = ((image @ image.T + gene @ gene.T) / 2 * temperature).softmax(1)
    of_gene = -(targets * logits.log_softmax(1)).sum(1).mean()
    # the authors take the columns of the same targets here, which need not sum to one
    of_image = -(targets.T * logits.T.log_softmax(1)).sum(1).mean()
    return of_image, of_gene


class BLEEP(SpotModel):
    """BLEEP: pooled features and expression in one space, expression predicted by retrieval.

    A head for each modality, trained to match the two of a spot. The prediction is the mean expression of the
    training spots whose embedded expression lies nearest to the embedded image.
    """

    config_class = BLEEPConfig
    citation: ClassVar[str] = "Xie et al. (2023), BLEEP, NeurIPS; arXiv 2306.01859"
    recipe = {
        "max_epochs": 150,
        "patience": 30,  # an epoch has few steps
        "batch_size": 512,
        "learning_rate": 1e-3,
        "weight_decay": 1e-3,
        "warmup_steps": 0,
        "clip": 0.0,
        "average": 0.0,
    }
    needs: frozenset[str] = frozenset()
    shared_space = True
    config: BLEEPConfig
    keys: Tensor | None

    def __init__(self, config: BLEEPConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.scalers = Scalers(shape.dim, shape.n_genes, config.features, config.targets)
        self.image = ProjectionHead(shape.dim, config.width, config.dropout)
        self.gene = ProjectionHead(shape.n_genes, config.width, config.dropout)
        self.bank = ReferenceBank(shape.n_bank, shape.n_genes)
        # embeddings of the bank: computed when first used, and dropped whenever the weights may have changed
        self.register_buffer("keys", None, persistent=False)
        self.register_load_state_dict_post_hook(_drop_keys)

    def train(self, mode: bool = True) -> "BLEEP":
        """Switch to training or evaluation, and drop the embeddings of the bank."""
        self.keys = None
        return super().train(mode)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Keep the expression of the training spots and compute the scales."""
        super().prepare(self.bank.fill(batches))
        n, k = len(self.bank), self.config.n_neighbors
        if n < k:
            raise ValueError(
                f"`n_neighbors` is {k}, but there are {n} training spots: pass "
                f"config={{'n_neighbors': {max(1, n // 4)}}}, or more spots."
            )
        self.shape = replace(self.shape, n_bank=n)

    def forward(self, batch: Batch) -> Output:
        """Predict (N, M) by retrieval; in training, where the loss needs none, the mean expression of the bank."""
        # in bf16 the order of the neighbours would be chance
        with torch.autocast(batch.pooled.device.type, enabled=False):
            image = self._embed(self.image, self.scalers.pooled(batch.pooled))
            if self.training:
                prediction = self.bank.mean().expand(len(batch), -1)
            else:
                prediction = self._retrieve(image)
        return Output(prediction, F.normalize(image, dim=1), {"image": image})

    def embed_expression(self, expression: Tensor) -> Tensor:
        """Expression (N, M) to the shared space: (N, d), rows of unit length."""
        return F.normalize(self.gene(self.scalers.target(expression)).float(), dim=1)

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Mean of both directions of the matching loss."""
        expression = batch.measured
        image = output.parts["image"].float()
        with torch.autocast(image.device.type, enabled=False):
            gene = self._embed(self.gene, self.scalers.target(expression))
            of_image, of_gene = soft_clip_loss(image, gene, self.config.temperature)
        return {"loss": (of_image + of_gene) / 2, "loss_image": of_image, "loss_gene": of_gene}

    def _embed(self, head: nn.Module, x: Tensor) -> Tensor:
        embedded = head(x)
        return F.normalize(embedded, dim=1) if self.config.normalize else embedded

    @torch.no_grad()
    def _retrieve(self, image: Tensor) -> Tensor:
        c = self.config
        if self.keys is None:
            self.keys = self._embed(self.gene, self.scalers.target(self.bank.expression))
        _, rows = nearest_rows(image, self.keys, c.n_neighbors)
        weights = torch.full(rows.shape, 1 / c.n_neighbors, device=rows.device)
        if c.weighting == "similarity":
            logits = torch.einsum("nd,nkd->nk", image, self.keys[rows]) / c.temperature
            weights = logits.softmax(1)
        return F.embedding_bag(rows, self.bank.expression, per_sample_weights=weights, mode="sum")


def _drop_keys(model: BLEEP, _: object) -> None:
    model.keys = None


MODELS = {"bleep": BLEEP}
