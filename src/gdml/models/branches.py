"""Branches that several models share: transformers over neighbour tiles and over the spots of a slide.

Song et al., WACV 2026, section 3.1, after TRIPLEX (Chung et al., CVPR 2024).
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from .batch import Slides, Visitors
from .layers import Block

# the convolution runs on the dense grid where it has at most this many cells per spot
_DENSE = 16


class NeighborTransformer(nn.Module):
    """Self-attention among the neighbour tiles of a spot: (N, K, D) -> (N, K, D).

    A learnt bias per head for each absolute row and column offset between two tiles is added to the
    attention (LeViT, Graham et al. 2021). Tiles outside the image are never attended to.
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
        """Features ``x`` (N, K, D) to (N, K, D); ``mask`` (N, K) is True for tiles inside the image.

        The rows of tiles outside the image are undefined.
        """
        outside = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~mask, float("-inf"))
        for block, bias in zip(self.blocks, self.bias, strict=True):
            x = block(x, bias[None, :, self.offsets], outside[:, None, None, :])
        return self.norm(x)


class GridPosition(nn.Module):
    """Positional encoding of spots by a depthwise 3x3 convolution on their grid, with a residual.

    Empty grid cells count as zeros and stay empty (Chu et al. 2021, conditional positional encoding). On a sparse or
    irregular grid, of more than 16 cells per spot, the nine cells around each spot are gathered, so that memory does
    not grow with the grid; the numbers are those of the convolution up to rounding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor, slide: Tensor, grid: Tensor) -> Tensor:
        """Features (S, D) with their slide number (S,) and grid cell (S, 2) to (S, D)."""
        rows, cols = (grid.amax(0) + 1).tolist()
        n_slides = int(slide.amax()) + 1
        if n_slides * rows * cols > _DENSE * len(x):
            return x + self._gather(x, slide, grid, slide, grid)
        dense = x.new_zeros(n_slides, rows, cols, x.shape[1])
        where = (slide * rows + grid[:, 0]) * cols + grid[:, 1]
        dense = dense.view(-1, x.shape[1]).index_copy(0, where, x).view_as(dense).permute(0, 3, 1, 2)
        # of equal numbers of one column: the gradient of a selection is much faster than that of x[where]
        return x + self.conv(dense).permute(0, 2, 3, 1).flatten(0, 2).index_select(0, where).to(x.dtype)

    def visit(self, y: Tensor, visitors: Visitors, x: Tensor, slides: Slides) -> Tensor:
        """Features ``y`` (V, D) of visitors among those of the context, ``x`` (S, D), to (V, D)."""
        return y + self._gather(x, slides.slide, slides.grid, visitors.slide, visitors.grid, y)

    def _gather(
        self, x: Tensor, slide: Tensor, grid: Tensor, of: Tensor, at: Tensor, center: Tensor | None = None
    ) -> Tensor:
        """Convolve ``x`` at the cells ``at`` of slides ``of``; ``center`` takes the place of the middle cell."""
        # one number per cell, with a margin that separates rows and slides
        rows, cols = (torch.maximum(grid.amax(0), at.amax(0)) + 3).tolist()
        number = lambda slide, cell: (slide * rows + cell[:, 0] + 1) * cols + cell[:, 1] + 1
        cells, order = number(slide, grid).sort(stable=True)
        middle = number(of, at)
        total = self.conv.get_parameter("bias").expand(len(at), -1)
        for row, col in product(range(3), range(3)):
            if center is not None and row == col == 1:
                part = center
            else:
                wanted = middle + (row - 1) * cols + col - 1
                place = (torch.searchsorted(cells, wanted, right=True) - 1).clamp(min=0)
                part = torch.where((cells[place] == wanted)[:, None], x[order[place]], 0.0)
            total = total + self.conv.weight[:, 0, row, col] * part
        return total.to(x.dtype)


class Packing:
    """Slides padded to the longest: (S, D) rows, one slide after the other, to (B, L, D) and back.

    ``bias`` (B, 1, 1, L) masks the padding in attention; None where all slides have the same length.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.rows: Tensor | None = None
        self.bias: Tensor | None = None
        if len(set(lengths)) > 1:
            steps = torch.arange(max(lengths), device=device)
            inside = steps < torch.tensor(self.lengths, device=device)[:, None]
            self.rows = inside.flatten().nonzero()[:, 0]
            outside = torch.zeros(inside.shape, device=device).masked_fill_(~inside, float("-inf"))
            self.bias = outside[:, None, None, :]

    def pack(self, rows: Tensor) -> Tensor:
        """Pad the rows of each slide, (S, D) to (B, L, D)."""
        if self.rows is None:
            return rows.view(len(self.lengths), self.lengths[0], -1)
        return pad_sequence(list(rows.split(self.lengths)), batch_first=True)

    def unpack(self, packed: Tensor) -> Tensor:
        """Undo :meth:`pack`, (B, L, D) to (S, D)."""
        packed = packed.flatten(0, 1)
        return packed if self.rows is None else packed.index_select(0, self.rows)


