"""TRIPLEX: three resolutions, fused by cross-attention (Chung, Ha, Im, Lee; CVPR 2024; arXiv 2403.07592)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .base import PLAIN_RECIPE, Shape, SpotModel, squared_error
from .batch import Batch, Output
from .branches import NeighborTransformer, SlideTransformer
from .config import ScaledConfig
from .layers import CrossBlock, masked_mean
from .scaling import Scalers

BRANCHES = ("target", "neighbor", "global")


@dataclass(frozen=True)
class TriplexConfig(ScaledConfig):
    """Settings of TRIPLEX; the defaults are the paper's for HER2ST, except for ``width``, ``features`` and ``targets``.

    Parameters
    ----------
    width
        Token width of all branches, to which the features are projected (paper: 512, that of its encoder).
    neighbor_depth, neighbor_heads, neighbor_mlp, neighbor_dropout
        Transformer over the neighbour tiles: layers, heads, width of the feed-forward layers as a multiple of
        ``width``, and rate.
    global_depth, global_heads, global_mlp, global_dropout
        Transformer over the spots of a slide.
    fusion_depth, fusion_heads, fusion_mlp, fusion_dropout
        Cross-attention of the global token to those of the other branches.
    cross_attention
        One module for target and neighbour tokens (``"shared"``, authors' code), or one each (``"separate"``).
    distillation
        Share of the supervision of a branch that comes from the fused prediction (lambda of the paper).
    detach_teacher
        Stop gradients at the fused prediction in that part (the authors' code does not, so that the fused prediction
        also moves towards those of the branches).
    features, targets
        Scales by the training spots: features ``"standardize"`` or ``"raw"``; expression ``"center"`` (on the mean of
        each gene), ``"standardize"`` or ``"raw"`` (both ``"raw"`` in the paper).
    """

    width: int = 192
    neighbor_depth: int = 4
    neighbor_heads: int = 4
    neighbor_mlp: int = 4
    neighbor_dropout: float = 0.3
    global_depth: int = 5
    global_heads: int = 8
    global_mlp: int = 4
    global_dropout: float = 0.3
    fusion_depth: int = 1
    fusion_heads: int = 8
    fusion_mlp: int = 4
    fusion_dropout: float = 0.4
    cross_attention: Literal["shared", "separate"] = "shared"
    distillation: float = 0.3
    detach_teacher: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "neighbor_depth", "global_depth", "fusion_depth")
        self.check_heads("neighbor_heads", "global_heads", "fusion_heads")
        self.check_share("distillation")


_SIZES = ("depth", "heads", "mlp", "dropout")


def _published(*parts: tuple[float, ...]) -> TriplexConfig:
    sizes: dict[str, Any] = {}
    for part, values in zip(("neighbor", "global", "fusion"), parts, strict=True):
        sizes |= {f"{part}_{name}": value for name, value in zip(_SIZES, values, strict=True)}
    return TriplexConfig(width=512, **sizes)


#: The authors' configurations by data set: depth, heads, mlp and dropout of neighbour, global and fusion layers.
PRESETS = {
    "her2st": _published((4, 4, 4, 0.3), (5, 8, 4, 0.3), (1, 8, 4, 0.4)),
    "stnet": _published((4, 8, 4, 0.3), (3, 8, 2, 0.1), (3, 16, 4, 0.4)),
    "skinst": _published((4, 16, 1, 0.3), (2, 16, 1, 0.1), (2, 8, 4, 0.1)),
}


class Triplex(SpotModel):
    """TRIPLEX: target tokens, a transformer over the neighbour tiles, and one over the slide's spots.

    The spot's token of the slide transformer attends to the target tokens and to the neighbour tokens; the sum of both
    outputs predicts the expression. Each branch also predicts it from the mean of its own tokens, supervised by the
    measured expression and by the fused prediction.
    """

    config_class = TriplexConfig
    citation: ClassVar[str] = "Chung, Ha, Im, Lee (2024), TRIPLEX, CVPR; arXiv 2403.07592"
    presets: ClassVar[dict[str, Any]] = PRESETS
    preset_normalization = "paper"
    recipe = {**PLAIN_RECIPE, "batch_size": 128, "decay_epochs": 50, "decay": 0.9}
    needs = frozenset({"tokens", "neighbors", "slides"})
    config: TriplexConfig

    def __init__(self, config: TriplexConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        shape.require("TRIPLEX", n_tokens=2, n_side=2)
        c, d, m = config, config.width, shape.n_genes
        self.scalers = Scalers(shape.dim, m, c.features, c.targets)
        self.project = nn.ModuleDict({name: nn.Linear(shape.dim, d) for name in BRANCHES})
        self.neighbor = NeighborTransformer(
            d, shape.n_side, c.neighbor_depth, c.neighbor_heads, c.neighbor_mlp, c.neighbor_dropout
        )
        self.slide = SlideTransformer(d, c.global_depth, c.global_heads, c.global_mlp, c.global_dropout)
        modules = [
            CrossBlock(d, c.fusion_depth, c.fusion_heads, c.fusion_mlp, c.fusion_dropout)
            for _ in range(1 if c.cross_attention == "shared" else 2)
        ]
        self.fusion = nn.ModuleList(modules)
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, m)
        self.heads = nn.ModuleDict({name: nn.Linear(d, m) for name in BRANCHES})

    def forward(self, batch: Batch) -> Output:
        """Predict (N, M) from the tile, its neighbours inside the image, and the spots of the slide."""
        slides, features, index = batch.context
        local, neighbors = self.scalers.local_and_neighbors(batch)
        mask = batch.neighbor_mask
        target = self.project["target"](local)
        neighbor = self.neighbor(self.project["neighbor"](neighbors), mask)
        spots = self.project["global"](self.scalers.pooled(features))
        of_slide = self.slide(slides, spots, batch.visitors, index)

        to_target, to_neighbor = self.fusion[0], self.fusion[-1]
        query = of_slide[:, None]
        fused = self.norm((to_target(query, target) + to_neighbor(query, neighbor, mask))[:, 0])
        means = {"target": target.mean(1), "neighbor": masked_mean(neighbor, mask), "global": of_slide}
        prediction = self.head(fused)
        parts = {name: self.heads[name](x) for name, x in means.items()}
        return Output(self.scalers.target.inverse(prediction.float()), None, {"fused": prediction, **parts})

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Squared error of the fused prediction, and of each branch against the expression and the fused prediction."""
        share = self.config.distillation
        y = self.scalers.target(batch.measured)
        with torch.autocast(y.device.type, enabled=False):
            fused = output.parts["fused"].float()
            teacher = fused.detach() if self.config.detach_teacher else fused
            losses = {"loss_pred": squared_error(fused, y, batch.weight)}
            for name in BRANCHES:
                branch = output.parts[name].float()
                losses[f"loss_{name}"] = (1 - share) * squared_error(branch, y, batch.weight) + share * F.mse_loss(
                    branch, teacher
                )
            return {"loss": torch.stack(list(losses.values())).sum(), **losses}


MODELS = {"triplex": Triplex}
