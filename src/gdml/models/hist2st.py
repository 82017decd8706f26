"""Hist2ST on frozen features: attention over a slide, then a graph of its nearest spots."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from .base import Shape, SpotModel, squared_error
from .batch import Batch, Output
from .config import ScaledConfig
from .dropout import Dropout
from .histogene import SLIDE_RECIPE, SpotTransformer
from .scaling import Scalers

_MOST_NEIGHBORS = 8  # in ``Slides.nearest``
# clamps of the likelihood of counts
_LOG_MEAN = (math.log(1e-5), math.log(1e6))
_DISPERSION = (1e-4, 1e4)


@dataclass(frozen=True)
class Hist2STConfig(ScaledConfig):
    """Settings of Hist2ST; the defaults are the paper's, except for the views, ``features`` and ``targets``.

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
    features, targets
        Scales by the training spots: features ``"standardize"`` or ``"raw"``; expression ``"center"`` (on the mean of
        each gene), ``"standardize"`` or ``"raw"`` (both ``"raw"`` in the paper).
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_neighbors <= _MOST_NEIGHBORS:
            raise ValueError(f"`n_neighbors` must be 1 to {_MOST_NEIGHBORS}, found {self.n_neighbors}.")
        self.check_at_least(0, "zinb_weight", "n_views", "view_noise", "distillation_weight")


def size_factors(counts: Tensor) -> Tensor:
    """Depth of each spot over the median depth of all: (N, M) counts to (N,), positive."""
    depth = counts.sum(1)
    return depth.clamp(min=1) / depth.quantile(0.5).clamp(min=1)


def zinb_loss(counts: Tensor, log_mean: Tensor, dispersion: Tensor, zero_logit: Tensor) -> Tensor:
    """Negative log-likelihood, averaged over all entries (Eraslan et al. 2019, equations 1 to 3).

    A count is zero with probability pi, and else drawn from a negative binomial with mean mu and variance
    mu + mu^2 / r. All terms are logarithms, so that neither a large mean nor a small probability overflows.

    Parameters
    ----------
    counts
        (N, M) raw counts.
    log_mean
        (N, M) logarithm of mu, the spot's size factor included; clamped to 1e-5 and 1e6.
    dispersion
        (N, M) r, positive; clamped to 1e-4 and 1e4.
    zero_logit
        (N, M) logit of pi.

    Returns
    -------
    Scalar.
    """
    log_mean, r = log_mean.clamp(*_LOG_MEAN), dispersion.clamp(*_DISPERSION)
    log_total = torch.logaddexp(log_mean, r.log())
    zero = r * (r.log() - log_total)  # of the negative binomial alone
    some = torch.lgamma(counts + r) - torch.lgamma(r) - torch.lgamma(counts + 1)
    some = some + zero + counts * (log_mean - log_total)
    drop, keep = F.logsigmoid(zero_logit), F.logsigmoid(-zero_logit)
    return -torch.where(counts > 0, keep + some, torch.logaddexp(drop, keep + zero)).mean()


class GraphLayer(nn.Module):
    """GraphSAGE layer: a linear layer on the mean of the neighbours, ReLU, rows of unit length.

    Hamilton, Ying, Leskovec 2017, mean aggregator.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)

    def forward(self, x: Tensor, neighbors: Tensor) -> Tensor:
        """Features (S, width) and the rows (S, k) of each spot's neighbours to (S, width)."""
        # the mean and the linear map commute
        return self.average(self.linear(x), neighbors)

    @staticmethod
    def average(mapped: Tensor, neighbors: Tensor) -> Tensor:
        """Average rows of mapped features (S, width) over the neighbours (n, k) of n spots: (n, width)."""
        return F.normalize(F.relu(mapped[neighbors].mean(1)).float(), dim=1)


