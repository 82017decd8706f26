"""M2OST: three levels of magnification regressed on one spot (Wang et al., AAAI 2025; arXiv 2401.10608, 2409.15092)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from gdml._errors import did_you_mean

from .base import Shape, SpotModel
from .batch import Batch, Output
from .cross_attention import masked_mean
from .layers import Attention, Dropout, FeedForward
from .scales import FEATURES, TARGETS, Scalers

#: Tiles along one edge of the second and the third level.
LEVEL_SIDES = (3, 5)
N_LEVELS = 1 + len(LEVEL_SIDES)


@dataclass(frozen=True)
class M2OSTConfig:
    """Settings of M2OST; the defaults are the small model of the authors' training script.

    Parameters
    ----------
    width
        Token width of each level.
    depth
        Layers.
    heads
        Heads of the attention within a level and of that between levels.
    hidden
        Width of the hidden layer that weighs the channels of all levels; the feed-forward layer of one level
        has a third of it.
    dropout
        Of all layers.
    cross_residual
        Keep a level's tokens beside what they read from the other levels; the authors' code passes on
        what they read alone.
    features
        Scale of the features: ``"standardize"`` each column on the training spots, or ``"raw"``.
    targets
        Scale on which expression is learnt: ``"center"``, less each gene's training mean, ``"standardize"``,
        divided by its standard deviation too, or ``"raw"`` (paper).
    """

    width: int = 192
    depth: int = 4
    heads: int = 3
    hidden: int = 384
    dropout: float = 0.0
    cross_residual: bool = True
    features: Literal["standardize", "raw"] = "standardize"
    targets: Literal["center", "standardize", "raw"] = "center"

    def __post_init__(self) -> None:
        for name, choices in {"features": FEATURES, "targets": TARGETS}.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"`{name}` is {value!r}. {did_you_mean(str(value), choices)}")
        if self.depth < 1:
            raise ValueError(f"`depth` must be 1 or more, found {self.depth}.")
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"`heads` must divide `width`: found {self.heads} heads for width {self.width}.")
        if self.hidden < N_LEVELS:
            raise ValueError(f"`hidden` must be {N_LEVELS} or more, found {self.hidden}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must lie in [0, 1), found {self.dropout}.")


class CrossLevel(nn.Module):
    """Tokens of each level attend to those of each other level, level by level (cross-level token mixing).

    Parameters
    ----------
    width, heads, dropout
        Of the attention.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(N_LEVELS))
        self.out = nn.ModuleList(nn.Linear((N_LEVELS - 1) * width, width) for _ in range(N_LEVELS))
        self.drop = Dropout(dropout)

    def forward(self, levels: Sequence[Tensor], outside: Sequence[Tensor]) -> list[Tensor]:
        """(N, T_i, width) of each level, with 0 or -inf for its tokens, (N, T_i): the same shapes, no residual."""
        n, _, width = levels[0].shape
        split = lambda x: x.view(n, -1, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = zip(*(split(layer(self.norm(x))) for layer, x in zip(self.qkv, levels, strict=True)), strict=True)
        answers = []
        for i, out in enumerate(self.out):
            read = []
            for j in range(N_LEVELS):
                if j != i:
                    logits = (q[i] * q[i].shape[-1] ** -0.5) @ k[j].transpose(-1, -2)
                    weights = (logits + outside[j][:, None, None]).softmax(-1).to(v[j].dtype)
                    read.append((weights @ v[j]).transpose(1, 2).flatten(2))
            answers.append(self.drop(out(torch.cat(read, -1))))
        return answers


class M2OSTLayer(nn.Module):
    """Attention within each level, between levels, and weights for the channels of all levels.

    Parameters
    ----------
    config
        Sizes.
    """

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
        """(N, T_i, width) of each level -> the same; ``inside`` and ``outside`` (N, T_i) mask alike."""
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

    The paper reads three images of the same size in pixels at three magnifications; here the second and the
    third level are the stored features of the tiles that those images cover.

    Parameters
    ----------
    config
        Sizes and switches.
    shape
        Sizes of the data.
    """

    config_class = M2OSTConfig
    citation: ClassVar[str] = "Wang et al. (2025), M2OST, AAAI; arXiv 2401.10608"
    recipe = {
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "batch_size": 48,
        "max_epochs": 200,
        "patience": 20,
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "clip": 0.0,
        "average": 0.0,
    }
    config: M2OSTConfig

    def __init__(self, config: M2OSTConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        if shape.n_tokens < 2:
            raise ValueError(
                "M2OST attends to the local tokens of a tile, and there is one: call gdml.pp.embed(adata, "
                'tokens="grid7").'
            )
        side = max(LEVEL_SIDES)
        if shape.n_side < side:
            raise ValueError(
                f"M2OST reads {side} x {side} neighbour tiles, and there are {shape.n_side} x {shape.n_side}: call "
                f"gdml.pp.tile(adata, n_side={side}) and embed again."
            )
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

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Take the scales of features and expression from the training spots."""
        self.scalers.prepare(batches)

    def forward(self, batch: Batch) -> Output:
        """Predict, (N, M)."""
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
        prediction = self.head(torch.cat([self.norm(x[:, 0]) for x in levels], 1))
        return Output(self.scalers.target.inverse(prediction.float()), None, {"prediction": prediction})

    def loss(self, batch: Batch, output: Output, generator: Generator) -> dict[str, Tensor]:
        """Mean squared error."""
        if batch.expression is None:
            raise ValueError("The batch has no expression to learn from.")
        with torch.autocast(batch.expression.device.type, enabled=False):
            target = self.scalers.target(batch.expression)
            return {"loss": F.mse_loss(output.parts["prediction"].float(), target)}


def around_center(n_side: int, side: int) -> list[int]:
    """Places, in an ``n_side`` x ``n_side`` region, of the ``side`` x ``side`` tiles in its middle, row-major."""
    start = (n_side - side) // 2
    across = range(start, start + side)
    return [row * n_side + col for row in across for col in across]


MODELS = {"m2ost": M2OST}
