"""Hist2ST on frozen features: attention over a slide, then a graph of its nearest spots."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gdml._errors import did_you_mean

from .base import Shape, SpotModel
from .batch import Batch, Output, Slides
from .histogene import SLIDE_RECIPE, SpotTransformer
from .layers import Dropout
from .scales import FEATURES, TARGETS, Scalers
from .zinb import size_factors, zinb_loss

_MOST_NEIGHBORS = 8  # that a batch knows of


@dataclass(frozen=True)
class Hist2STConfig:
    """Settings of Hist2ST; the defaults are the paper's, but for the views, ``features`` and ``targets``.

    Parameters
    ----------
    width
        Width of all layers.
    depth, heads, mlp, dropout
        Of the attention layers; ``mlp`` is the width of their feed-forward layers, as a multiple of ``width``.
    graph_depth
        GraphSAGE layers.
    n_neighbors
        Nearest spots that a graph layer averages, 1 to 8.
    self_loop
        Average over the spot itself too; the authors' code leaves it out.
    zinb_weight
        Weight of the likelihood of the raw counts; 0 for none.
    n_views
        Altered copies of the features in each training step (paper: 5); 0 for none.
    view_dropout, view_noise
        Rate at which entries of a copy are zeroed, and standard deviation of the normal noise that is added, in
        units of the scaled features.
    distillation_weight
        Weight of the squared difference between the prediction and the combined predictions of the copies.
    features
        Scale of the features: ``"standardize"`` each column on the training spots, or ``"raw"`` (paper).
    targets
        ``"center"``: the head starts at the mean expression of the training spots; ``"standardize"``: each gene
        is divided by its standard deviation too; ``"raw"`` (paper): it has to learn the mean from zero.
    """

    width: int = 1024
    depth: int = 8
    heads: int = 16
    mlp: int = 1
    dropout: float = 0.2
    graph_depth: int = 4
    n_neighbors: int = 4
    self_loop: bool = False
    zinb_weight: float = 0.25
    n_views: int = 1
    view_dropout: float = 0.1
    view_noise: float = 0.1
    distillation_weight: float = 0.5
    features: Literal["standardize", "raw"] = "standardize"
    targets: Literal["center", "standardize", "raw"] = "center"

    def __post_init__(self) -> None:
        for name, choices in (("features", FEATURES), ("targets", TARGETS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"`{name}` is {value!r}. {did_you_mean(str(value), choices)}")
        if not 1 <= self.n_neighbors <= _MOST_NEIGHBORS:
            raise ValueError(f"`n_neighbors` must be 1 to {_MOST_NEIGHBORS}, found {self.n_neighbors}.")
        for name in ("zinb_weight", "n_views", "view_noise", "distillation_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, found {getattr(self, name)}.")


class GraphLayer(nn.Module):
    """GraphSAGE layer: a linear layer on the mean of the neighbours, ReLU, rows of unit length.

    Hamilton, Ying, Leskovec 2017, mean aggregator.

    Parameters
    ----------
    width
        Width of the spots' features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: Tensor, neighbors: Tensor) -> Tensor:
        """(S, width) features and (S, k) rows of each spot's neighbours -> (S, width)."""
        # the mean and the linear map commute
        return F.normalize(F.relu(self.linear(x)[neighbors].mean(1)).float(), dim=1)


