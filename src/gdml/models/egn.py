"""EGN: a token transformer that consults the training tiles most like its own, with their expression."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gdml._errors import did_you_mean

from .bank import ReferenceBank, nearest_rows
from .base import Shape, SpotModel
from .batch import Batch, Output
from .bridging import Bridge, ExemplarLayer, Projector, ResidualPooling
from .scales import FEATURES, TARGETS, Scalers

_SMALL = 1e-12


@dataclass(frozen=True)
class EGNConfig:
    """Settings of EGN; the preset ``"paper"`` has the paper's sizes, which take a GPU.

    Parameters
    ----------
    width
        Token width (paper: 1024).
    depth, heads, mlp
        Transformer layers, their attention heads, and the width of their feed-forward layer as a multiple of
        ``width`` (paper: 8, 16, 4).
    dropout
        In the transformer layers and the projector.
    bridge_every
        An exemplar-bridging block stands in every layer whose number, from 1, this divides.
    bridge_heads, bridge_width
        Its heads, and the width of each.
    projector_depth
        Feed-forward layers that the tile and its exemplars pass through before the first layer.
    pool_sharpness, pool_weight
        Of the residual attention pooling: scale of the logits, and weight beside the mean.
    n_exemplars
        Training tiles that are consulted.
    exclude
        Which exemplars a spot must not see while it is trained on: those of its own ``"slide"``, as none of
        its slide will be there when a new slide is predicted, or its own ``"spot"`` alone. Where the other
        slides have too few spots (one slide only), it is the spot.
    pcc_weight
        Weight of 1 - PCC beside the squared error.
    features
        Scale of the features: ``"standardize"`` each column on the training spots, or ``"raw"``.
    targets
        Scale of the expression that is learnt and shown with exemplars: ``"center"`` each gene on its mean over
        the training spots, ``"standardize"`` it, or ``"raw"``.
    """

    width: int = 256
    depth: int = 4
    heads: int = 4
    mlp: int = 4
    dropout: float = 0.0
    bridge_every: int = 2
    bridge_heads: int = 8
    bridge_width: int = 64
    projector_depth: int = 1
    pool_sharpness: float = 0.1
    pool_weight: float = 0.5
    n_exemplars: int = 9
    exclude: Literal["slide", "spot"] = "slide"
    pcc_weight: float = 0.5
    features: Literal["standardize", "raw"] = "standardize"
    targets: Literal["center", "standardize", "raw"] = "center"

    def __post_init__(self) -> None:
        for name, choices in (("exclude", ("slide", "spot")), ("features", FEATURES), ("targets", TARGETS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"`{name}` is {value!r}. {did_you_mean(str(value), choices)}")
        for name in ("width", "depth", "heads", "mlp", "bridge_every", "bridge_heads", "bridge_width", "n_exemplars"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, found {getattr(self, name)!r}.")


def mean_pcc(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation of the columns of (N, M) ``x`` and ``y``, averaged; 0 for columns that do not vary."""
    x, y = x - x.mean(0), y - y.mean(0)
    square = x.square().sum(0) * y.square().sum(0)
    varies = square > _SMALL
    return torch.where(varies, (x * y).sum(0) / torch.where(varies, square, 1.0).sqrt(), 0.0).mean()