def attend(blocks: Iterable[Any], packing: Packing, x: Tensor, inputs: list[Tensor] | None = None) -> Tensor:
    """Pass packed context (B, L, D) through transformer layers; the input of each is appended to ``inputs``."""
    for block in blocks:
        if inputs is not None:
            inputs.append(x)
        x = block(x, packing.bias)
    return x


def visit(blocks: Iterable[Any], slides: Slides, inputs: Iterable[Tensor], y: Tensor, visitors: Visitors) -> Tensor:
    """Pass visitors (V, D) through the layers whose inputs :func:`attend` kept: (V, D)."""

    def context(block: Block, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        parts = zip(*block.keys_values(x), slides.lengths, strict=True)
        return [(keys[:, :n], values[:, :n]) for keys, values, n in parts]

    for block, x in zip(blocks, inputs, strict=True):
        y = block.visit(y, visitors.slide, slides.once(block, partial(context, block, x)))
    return y


class SlideTransformer(nn.Module):
    """Self-attention among the spots of a slide; several slides pass in one call.

    One layer, then the positional encoding by the grid, then the other layers.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp: int, dropout: float, **options: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, mlp, dropout, **options) for _ in range(depth))
        self.position = GridPosition(width)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, slides: Slides, x: Tensor, visitors: Visitors | None = None, index: Tensor | None = None
    ) -> Tensor:
        """Features ``x`` (S + V, D) of the context, then of the visitors, to (S + V, D), or to its rows ``index``."""
        n = len(slides.grid)
        # on a GPU the whole last layer is cheaper than finding out how many rows each slide has
        if index is not None and index.device.type == "cpu" and self.training and len(self.blocks) > 1 and not visitors:
            return self._rows(slides, x, index)
        inputs, first, found = slides.once(self, lambda: self._context(slides, x[:n]))
        if visitors is not None:
            y = visit(self.blocks[:1], slides, inputs[:1], x[n:], visitors)
            y = self.position.visit(y, visitors, first, slides)
            y = visit(self.blocks[1:], slides, inputs[1:], y, visitors)
            found = torch.cat([found, self.norm(y)])
        return found if index is None else found.index_select(0, index)

    def _context(self, slides: Slides, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Give the inputs of each layer (B, L, D), the context after the first layer and after all layers, (S, D)."""
        packing, inputs = Packing(slides.lengths, x.device), list[Tensor]()
        first = packing.unpack(attend(self.blocks[:1], packing, packing.pack(x), inputs))
        x = self.position(first, slides.slide, slides.grid)
        x = attend(self.blocks[1:], packing, packing.pack(x), inputs)
        return inputs, first, self.norm(packing.unpack(x))

    def _rows(self, slides: Slides, x: Tensor, index: Tensor) -> Tensor:
        """Pass the context through all layers but the last one, and ``index`` (N,) alone through that: (N, D)."""
        packing = Packing(slides.lengths, x.device)
        x = packing.unpack(attend(self.blocks[:1], packing, packing.pack(x)))
        x = self.position(x, slides.slide, slides.grid)
        context = attend(self.blocks[1:-1], packing, packing.pack(x))
        # the spots of a slide stand together in the context, so order by row is order by slide
        ordered, order = index.sort()
        ends = torch.tensor(slides.lengths).cumsum(0)
        counts = torch.searchsorted(ordered, ends).diff(prepend=ends.new_zeros(1))
        wanted, last = Packing(counts.tolist(), x.device), cast("Block", self.blocks[-1])
        x = packing.unpack(context).index_select(0, ordered)
        found = wanted.unpack(last.read(wanted.pack(x), context, packing.bias))
        return self.norm(found).index_select(0, order.argsort())
