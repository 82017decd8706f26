"""Statistics of stain, texture and nuclei of a tile and of its 7 x 7 cells."""

from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from . import _stain_kernel as kernel
from ._nuclei_kernel import nuclei_counts
from ._pattern_kernel import pattern_counts
from ._stain_names import NAMES

_TILE_PX = kernel.GRID * kernel.CELL


def _quantiles(histogram: NDArray, *at: float) -> NDArray:
    """Quantiles of the histograms (..., BINS), in units of the histogram's range."""
    counts = histogram.astype(np.float64) + 1e-6
    share = counts / counts.sum(-1, keepdims=True)
    upto = np.cumsum(share, -1)
    out = []
    for q in at:
        bin_ = np.minimum((upto < q).sum(-1, keepdims=True), kernel.BINS - 1)
        inside = (q - np.take_along_axis(upto - share, bin_, -1)) / np.take_along_axis(share, bin_, -1)
        out.append((bin_ + inside) / kernel.BINS)
    return np.concatenate(out, -1)


def _statistics(
    sums: NDArray[np.float32], patterns: NDArray[np.int64], by_size: NDArray[np.float64], *, n_px: int
) -> NDArray[np.float32]:
    """Statistics (..., D) from the sums and counts of :func:`_count` over ``n_px`` pixels.

    Stains differ in strength and hue between slides, so ratios, correlations and relative quantiles, which vary less,
    are added to amplitudes. Orientation (coherence of gradients) is left out: on real sections it made a linear model
    transfer worse from patient to patient.
    """
    s = sums.astype(np.float64) / n_px

    def part(first: int, n: int = 1) -> NDArray[np.float64]:
        return s[..., first : first + n]

    n = kernel.LEVELS
    squares_h, squares_e = part(kernel.SQUARES_H, n), part(kernel.SQUARES_E, n)
    products, means = part(kernel.PRODUCTS, n), part(kernel.MEANS, 2)
    # Variance of the px of one level within a px of the next: an orthogonal (Haar) decomposition of the variance.
    band_h = np.maximum(squares_h[..., :-1] - squares_h[..., 1:], 0)
    band_e = np.maximum(squares_e[..., :-1] - squares_e[..., 1:], 0)
    together = (products[..., :-1] - products[..., 1:]) / (np.sqrt(band_h * band_e) + 3e-4)
    variance = np.concatenate([squares_h[..., :1], squares_e[..., :1]], -1) - means**2

    # Means over few px are shrunk towards a common value, so that empty cells are not extreme.
    tissue, nuclei, blobs = part(kernel.TISSUE), part(kernel.NUCLEI), part(kernel.BLOBS) * kernel.CELL**2
    tissue_stain = (part(kernel.TISSUE + 1, 2) + 0.05 * np.array([0.25, 0.2])) / (tissue + 0.05)
    nuclear_stain = (part(kernel.NUCLEI + 1, 2) + 0.01 * np.array([0.5, 0.2])) / (nuclei + 0.01)
    blob_shape = (part(kernel.BLOBS + 1, 2) * kernel.CELL**2 + 0.1 * np.array([0.05, 0.3])) / (blobs + 0.1)

    bins = kernel.BINS
    high_h = _quantiles(part(kernel.HIST_H, bins), 0.5, 0.75, 0.9, 0.98) * kernel.MAX_OD + 0.05
    high_e = _quantiles(part(kernel.HIST_E, bins), 0.5, 0.75, 0.9, 0.98) * kernel.MAX_OD + 0.05
    angle = _quantiles(part(kernel.HIST_ANGLE, bins), 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)

    # The square root evens out the noise of counts. The shares of the patterns of a scale sum to 1: the last is left out.
    shares = np.sqrt(patterns / patterns.sum(-1, keepdims=True))[..., :-1]
    per_cell = by_size * (kernel.CELL**2 / n_px)
    number = np.concatenate([per_cell.sum(-1, keepdims=True), per_cell], -1)

    # Statistic, and the centre and scale that standardise it on breast tissue.
    ratio = np.maximum(tissue_stain, 0.01)
    columns: list[tuple[NDArray, object, object]] = [
        (np.log(ratio[..., :1] / ratio[..., 1:]), 2.7, 1.5),
        (tissue_stain, (0.5, 0.03), (0.25, 0.08)),
        (np.sqrt(np.maximum(variance, 0)), (0.26, 0.06), (0.16, 0.04)),
        (np.sqrt(band_h), (0.05, 0.08, 0.12, 0.14, 0.13), (0.03, 0.05, 0.08, 0.1, 0.1)),
        (np.sqrt(band_e), (0.012, 0.02, 0.03, 0.035, 0.03), (0.01, 0.015, 0.02, 0.023, 0.023)),
        (together, -0.5, 0.35),
        (np.log(high_h[..., 1:] / high_h[..., :1]), (0.3, 0.6, 0.8), (0.25, 0.4, 0.5)),
        (np.log(high_e[..., 1:] / high_e[..., :1]), (0.15, 0.3, 0.4), (0.1, 0.16, 0.22)),
        (angle, (0.05, 0.07, 0.11, 0.16, 0.2, 0.26), (0.08, 0.1, 0.12, 0.15, 0.17, 0.17)),
        (part(kernel.WHITE, 3), 0.2, 0.3),
        (nuclei, 0.4, 0.3),
        (nuclear_stain, (0.7, 0.0), (0.2, 0.1)),
        (np.sqrt(blobs), 0.7, 0.6),
        (blob_shape, (0.26, 0.65), (0.24, 0.4)),
        (np.sqrt(part(kernel.CORES, 4)), (0.44, 0.24, 0.11, 0.05), (0.28, 0.25, 0.2, 0.15)),
        (np.sqrt(part(kernel.GRADIENT, 3)), (0.08, 0.14, 0.18), (0.05, 0.08, 0.11)),
        (part(kernel.RESIDUAL), 0.06, 0.03),
        (shares[..., 0, :], (0.3, 0.3, 0.3, 0.35, 0.4, 0.3, 0.2, 0.2, 0.15), (0.15, *[0.1] * 8)),
        (shares[..., 1, :], (0.25, 0.2, 0.2, 0.3, 0.35, 0.25, 0.2, 0.15, 0.1), 0.17),
        (np.sqrt(number), (0.65, 0.3, 0.25, 0.2, 0.2), (0.4, *[0.35] * 4)),
    ]
    scaled = [(x - np.asarray(centre)) / np.asarray(scale) for x, centre, scale in columns]
    return np.concatenate(scaled, -1).astype(np.float32)


