"""The image branch of Gene-DML by scale: neighbour transformer, slide transformer, fusion.

Song et al., WACV 2026, section 3.1; the neighbour and slide transformers follow TRIPLEX
(Chung et al., CVPR 2024), on which the paper builds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .batch import Slides
from .layers import Block, FeedForward


class NeighborTransformer(nn.Module):
    """Self-attention among the neighbour tiles of a spot: (N, K, D) -> (N, K, D).

    A learnt bias per head for each absolute row and column offset between two tiles is added to the
    attention (LeViT, Graham et al. 2021). Tiles outside the image are never attended to.

    Parameters
    ----------
    width
        D.
    side
        Tiles along one edge of the region; K = side x side.
    depth, heads, mlp, dropout, **options
        Of the transformer layers.
    """

    offsets: Tensor

    def __init__(
        self, width: int, side: int, depth: int, heads: int, mlp: int, dropout: float, **options: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp, dropout, **options) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        row, col = torch.arange(side**2) // side, torch.arange(side**2) % side
        offsets = (row[:, None] - row).abs() * side + (col[:, None] - col).abs()
        self.register_buffer("offsets", offsets, persistent=False)
        self.bias = nn.Parameter(torch.zeros(depth, heads, side**2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend within each region; ``mask`` (N, K) is True for tiles inside the image."""
        outside = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~mask, float("-inf"))
        for block, bias in zip(self.blocks, self.bias, strict=True):
            x = block(x, bias[:, self.offsets] + outside[:, None, None, :])
        return self.norm(x)


class GridPosition(nn.Module):
    """Positional encoding of spots by a depthwise 3x3 convolution on their grid, with a residual.

    Empty grid cells count as zeros and stay empty. (Chu et al. 2021, conditional positional encoding.)

    Parameters
    ----------
    width
        Feature width D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, slide: Tensor, grid: Tensor) -> Tensor:
        """(S, D) features with their slide number (S,) and grid cell (S, 2) -> (S, D)."""
        rows, cols = (grid.amax(0) + 1).tolist()
        dense = x.new_zeros(int(slide.amax()) + 1, rows, cols, x.shape[1])
        where = (slide, grid[:, 0], grid[:, 1])
        dense = dense.index_put(where, x).permute(0, 3, 1, 2)
        return x + self.conv(dense).permute(0, 2, 3, 1)[where].to(x.dtype)


class Packing:
    """Slides side by side, padded to the longest: (S, D) rows, one slide after the other, to (B, L, D) and back.

    ``bias`` keeps attention off the padding, (B, 1, 1, L); None where all slides are of one length.

    Parameters
    ----------
    lengths
        Rows of each of the B slides.
    device
        Device of the rows.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.inside: Tensor | None = None
        self.bias: Tensor | None = None
        if len(set(lengths)) > 1:
            steps = torch.arange(max(lengths), device=device)
            self.inside = steps < torch.tensor(self.lengths, device=device)[:, None]
            outside = torch.zeros(self.inside.shape, device=device).masked_fill_(~self.inside, float("-inf"))
            self.bias = outside[:, None, None, :]

    def pack(self, rows: Tensor) -> Tensor:
        """(S, D) -> (B, L, D)."""
        if self.inside is None:
            return rows.view(len(self.lengths), self.lengths[0], -1)
        return pad_sequence(list(rows.split(self.lengths)), batch_first=True)

    def unpack(self, packed: Tensor) -> Tensor:
        """(B, L, D) -> (S, D)."""
        return packed.flatten(0, 1) if self.inside is None else packed[self.inside]


class SlideTransformer(nn.Module):
    """Self-attention among all spots of a slide; several slides go through in one call.

    One layer, then the grid's positional encoding, then the other layers.

    Parameters
    ----------
    width
        Feature width D.
    depth, heads, mlp, dropout, **options
        Of the transformer layers.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp: int, dropout: float, **options: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp, dropout, **options) for _ in range(depth))
        self.position = GridPosition(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, slides: Slides, x: Tensor) -> Tensor:
        """(S, D) features of all spots of ``slides`` -> (S, D)."""
        lengths = slides.lengths
        slide = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(x.device)
        packing = Packing(lengths, x.device)
        first, *others = self.blocks
        x = packing.unpack(first(packing.pack(x), packing.bias))
        x = packing.pack(self.position(x, slide, slides.grid))
        for block in others:
            x = block(x, packing.bias)
        return self.norm(packing.unpack(x))


class ScaleFusion(nn.Module):
    """Self-attention over the tokens of all scales, then a feed-forward layer: (N, T, d) -> (N, T, d).

    Parameters
    ----------
    width
        d.
    heads, mlp, dropout, **options
        Of the transformer layer.
    residual
        Add the input of the last feed-forward layer to its output (the authors' code does not).
    """

    def __init__(self, width: int, heads: int, mlp: int, dropout: float, *, residual: bool, **options: bool) -> None:
        super().__init__()
        self.block = Block(width, heads, mlp, dropout, **options)
        self.feed_forward = FeedForward(width, 2 * width, dropout)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Fuse the tokens of each spot."""
        x = self.block(x)
        y = self.feed_forward(x)
        return x + y if self.residual else y
