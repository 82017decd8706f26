"""From the pixels of a slide to features: reading ahead, encoding, and thinning the tokens."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from math import isqrt
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from gdml.features import FeatureStore
from gdml.slides import Slide

from ._read_ahead import read_ahead

if TYPE_CHECKING:
    import torch

    from gdml.encoders import Encoder

Tokens = Literal["grid7", "all", "pooled"]
_GRID = 7
_AHEAD = 2  # neighbour regions that wait for the encoder
_FLUSH = 64  # spots written at a time: a chunk of the store


@dataclass
class Extractor:
    """An encoder, and how its output is thinned.

    Parameters
    ----------
    encoder
        On ``device`` already.
    tokens
        Token budget.
    batch_size
        Tiles encoded at once; at least those of one spot are.
    device
        Where the encoder runs.
    bf16
        Compute in bfloat16 where torch's autocast does.
    """

    encoder: "Encoder"
    tokens: Tokens
    batch_size: int
    device: "torch.device"
    bf16: bool
    _room: NDArray[np.uint8] | None = field(default=None, init=False, repr=False)

    def n_tokens(self) -> int:
        """Tokens of a tile after thinning, found by encoding a white one."""
        side = self.encoder.tile_px
        white = np.full((side, side, 3), 255, np.uint8)
        tokens, _, _ = self._encode([white], np.ones((1, 1), bool))
        return tokens.shape[1]

    def run(
        self,
        slide: Slide,
        store: FeatureStore,
        xy: NDArray[np.float64],
        mask: NDArray[np.bool_],
        side_px: float,
        progress: Callable[[int], object],
    ) -> None:
        """Encode the spots ``xy`` (n, 2) in the order given and append them to ``store``.

        At any time a few neighbour regions are in memory, and the features of at most 64 spots.

        Parameters
        ----------
        slide, store
            Where the pixels come from and the features go.
        xy, mask
            Spot centres, full-resolution px; neighbours inside the image, (n, n_side**2).
        side_px
            Side of a tile, full-resolution px.
        progress
            Called with the number of spots done since the last call.
        """
        n_side = isqrt(mask.shape[1])
        extent, out = n_side * side_px, n_side * self.encoder.tile_px
        regions = (slide.read_region(x - extent / 2, y - extent / 2, extent, extent, (out, out)) for x, y in xy)
        per_batch = max(1, self.batch_size // n_side**2)
        waiting: list[tuple[NDArray, NDArray, NDArray]] = []
        start = written = 0
        with closing(read_ahead(regions, max(_AHEAD, per_batch))) as images:
            while batch := list(islice(images, min(per_batch, _FLUSH - (start - written)))):
                stop = start + len(batch)
                waiting.append(self._encode(batch, mask[start:stop]))
                progress(stop - start)
                start = stop
                if start - written == _FLUSH or start == len(xy):
                    store.append(xy[written:start], *(np.concatenate(part) for part in zip(*waiting, strict=True)))
                    waiting, written = [], start

    def _buffer(self, n: int) -> NDArray[np.uint8]:
        """Room for ``n`` tiles, the same from batch to batch: new ones would scatter over the heap."""
        if self._room is None or len(self._room) < n:
            side = self.encoder.tile_px
            self._room = np.empty((n, side, side, 3), np.uint8)
        return self._room[:n]

    def _encode(
        self, regions: list[NDArray[np.uint8]], mask: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Tokens (n, T, D), pooled (n, D) and neighbours (n, n_side**2, D) of n neighbour regions."""
        import torch

        (n, n_tiles), side = mask.shape, self.encoder.tile_px
        n_side = isqrt(n_tiles)
        inside = np.flatnonzero(mask)
        buffer = self._buffer(len(inside))
        for tile, at in zip(buffer, inside, strict=True):
            row, col = divmod(at % n_tiles, n_side)
            tile[:] = regions[at // n_tiles][row * side : (row + 1) * side, col * side : (col + 1) * side]
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            tokens, pooled = self.encoder.encode(torch.from_numpy(buffer).to(self.device))
        own = torch.from_numpy(np.searchsorted(inside, np.arange(n) * n_tiles + n_tiles // 2)).to(self.device)
        neighbors = pooled.new_zeros(n * n_tiles, pooled.shape[1])
        neighbors[torch.from_numpy(inside).to(self.device)] = pooled
        thin = thin_tokens(tokens[own], pooled[own], self.tokens, getattr(self.encoder, "n_prefix", None))
        return tuple(t.float().cpu().numpy() for t in (thin, pooled[own], neighbors.view(n, n_tiles, -1)))  # type: ignore[return-value]


def thin_tokens(
    tokens: "torch.Tensor", pooled: "torch.Tensor", budget: Tokens, n_prefix: int | None = None
) -> "torch.Tensor":
    """Reduce tokens to a budget.

    Parameters
    ----------
    tokens, pooled
        (B, T, D) and (B, D).
    budget
        ``"all"``; ``"pooled"``, the pooled embedding alone; ``"grid7"``, the class token and the grid of
        patches averaged to 7 x 7 where it is finer.
    n_prefix
        Tokens before the grid (class, registers); None where T or T - 1 is a square, which tells.

    Returns
    -------
    (B, T', D).

    Raises
    ------
    ValueError
        If the tokens hold no square grid.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    if budget == "all":
        return tokens
    if n_prefix is None:
        n_prefix = 0 if _side(tokens.shape[1]) else 1
    n_patches = tokens.shape[1] - n_prefix
    if budget == "pooled" or n_patches == 0:
        return pooled[:, None]
    side = _side(n_patches)
    if side is None:
        raise ValueError(
            f'`tokens`: "grid7" needs a square grid after the class token, found {tokens.shape[1]} tokens; give the '
            'encoder an attribute n_prefix (tokens before the grid), or pass tokens="all" or tokens="pooled".'
        )
    first = tokens[:, :1] if n_prefix else pooled[:, None]
    grid = tokens[:, n_prefix:]
    if side > _GRID:
        image = grid.unflatten(1, (side, side)).movedim(-1, 1).float()
        grid = adaptive_avg_pool2d(image, _GRID).flatten(2).transpose(1, 2)
    return torch.cat([first.float(), grid.float()], 1)


def _side(n: int) -> int | None:
    """Side of a square grid of more than one token."""
    side = round(n**0.5)
    return side if side > 1 and side**2 == n else None
