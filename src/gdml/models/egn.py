"""EGN: a token transformer guided by the most similar training tiles and their expression.

Yang et al., WACV 2023, section 3, with the authors' code where the text leaves a choice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from .bank import ReferenceBank, nearest_rows
from .base import Shape, SpotModel
from .batch import Batch, Output
from .config import ScaledConfig
from .layers import Block, FeedForward
from .scaling import Scalers

_SMALL = 1e-12


@dataclass(frozen=True)
class EGNConfig(ScaledConfig):
    """Settings of EGN; the preset ``"paper"`` has the paper's sizes, which need a GPU.

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
        An exemplar-bridging block is in every layer whose number, from 1, is a multiple of this.
    bridge_heads, bridge_width
        Its heads, and the width of each.
    projector_depth
        Feed-forward layers for the tile and its exemplars before the first layer.
    pool_sharpness, pool_weight
        Of the residual attention pooling: scale of the logits, and weight beside the mean.
    n_exemplars
        Most similar training tiles that are used.
    exclude
        Exemplars that are hidden from a spot in training: those of its own ``"slide"``, as in the prediction of a new
        slide, or its own ``"spot"`` only. Where the other slides have too few spots (one slide only), it is the spot.
    pcc_weight
        Weight of 1 - PCC beside the squared error.
    features, targets
        Scales by the training spots: features ``"standardize"`` or ``"raw"``; expression ``"center"`` (on the mean of
        each gene), ``"standardize"`` or ``"raw"``.
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

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(
            1, "width", "depth", "heads", "mlp", "bridge_every", "bridge_heads", "bridge_width", "n_exemplars"
        )


class Projector(nn.Module):
    """Project the global view of the tile, the exemplars and their expression to the width of the tokens."""

    def __init__(self, dim: int, n_genes: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.view = nn.Linear(dim, width)
        self.exemplar = nn.Linear(dim + n_genes, width)
        self.expression = nn.Linear(n_genes, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), FeedForward(width, width, dropout)) for _ in range(depth)
        )

    def forward(self, view: Tensor, exemplars: Tensor, expression: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D), (N, k, D) and (N, k, M) to (N, width), (N, k, width) and (N, k, width)."""
        both = torch.cat([self.view(view)[:, None], self.exemplar(torch.cat([exemplars, expression], 2))], 1)
        for layer in self.layers:
            both = both + layer(both)
        return both[:, 0], both[:, 1:], self.expression(expression)


class Bridge(nn.Module):
    """Exemplar-bridging block: exemplars update the global view, which gates the tokens."""

    def __init__(self, width: int, n_tokens: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.interact = nn.Sequential(nn.Linear(2 * width, 256), nn.SiLU(), nn.Linear(256, 2 * width))
        self.value = nn.Linear(width, width)
        self.norm_exemplar = nn.LayerNorm(width)
        self.gate = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, heads * n_tokens))
        self.token = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner))
        self.to_tokens = nn.Linear(inner, width, bias=False)
        self.to_view = nn.Linear(inner, width, bias=False)

    def forward(
        self, tokens: Tensor, view: Tensor, exemplars: Tensor, expression: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Update tokens (N, T, width), global view (N, width) and exemplars (N, k, width)."""
        n, t, _ = tokens.shape
        difference = view[:, None] - exemplars
        for_view, for_exemplar = self.interact(torch.cat([difference, exemplars], 2)).sigmoid().chunk(2, 2)
        value = self.value(expression)
        view = view + (for_view * value).mean(1)
        exemplars = self.norm_exemplar(exemplars + for_exemplar * value)

        gate = self.gate(view).sigmoid().view(n, self.heads, t).transpose(1, 2)
        gated = (self.token(tokens).view(n, t, self.heads, -1) * gate[..., None]).flatten(2)
        return tokens + self.to_tokens(gated), view + self.to_view(gated.mean(1)), exemplars