class Hist2ST(SpotModel):
    """Hist2ST: attention among a slide's spots, graph convolutions, an LSTM over the depths of the graph.

    The paper begins with convolutions over the pixels of a tile; here the features of a frozen encoder take their
    place. The loss has the squared error, the likelihood of the raw counts, and the difference between the predictions
    from the input and from altered copies of it.
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
    needs = frozenset({"slides", "counts"})
    config: Hist2STConfig

    def __init__(self, config: Hist2STConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        c, width, m = config, config.width, shape.n_genes
        self.scalers = Scalers(shape.dim, m, c.features, c.targets)
        self.transformer = SpotTransformer(
            shape.dim, width, c.depth, c.heads, c.mlp, c.dropout, n_rows=shape.n_rows, n_cols=shape.n_cols
        )
        self.graph: Any = nn.ModuleList(GraphLayer(width) for _ in range(c.graph_depth))
        self.jump = nn.LSTM(width, width, 2)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, m))
        if not c.zinb_weight:
            self.needs = frozenset({"slides"})
        else:
            self.count_heads = nn.ModuleList(nn.Linear(width, m) for _ in ("mean", "dispersion", "zero"))
        self.n_views = c.n_views if c.distillation_weight else 0
        if self.n_views:
            self.drop_view = Dropout(c.view_dropout)
            self.weigh = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, batch: Batch) -> Output:
        """Predict (N, M) from the features, positions and nearest spots of each slide."""
        _, features, _ = batch.context
        features = self.scalers.pooled(features)
        copies = [features]
        if self.training:
            copies += [self._view(features) for _ in range(self.n_views)]
        own, *views = self._encode(copies, batch)
        prediction = self.head(own)
        parts: dict[str, Tensor] = {}
        if self.config.zinb_weight:
            names = ("log_mean", "dispersion", "zero_logit")
            parts |= {name: head(own) for name, head in zip(names, self.count_heads, strict=True)}
        if views:
            seen = torch.stack(views)
            parts["distilled"] = (self.weigh(seen).softmax(0) * self.head(seen)).sum(0)
        return self.predicted(prediction, **parts)

    def _view(self, x: Tensor) -> Tensor:
        """Alter the features, in place of turning, mirroring and greying the tiles."""
        return self.drop_view(x + self.config.view_noise * torch.randn_like(x))

    def _encode(self, copies: list[Tensor], batch: Batch) -> Tensor:
        """C copies of the features, each (S + V, D), to (C, N, width): a copy of a slide passes as one more slide."""
        slides, _, index = batch.context
        visitors, nearest = batch.visitors, slides.nearest
        if nearest is None or (visitors is not None and visitors.nearest is None):
            raise ValueError("The batch does not say which spots are nearest to each other: set `slides.nearest`.")
        c, s, n = len(copies), len(slides.grid), len(copies[0])
        numbers = torch.arange(c, device=index.device)[:, None]

        def of_copies(rows: Tensor) -> Tensor:
            """Rows of one copy (..., n) to those of all copies (c n, ...): all contexts, then all visitors."""
            shift = numbers.view(-1, *[1] * rows.ndim)
            return torch.where(rows < s, rows + s * shift, rows + s * (c - 1) + (n - s) * shift).flatten(0, 1)

        used = slice(1 - self.config.self_loop, self.config.n_neighbors + 1)
        extent = None if slides.extent is None else slides.extent.repeat(c, 1)
        stacked = replace(slides, grid=slides.grid.repeat(c, 1), lengths=slides.lengths * c, extent=extent)
        x, around = torch.cat([x[:s] for x in copies]), None
        if visitors is not None and visitors.nearest is not None:
            x, around = torch.cat([x, *(x[s:] for x in copies)]), of_copies(visitors.nearest[:, used])
            of = (visitors.slide + len(slides.lengths) * numbers).flatten()
            visitors = replace(visitors, grid=visitors.grid.repeat(c, 1), slide=of)
        x = self.transformer(stacked, x, visitors)
        context = slides.once(self.graph, partial(self._graph, x[: c * s], of_copies(nearest[:, used])))
        y, rows, depths = x[c * s :], of_copies(index), []
        for layer, (mapped, found) in zip(self.graph, context, strict=True):
            if around is not None:
                y = layer.average(torch.cat([mapped, layer.linear(y)]), around)
                found = torch.cat([found, y])
            depths.append(found[rows])
        return self.jump(torch.stack(depths))[0].mean(0).unflatten(0, (c, len(index)))

    def _graph(self, x: Tensor, neighbors: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Give the mapped features and the output of each graph layer over the context."""
        layers = []
        for layer in self.graph:
            mapped = layer.linear(x)
            x = layer.average(mapped, neighbors)
            layers.append((mapped, x))
        return layers

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Squared error + the weighted likelihood of the counts + the weighted self-distillation."""
        c, target = self.config, self.scalers.target(batch.measured)
        # the likelihood is a difference of large logarithms: never in bf16
        with torch.autocast(target.device.type, enabled=False):
            parts = {name: x.float() for name, x in output.parts.items()}
            losses = {"loss_pred": squared_error(parts["prediction"], target, batch.weight)}
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
