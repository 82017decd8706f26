"""HisToGene on frozen features: a transformer over all spots of a slide, with learnt positions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import Shape, SpotModel
from .batch import Batch, Output, Slides, Visitors
from .branches import Packing, attend, visit
from .config import ScaledConfig
from .dropout import Dropout
from .layers import Block
from .scaling import Scalers

#: A batch is a whole slide, and an epoch has as many steps as there are slides.
SLIDE_RECIPE: dict[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "batch_size": 100_000,
    "slides_per_batch": 1,
    "warmup_steps": 0,
    "clip": 0.0,
    "average": 0.0,
}
#: Most entries of a table of positions; larger grids are scaled to it.
MAX_POSITIONS = 1024


@dataclass(frozen=True)
class HisToGeneConfig(ScaledConfig):
    """Settings of HisToGene; the defaults are the paper's, except for ``features`` and ``targets``.

    Parameters
    ----------
    width
        Width of the transformer.
    depth, heads, mlp, dropout
        Of the transformer layers; ``mlp`` is the width of their feed-forward layers, as a multiple of ``width``.
    features, targets
        Scales by the training spots: features ``"standardize"`` or ``"raw"``; expression ``"center"`` (on the mean of
        each gene), ``"standardize"`` or ``"raw"`` (both ``"raw"`` in the paper).
    """

    width: int = 1024
    depth: int = 4
    heads: int = 16
    mlp: int = 2
    dropout: float = 0.1


def _interpolate(table: nn.Embedding, position: Tensor, extent: Tensor) -> Tensor:
    """Rows of a table at positions (n,) on grids of ``extent`` (n,), scaled where the table is shorter."""
    last = table.num_embeddings - 1
    scale = torch.where(extent > last + 1, last / (extent - 1).clamp(min=1), 1.0)
    at = (position * scale).clamp(max=last)
    low = at.floor()
    between = (at - low)[:, None]
    low = low.long()
    found = table(low)
    if not between.any():
        return found
    return torch.where(between > 0, torch.lerp(found, table((low + 1).clamp(max=last)), between), found)


class SpotTransformer(nn.Module):
    """Projected features plus learnt embeddings of row and column, then self-attention among the spots of a slide.

    The positions of a slide whose grid exceeds the tables are scaled to them and its embeddings interpolated.

    The tables have ``n_rows`` and ``n_cols`` entries, at most ``MAX_POSITIONS`` each.
    """

    def __init__(
        self, dim: int, width: int, depth: int, heads: int, mlp: int, dropout: float, *, n_rows: int, n_cols: int
    ) -> None:
        super().__init__()
        self.project = nn.Linear(dim, width)
        self.row = nn.Embedding(min(n_rows, MAX_POSITIONS), width)
        self.col = nn.Embedding(min(n_cols, MAX_POSITIONS), width)
        self.drop = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, mlp, dropout) for _ in range(depth))

    def forward(self, slides: Slides, x: Tensor, visitors: Visitors | None = None) -> Tensor:
        """Features ``x`` (S + V, D) of the context, then of the visitors, to (S + V, width)."""
        n = len(slides.grid)
        x = self.drop(self.project(x) + self._position(slides, visitors))
        inputs, found = slides.once(self, lambda: self._context(slides, x[:n]))
        if visitors is None:
            return found
        return torch.cat([found, visit(self.blocks, slides, inputs, x[n:], visitors)])

    def _context(self, slides: Slides, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Give the inputs of each layer (B, L, width) and the context after all layers (S, width)."""
        packing, inputs = Packing(slides.lengths, x.device), list[Tensor]()
        return inputs, packing.unpack(attend(self.blocks, packing, packing.pack(x), inputs))

    def _position(self, slides: Slides, visitors: Visitors | None) -> Tensor:
        """Embeddings of the cells of context and visitors, (S + V, width)."""
        slide, grid, extent = slides.slide, slides.grid, slides.extent
        if extent is None:
            extent = torch.stack([part.amax(0) + 1 for part in grid.split(slides.lengths)])
        if visitors is not None:
            slide, grid = torch.cat([slide, visitors.slide]), torch.cat([grid, visitors.grid])
        rows, cols = extent[slide].unbind(1)
        return _interpolate(self.row, grid[:, 0], rows) + _interpolate(self.col, grid[:, 1], cols)


class HisToGene(SpotModel):
    """HisToGene: self-attention among the spots of a slide, with learnt embeddings of their grid positions.

    The paper projects the pixels of a tile; here the features of a frozen encoder take their place.
    """

    config_class = HisToGeneConfig
    citation: ClassVar[str] = "Pang, Su, Li (2021), HisToGene, bioRxiv 2021.11.28.470212"
    presets: ClassVar[dict[str, Any]] = {"paper": HisToGeneConfig()}
    # a batch is a whole slide; the paper's rate is meant for the 3,000 steps of 100 epochs of its slides
    recipe = SLIDE_RECIPE
    preset_recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {**SLIDE_RECIPE, "learning_rate": 1e-5, "max_epochs": 100, "patience": 20}
    }
    needs = frozenset({"slides"})
    config: HisToGeneConfig

    def __init__(self, config: HisToGeneConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        c = config
        self.scalers = Scalers(shape.dim, shape.n_genes, c.features, c.targets)
        self.transformer = SpotTransformer(
            shape.dim, c.width, c.depth, c.heads, c.mlp, c.dropout, n_rows=shape.n_rows, n_cols=shape.n_cols
        )
        self.head = nn.Sequential(nn.LayerNorm(c.width), nn.Linear(c.width, shape.n_genes))

    def forward(self, batch: Batch) -> Output:
        """Predict (N, M) from the features and positions of the spots of each slide."""
        slides, features, index = batch.context
        x = self.transformer(slides, self.scalers.pooled(features), batch.visitors)
        return self.predicted(self.head(x[index]))


MODELS = {"histogene": HisToGene}