class Hist2ST(SpotModel):
    """Hist2ST: attention among a slide's spots, graph convolutions, an LSTM over the depths of the graph.

    The paper begins with convolutions over the pixels of a tile; here the features of a frozen encoder stand in
    their place. Besides the squared error it learns the likelihood of the raw counts, and to predict from altered
    copies of its input what it predicts from the input itself.

    Parameters
    ----------
    config
        Sizes and weights.
    shape
        Sizes of the data.
    """

    config_class = Hist2STConfig
    citation: ClassVar[str] = "Zeng et al. (2022), Hist2ST, Briefings in Bioinformatics 23:bbac297"
    presets: ClassVar[dict[str, Any]] = {"paper": Hist2STConfig(n_views=5)}
    recipe = SLIDE_RECIPE
    preset_recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            **SLIDE_RECIPE,
            "learning_rate": 1e-5,
            "max_epochs": 350,
            "patience": 20,
            "decay_epochs": 50,
            "decay": 0.9,
        }
    }
    needs = frozenset({"counts"})
    config: Hist2STConfig

    def __init__(self, config: Hist2STConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        c, width, m = config, config.width, shape.n_genes
        self.scalers = Scalers(shape.dim, m, c.features, c.targets)
        self.transformer = SpotTransformer(
            shape.dim, width, c.depth, c.heads, c.mlp, c.dropout, n_rows=shape.n_rows, n_cols=shape.n_cols
        )
        self.graph = nn.ModuleList(GraphLayer(width) for _ in range(c.graph_depth))
        self.jump = nn.LSTM(width, width, 2)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, m))
        if c.zinb_weight:
            self.count_heads = nn.ModuleList(nn.Linear(width, m) for _ in ("mean", "dispersion", "zero"))
        self.n_views = c.n_views if c.distillation_weight else 0
        if self.n_views:
            self.drop_view = Dropout(c.view_dropout)
            self.weigh = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Take the scales of features and targets from the training spots."""
        self.scalers.prepare(batches)

    def forward(self, batch: Batch) -> Output:
        """Predict, (N, M)."""
        features = self.scalers.pooled(batch.slides.features)
        copies = [features]
        if self.training:
            copies += [self._view(features) for _ in range(self.n_views)]
        own, *views = self._encode(copies, batch.slides, batch.index)
        prediction = self.head(own)
        parts = {"prediction": prediction}
        if self.config.zinb_weight:
            names = ("log_mean", "dispersion", "zero_logit")
            parts |= {name: head(own) for name, head in zip(names, self.count_heads, strict=True)}
        if views:
            seen = torch.stack(views)
            parts["distilled"] = (self.weigh(seen).softmax(0) * self.head(seen)).sum(0)
        return Output(self.scalers.target.inverse(prediction.float()), parts=parts)

    def _view(self, x: Tensor) -> Tensor:
        """Alter the features, in place of turning, mirroring and greying the tiles."""
        return self.drop_view(x + self.config.view_noise * torch.randn_like(x))

    def _encode(self, copies: list[Tensor], slides: Slides, index: Tensor) -> Tensor:
        """V copies of the features, each (S, D), to (V, N, width): a copy of a slide goes through as one more slide."""
        if slides.nearest is None:
            raise ValueError("The batch does not say which spots are nearest to each other (`slides.nearest`).")
        v, s, c = len(copies), len(copies[0]), self.config
        first_rows = s * torch.arange(v, device=index.device)[:, None]
        neighbors = slides.nearest[:, 1 - c.self_loop : c.n_neighbors + 1]
        neighbors = (neighbors + first_rows[:, :, None]).flatten(0, 1)
        stacked = replace(slides, grid=slides.grid.repeat(v, 1), lengths=slides.lengths * v)
        x = self.transformer(stacked, torch.cat(copies))
        depths, rows = [], (index + first_rows).flatten()
        for layer in self.graph:
            x = layer(x, neighbors)
            depths.append(x[rows])
        return self.jump(torch.stack(depths))[0].mean(0).unflatten(0, (v, len(index)))

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Squared error + the weighted likelihood of the counts + the weighted self-distillation."""
        if batch.expression is None:
            raise ValueError("The batch has no expression to learn from.")
        c, target = self.config, self.scalers.target(batch.expression)
        # the likelihood is a difference of large logarithms: never in bf16
        with torch.autocast(target.device.type, enabled=False):
            parts = {name: x.float() for name, x in output.parts.items()}
            losses = {"loss_pred": F.mse_loss(parts["prediction"], target)}
            total = losses["loss_pred"]
            if c.zinb_weight:
                losses["loss_zinb"] = self._count_loss(batch.counts, parts)
                total = total + c.zinb_weight * losses["loss_zinb"]
            if "distilled" in parts:
                losses["loss_distillation"] = F.mse_loss(parts["distilled"], parts["prediction"])
                total = total + c.distillation_weight * losses["loss_distillation"]
        return {"loss": total, **losses}

    def _count_loss(self, counts: Tensor | None, parts: dict[str, Tensor]) -> Tensor:
        if counts is None:
            raise ValueError("The batch has no counts to learn from; set zinb_weight=0 to learn without.")
        log_mean = parts["log_mean"] + size_factors(counts).log()[:, None]
        return zinb_loss(counts, log_mean, F.softplus(parts["dispersion"]), parts["zero_logit"])


MODELS = {"hist2st": Hist2ST}