def _count(tile: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]]:
    """Everything that is counted in the 49 cells of a tile."""
    return kernel.tile_sums(tile), pattern_counts(tile), nuclei_counts(tile)


class StainEncoder:
    """Statistics of stain, texture and nuclei, without weights.

    The tile is unmixed into haematoxylin and eosin (Ruifrok and Johnston 2001). The first of the 50 tokens describes
    the whole tile, the others its 7 x 7 cells, row-major, by the same statistics: stain ratio, spread and correlation of
    both stains at five scales, quantiles, lumen, nuclei and their sizes, gradients, local binary patterns at two scales.
    ``feature_names`` names them. The pooled embedding is the first token. Runs on the CPU with torch's number of
    threads, which does not change the numbers.
    """

    name = "stain"
    identity = "stain-2"
    dim = len(NAMES)
    tile_px = _TILE_PX
    n_prefix = 1
    full_precision = True
    feature_names = NAMES

    def encode(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, 50, 72) and pooled (B, 72), float32, of tiles (B, 224, 224, 3) uint8."""
        if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[1:] != (_TILE_PX, _TILE_PX, 3):
            raise ValueError(
                f"`tiles` must be uint8 of shape (B, {_TILE_PX}, {_TILE_PX}, 3), found {tiles.dtype} {tuple(tiles.shape)}."
            )
        images = tiles.cpu().contiguous().numpy()
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            sums, patterns, nuclei = (np.stack(part) for part in zip(*pool.map(_count, images), strict=True))
        whole = _statistics(*(part.sum(1, keepdims=True) for part in (sums, patterns, nuclei)), n_px=_TILE_PX**2)
        cells = _statistics(sums, patterns, nuclei, n_px=kernel.CELL**2)
        tokens = torch.from_numpy(np.concatenate([whole, cells], 1)).to(tiles.device)
        return tokens, tokens[:, 0]

    def to(self, device: torch.device | str) -> Self:
        """Return the encoder; it has no weights to move."""
        return self


ENCODERS = {"stain": StainEncoder}
