"""M2OST: three levels of magnification regressed on one spot (Wang et al., AAAI 2025; arXiv 2401.10608, 2409.15092)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import PLAIN_RECIPE, Shape, SpotModel
from .batch import Batch, Output
from .config import ScaledConfig
from .dropout import Dropout
from .layers import Attention, FeedForward, masked_mean
from .scaling import Scalers

#: Tiles along one edge of the second and the third level.
LEVEL_SIDES = (3, 5)
N_LEVELS = 1 + len(LEVEL_SIDES)


@dataclass(frozen=True)
class M2OSTConfig(ScaledConfig):
    """Settings of M2OST; the defaults are the small model of the authors' training script.

    Parameters
    ----------
    width
        Token width of each level.
    depth
        Layers.
    heads
        Heads of the attention within a level and between levels.
    hidden
        Width of the hidden layer that weighs the channels of all levels, three times that of the feed-forward layer
        of one level.
    dropout
        Of all layers.
    cross_residual
        Add the tokens of a level to the output of its attention to the other levels; the authors' code has no such
        residual.
    features, targets
        Scales by the training spots: features ``"standardize"`` or ``"raw"``; expression ``"center"`` (on the mean of
        each gene), ``"standardize"`` or ``"raw"`` (``"raw"`` targets in the paper).
    """

    width: int = 192
    depth: int = 4
    heads: int = 3
    hidden: int = 384
    dropout: float = 0.0
    cross_residual: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "depth")
        self.check_heads("heads")
        self.check_at_least(N_LEVELS, "hidden")
        self.check_share("dropout", closed=False)


class CrossLevel(nn.Module):
    """Tokens of each level attend to those of each other level, level by level (cross-level token mixing)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(N_LEVELS))
        self.out = nn.ModuleList(nn.Linear((N_LEVELS - 1) * width, width) for _ in range(N_LEVELS))
        self.drop = Dropout(dropout)

    def forward(self, levels: Sequence[Tensor], outside: Sequence[Tensor]) -> list[Tensor]:
        """Tokens (N, T_i, width) of each level, with 0 or -inf for each token (N, T_i), to the same shapes."""
        n, _, width = levels[0].shape
        split = lambda x: x.view(n, -1, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = zip(*(split(layer(self.norm(x))) for layer, x in zip(self.qkv, levels, strict=True)), strict=True)
        mixed = []
        for i, out in enumerate(self.out):
            read = []
            for j in range(N_LEVELS):
                if j != i:
                    logits = (q[i] * q[i].shape[-1] ** -0.5) @ k[j].transpose(-1, -2)
                    weights = (logits + outside[j][:, None, None]).softmax(-1).to(v[j].dtype)
                    read.append((weights @ v[j]).transpose(1, 2).flatten(2))
            mixed.append(self.drop(out(torch.cat(read, -1))))
        return mixed


class M2OSTLayer(nn.Module):
    """Attention within each level, between levels, and weights for the channels of all levels."""

    def __init__(self, config: M2OSTConfig) -> None:
        super().__init__()
        c, d = config, config.width
        self.residual = c.cross_residual
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(N_LEVELS))
        self.within = nn.ModuleList(Attention(d, c.heads, c.dropout) for _ in range(N_LEVELS))
        # one feed-forward layer for all levels
        self.mlp = nn.Sequential(nn.LayerNorm(d), FeedForward(d, c.hidden // N_LEVELS, c.dropout))
        self.across = CrossLevel(d, c.heads, c.dropout)
        self.weigh = nn.Sequential(
            nn.LayerNorm(N_LEVELS * d), FeedForward(N_LEVELS * d, c.hidden, c.dropout), nn.Sigmoid()
        )

    def forward(self, levels: list[Tensor], inside: list[Tensor], outside: list[Tensor]) -> list[Tensor]:
        """Tokens (N, T_i, width) of each level to the same shapes.

        ``inside`` (N, T_i) is True for tokens inside the image; ``outside`` is 0 for these and else -inf.
        """
        parts = zip(self.norms, self.within, levels, outside, strict=True)
        levels = [x + attend(norm(x), out[:, None, None]) for norm, attend, x, out in parts]
        levels = [x + self.mlp(x) for x in levels]
        read = self.across(levels, outside)
        levels = [x + y for x, y in zip(levels, read, strict=True)] if self.residual else read
        means = torch.cat([masked_mean(x, keep) for x, keep in zip(levels, inside, strict=True)], 1)
        weights = self.weigh(means)[:, None].chunk(N_LEVELS, -1)
        return [x + x * w for x, w in zip(levels, weights, strict=True)]


class M2OST(SpotModel):
    """M2OST: the tile, the 3 x 3 tiles and the 5 x 5 tiles around a spot, mixed by attention and by channels.

    The paper reads three images of the same size in pixels at three magnifications; here the second and third level
    are the features of the tiles that these images cover.
    """

    config_class = M2OSTConfig
    citation: ClassVar[str] = "Wang et al. (2025), M2OST, AAAI; arXiv 2401.10608"
    recipe = {**PLAIN_RECIPE, "batch_size": 48}
    config: M2OSTConfig

    def __init__(self, config: M2OSTConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        shape.require("M2OST", n_tokens=2, n_side=max(LEVEL_SIDES))
        c, d = config, config.width
        self.scalers = Scalers(shape.dim, shape.n_genes, c.features, c.targets)
        self.around = [around_center(shape.n_side, side) for side in LEVEL_SIDES]
        counts = [shape.n_tokens, *(len(rows) for rows in self.around)]
        self.embed = nn.ModuleList(nn.Sequential(nn.Linear(shape.dim, d), nn.LayerNorm(d)) for _ in counts)
        self.class_tokens = nn.Parameter(0.02 * torch.randn(N_LEVELS, d))
        self.positions = nn.ParameterList(nn.Parameter(0.02 * torch.randn(n + 1, d)) for n in counts)
        self.layers = nn.ModuleList(M2OSTLayer(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(N_LEVELS * d, shape.n_genes)

    def forward(self, batch: Batch) -> Output:
        """Predict (N, M) from the tile and its neighbours inside the image."""
        local, neighbors = self.scalers.local_and_neighbors(batch)
        tokens = [local, *(neighbors[:, rows] for rows in self.around)]
        mask = batch.neighbor_mask
        all_of = torch.ones(local.shape[:2], dtype=torch.bool, device=local.device)
        # the class token is always inside
        inside = [F.pad(part, (1, 0), value=True) for part in (all_of, *(mask[:, rows] for rows in self.around))]
        outside = [torch.zeros(part.shape, device=part.device).masked_fill_(~part, float("-inf")) for part in inside]

        levels = []
        for x, embed, first, position in zip(tokens, self.embed, self.class_tokens, self.positions, strict=True):
            x = embed(x)
            levels.append(torch.cat([first.to(x.dtype).expand(len(x), 1, -1), x], 1) + position)
        for layer in self.layers:
            levels = layer(levels, inside, outside)
        return self.predicted(self.head(torch.cat([self.norm(x[:, 0]) for x in levels], 1)))


def around_center(n_side: int, side: int) -> list[int]:
    """Places, in an ``n_side`` x ``n_side`` region, of the ``side`` x ``side`` tiles in its middle, row-major."""
    start = (n_side - side) // 2
    across = range(start, start + side)
    return [row * n_side + col for row in across for col in across]


MODELS = {"m2ost": M2OST}