class EGN(SpotModel):
    """EGN: Exemplar Guided Network.

    The tokens of a tile pass through a transformer. In every second layer the training tiles that are most like
    the tile, with their expression, revise its global view (the pooled features), and the global view the tokens.
    Global view and pooled tokens predict.

    Parameters
    ----------
    config
        Sizes and switches.
    shape
        Sizes of the data.

    Raises
    ------
    ValueError
        If the features have no tokens besides the pooled one.
    """

    config_class = EGNConfig
    citation: ClassVar[str] = "Yang, Hossain, Stone, Rahman (2023), EGN, WACV; arXiv 2210.16721"
    presets: ClassVar[dict[str, Any]] = {"paper": EGNConfig(width=1024, depth=8, heads=16)}
    recipe: ClassVar[Mapping[str, Any]] = {
        "max_epochs": 50,
        "batch_size": 32,
        "learning_rate": 5e-4,
        "weight_decay": 1e-4,
        "warmup_steps": 100,
        "clip": 0.0,
        "average": 0.0,
    }
    needs = frozenset({"tokens"})
    config: EGNConfig

    def __init__(self, config: EGNConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        if shape.n_tokens < 2:
            raise ValueError(
                "EGN is a transformer over the tokens of a tile, and the features are pooled to one: "
                'gdml.pp.embed(adata, tokens="grid7").'
            )
        c, n_tokens = config, shape.n_tokens - 1
        self.scalers = Scalers(shape.dim, shape.n_genes, c.features, c.targets)
        self.bank = ReferenceBank(shape.n_bank, shape.n_genes, shape.dim)
        self.by_slide = False
        self.embed = nn.Linear(shape.dim, c.width)
        self.position = nn.Parameter(0.02 * torch.randn(n_tokens, c.width))
        self.projector = Projector(shape.dim, shape.n_genes, c.width, c.projector_depth, c.dropout)
        bridge = lambda: Bridge(c.width, n_tokens, c.bridge_heads, c.bridge_width)
        self.layers = nn.ModuleList(
            ExemplarLayer(c.width, c.heads, c.mlp, c.dropout, None if number % c.bridge_every else bridge())
            for number in range(1, c.depth + 1)
        )
        self.pool = ResidualPooling(c.width, c.pool_sharpness, c.pool_weight)
        answer = nn.Linear(2 * c.width, shape.n_genes)
        nn.init.zeros_(answer.bias)
        self.head = nn.Sequential(nn.LayerNorm(2 * c.width), answer)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Keep features and expression of the training spots, and take the scales from them."""
        self.scalers.prepare(self.bank.fill(batches))
        n, k = len(self.bank), self.config.n_exemplars
        if n - 1 < k:
            raise ValueError(
                f"`n_exemplars` is {k}, but a training spot has {n - 1} others to find them among: pass "
                f"config={{'n_exemplars': {max(1, n // 4)}}}, or more spots."
            )
        self.bank.features = self.scalers.pooled(self.bank.features)
        self.by_slide = self.config.exclude == "slide" and n - self.bank.largest_slide() >= k
        self.shape = replace(self.shape, n_bank=n)

    def forward(self, batch: Batch) -> Output:
        """Predict, (N, M)."""
        local, features, expression = self._exemplars(batch)
        view, exemplars, expression = self.projector(local, features, expression)
        tokens = self.embed(self.scalers.tokens(batch.tokens[:, 1:])) + self.position
        for layer in self.layers:
            tokens, view, exemplars = layer(tokens, self.position, view, exemplars, expression)
        prediction = self.head(torch.cat([self.pool(tokens), view.float()], 1)).float()
        return Output(self.scalers.target.inverse(prediction), parts={"prediction": prediction})

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Squared error, and one less the PCC of each gene over the batch."""
        if batch.expression is None:
            raise ValueError("The batch has no expression to learn from.")
        target = self.scalers.target(batch.expression)
        with torch.autocast(target.device.type, enabled=False):
            prediction = output.parts["prediction"].float()
            error, pcc = F.mse_loss(prediction, target), 1 - mean_pcc(prediction, target)
        return {"loss": error + self.config.pcc_weight * pcc, "loss_pred": error, "loss_pcc": pcc}

    def _exemplars(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled pooled features of the spots (N, D), those of their exemplars (N, k, D), and their expression."""
        local, bank = self.scalers.pooled(batch.local), self.bank
        exclude = None
        if self.training:  # at prediction the spots are others, whatever their numbers
            exclude = bank.own_rows(batch, "slide" if self.by_slide else "spot")
        _, rows = nearest_rows(local, bank.features, self.config.n_exemplars, exclude)
        return local, bank.features[rows], self.scalers.target(bank.expression[rows])


MODELS = {"egn": EGN}