class ExemplarLayer(nn.Module):
    """Transformer layer with an exemplar-bridging block between its attention and its feed-forward layer.

    Without a ``bridge`` it is a plain layer.
    """

    def __init__(self, width: int, heads: int, mlp: int, dropout: float, bridge: Bridge | None) -> None:
        super().__init__()
        self.block = Block(width, heads, mlp, dropout)
        self.bridge = bridge

    def forward(
        self, tokens: Tensor, position: Tensor, view: Tensor, exemplars: Tensor, expression: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :class:`Bridge`; ``position`` (T, width) is added to the tokens before the attention of each layer."""
        block = self.block
        tokens = tokens + block.attention(block.norm1(tokens + position))
        if self.bridge is not None:
            tokens, view, exemplars = self.bridge(tokens, view, exemplars, expression)
        return tokens + block.mlp(block.norm2(tokens)), view, exemplars


class ResidualPooling(nn.Module):
    """Mean over the tokens plus an attention-weighted mean, channel by channel.

    Zhu, Wu (2021), Residual attention, ICCV.

    ``sharpness`` is the scale of the logits, ``weight`` that of the attended mean.
    """

    def __init__(self, width: int, sharpness: float, weight: float) -> None:
        super().__init__()
        self.score = nn.Linear(width, width)
        self.sharpness, self.weight = sharpness, weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T, width) to (N, width)."""
        score = self.score(tokens).float()
        attended = (score * (self.sharpness * score).softmax(1)).sum(1)
        return score.mean(1) + self.weight * attended


def mean_pcc(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation of the columns of (N, M) ``x`` and ``y``, averaged; 0 for columns that do not vary."""
    x, y = x - x.mean(0), y - y.mean(0)
    square = x.square().sum(0) * y.square().sum(0)
    varies = square > _SMALL
    return torch.where(varies, (x * y).sum(0) / torch.where(varies, square, 1.0).sqrt(), 0.0).mean()


class EGN(SpotModel):
    """EGN: Exemplar Guided Network.

    The tokens of a tile pass through a transformer. In every second layer the most similar training tiles, with their
    expression, update the global view of the tile (its pooled features), and the global view updates the tokens. The
    prediction is made from the global view and the pooled tokens.

    Raises
    ------
    ValueError
        If the features have one token only.
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
        shape.require("EGN", n_tokens=2)
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
        last = nn.Linear(2 * c.width, shape.n_genes)
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.LayerNorm(2 * c.width), last)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Keep features and expression of the training spots and compute the scales."""
        super().prepare(self.bank.fill(batches))
        n, k = len(self.bank), self.config.n_exemplars
        if n - 1 < k:
            raise ValueError(
                f"`n_exemplars` is {k}, but a training spot has {n - 1} others: pass "
                f"config={{'n_exemplars': {max(1, n // 4)}}}, or more spots."
            )
        self.bank.features = self.scalers.pooled(self.bank.features)
        self.by_slide = self.config.exclude == "slide" and n - self.bank.largest_slide() >= k
        self.shape = replace(self.shape, n_bank=n)

    def forward(self, batch: Batch) -> Output:
        """Predict (N, M) from the tokens and the exemplars of each spot."""
        local, features, expression = self._exemplars(batch)
        view, exemplars, expression = self.projector(local, features, expression)
        tokens = self.embed(self.scalers.tokens(batch.tokens[:, 1:])) + self.position
        for layer in self.layers:
            tokens, view, exemplars = layer(tokens, self.position, view, exemplars, expression)
        return self.predicted(self.head(torch.cat([self.pool(tokens), view.float()], 1)).float())

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Squared error, and 1 - PCC of each gene over the batch."""
        error, target = super().loss(batch, output, generator)["loss"], self.scalers.target(batch.measured)
        with torch.autocast(target.device.type, enabled=False):
            pcc = 1 - mean_pcc(output.parts["prediction"].float(), target)
        return {"loss": error + self.config.pcc_weight * pcc, "loss_pred": error, "loss_pcc": pcc}

    def _exemplars(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled pooled features of the spots (N, D), those of their exemplars (N, k, D), and their expression."""
        local, bank = self.scalers.pooled(batch.pooled), self.bank
        exclude = None
        if self.training:  # at prediction the numbers are those of other spots
            exclude = bank.own_rows(batch, "slide" if self.by_slide else "spot")
        _, rows = nearest_rows(local, bank.features, self.config.n_exemplars, exclude)
        return local, bank.features[rows], self.scalers.target(bank.expression[rows])


MODELS = {"egn": EGN}
