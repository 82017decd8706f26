"""HisToGene on frozen features: a transformer over all spots of a slide, with learnt positions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gdml._errors import did_you_mean

from .base import Shape, SpotModel
from .batch import Batch, Output, Slides
from .branches import Packing
from .layers import Block, Dropout
from .scales import FEATURES, TARGETS, Scalers

#: A batch is a whole slide, and an epoch as many steps as there are slides.
SLIDE_RECIPE: dict[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "batch_size": 100_000,
    "slides_per_batch": 1,
    "warmup_steps": 0,
    "clip": 0.0,
    "average": 0.0,
}


@dataclass(frozen=True)
class HisToGeneConfig:
    """Settings of HisToGene; the defaults are the paper's, but for ``features`` and ``targets``.

    Parameters
    ----------
    width
        Width of the transformer.
    depth, heads, mlp, dropout
        Of the transformer layers; ``mlp`` is the width of their feed-forward layers, as a multiple of ``width``.
    features
        Scale of the features: ``"standardize"`` each column on the training spots, or ``"raw"`` (paper).
    targets
        ``"center"``: the head starts at the mean expression of the training spots; ``"standardize"``: each gene
        is divided by its standard deviation too; ``"raw"`` (paper): it has to learn the mean from zero.
    """

    width: int = 1024
    depth: int = 4
    heads: int = 16
    mlp: int = 2
    dropout: float = 0.1
    features: Literal["standardize", "raw"] = "standardize"
    targets: Literal["center", "standardize", "raw"] = "center"

    def __post_init__(self) -> None:
        for name, choices in (("features", FEATURES), ("targets", TARGETS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"`{name}` is {value!r}. {did_you_mean(str(value), choices)}")


class SpotTransformer(nn.Module):
    """Projected features plus learnt embeddings of row and column, then self-attention among a slide's spots.

    Parameters
    ----------
    dim
        Width D of the features.
    width, depth, heads, mlp, dropout
        Of the transformer layers.
    n_rows, n_cols
        Sizes of the tables of positions; spots beyond them take the last entry.
    """

    def __init__(
        self, dim: int, width: int, depth: int, heads: int, mlp: int, dropout: float, *, n_rows: int, n_cols: int
    ) -> None:
        super().__init__()
        self.project = nn.Linear(dim, width)
        self.row = nn.Embedding(n_rows, width)
        self.col = nn.Embedding(n_cols, width)
        self.drop = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, mlp, dropout) for _ in range(depth))

    def forward(self, slides: Slides, x: Tensor) -> Tensor:
        """(S, D) features of all spots of ``slides`` -> (S, width)."""
        row, col = slides.grid.unbind(1)
        position = self.row(row.clamp(max=self.row.num_embeddings - 1))
        position = position + self.col(col.clamp(max=self.col.num_embeddings - 1))
        packing = Packing(slides.lengths, x.device)
        x = packing.pack(self.drop(self.project(x) + position))
        for block in self.blocks:
            x = block(x, packing.bias)
        return packing.unpack(x)


class HisToGene(SpotModel):
    """HisToGene: the spots of a slide attend to each other, knowing where they lie.

    The paper projects the pixels of a tile; here they are the features of a frozen encoder.

    Parameters
    ----------
    config
        Sizes.
    shape
        Sizes of the data.
    """

    config_class = HisToGeneConfig
    citation: ClassVar[str] = "Pang, Su, Li (2021), HisToGene, bioRxiv 2021.11.28.470212"
    presets: ClassVar[dict[str, Any]] = {"paper": HisToGeneConfig()}
    # a batch is a whole slide; the paper's rate is set for the 3,000 steps that 100 epochs of its slides are
    recipe = SLIDE_RECIPE
    preset_recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {**SLIDE_RECIPE, "learning_rate": 1e-5, "max_epochs": 100, "patience": 20}
    }
    needs = frozenset()
    config: HisToGeneConfig

    def __init__(self, config: HisToGeneConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        c = config
        self.scalers = Scalers(shape.dim, shape.n_genes, c.features, c.targets)
        self.transformer = SpotTransformer(
            shape.dim, c.width, c.depth, c.heads, c.mlp, c.dropout, n_rows=shape.n_rows, n_cols=shape.n_cols
        )
        self.head = nn.Sequential(nn.LayerNorm(c.width), nn.Linear(c.width, shape.n_genes))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Take the scales of features and targets from the training spots."""
        self.scalers.prepare(batches)

    def forward(self, batch: Batch) -> Output:
        """Predict, (N, M)."""
        x = self.transformer(batch.slides, self.scalers.pooled(batch.slides.features))
        prediction = self.head(x[batch.index])
        return Output(self.scalers.target.inverse(prediction.float()), parts={"prediction": prediction})

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Mean squared error."""
        if batch.expression is None:
            raise ValueError("The batch has no expression to learn from.")
        target = self.scalers.target(batch.expression)
        with torch.autocast(target.device.type, enabled=False):
            error = F.mse_loss(output.parts["prediction"].float(), target)
        return {"loss": error, "loss_pred": error}


MODELS = {"histogene": HisToGene}
