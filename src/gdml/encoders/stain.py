"""The embedded default encoder: stain and texture statistics of a tile and of its 7 x 7 cells."""

from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from . import _stain_kernel as kernel

_TILE_PX = kernel.GRID * kernel.CELL


def _log(x: NDArray, floor: float) -> NDArray:
    return np.log(np.maximum(x, 0) + floor)


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


def _statistics(sums: NDArray[np.float32], n_px: int) -> NDArray[np.float32]:
    """Statistics (..., D) from the sums (..., N_SUMS) over ``n_px`` pixels.

    Stains differ in strength between slides, so most statistics are ratios, correlations, or logarithms
    (which turn a factor into an offset), and each is centred and scaled by a fixed number.
    """
    s = sums.astype(np.float64) / n_px

    def part(first: int, n: int = 1) -> NDArray:
        return s[..., first : first + n]

    n = kernel.LEVELS
    squares_h, squares_e, cross = part(kernel.SQ_H, n), part(kernel.SQ_E, n), part(kernel.CROSS, n)
    mean_h, mean_e = part(kernel.HER), part(kernel.HER + 1)
    # variance between px of level l within px of level l + 1: an orthogonal (Haar) split of the variance
    band_h = np.maximum(squares_h[..., :-1] - squares_h[..., 1:], 0)
    band_e = np.maximum(squares_e[..., :-1] - squares_e[..., 1:], 0)
    band_he = cross[..., :-1] - cross[..., 1:]
    spread = np.concatenate([squares_h[..., :1] - mean_h**2, squares_e[..., :1] - mean_e**2], -1)

    tissue, nuclei = part(kernel.TISSUE), part(kernel.NUCLEI)
    tissue_h = (part(kernel.TISSUE + 1) + 0.0125) / (tissue + 0.05)
    tissue_e = (part(kernel.TISSUE + 2) + 0.0100) / (tissue + 0.05)
    nuclear_h = (part(kernel.NUCLEI + 1) + 0.005) / (nuclei + 0.01)
    nuclear_e = (part(kernel.NUCLEI + 2) + 0.002) / (nuclei + 0.01)
    blobs = part(kernel.BLOBS, 3) * kernel.CELL**2
    blob_rise, blob_top = (
        (blobs[..., 1:2] + 0.005) / (blobs[..., :1] + 0.1),
        (blobs[..., 2:] + 0.03) / (blobs[..., :1] + 0.1),
    )

    bins = kernel.BINS
    q_h = _quantiles(part(kernel.HIST_H, bins), 0.1, 0.5, 0.75, 0.9, 0.98) * kernel.MAX_OD
    q_e = _quantiles(part(kernel.HIST_E, bins), 0.1, 0.5, 0.75, 0.9, 0.98) * kernel.MAX_OD
    q_angle = _quantiles(part(kernel.HIST_ANGLE, bins), 0.25, 0.5, 0.75)
    gradients = np.concatenate([part(kernel.TENSOR + 3 * k) + part(kernel.TENSOR + 3 * k + 1) for k in range(3)], -1)
    xx, yy, xy = (part(kernel.TENSOR + 3 + k) for k in range(3))
    coherence = np.sqrt((xx - yy) ** 2 + 4 * xy**2) / (xx + yy + 1e-4)

    columns = [  # statistic, centre, scale
        (_log(tissue_h, 0.01) - _log(tissue_e, 0.01), 0, 1),
        (_log(np.concatenate([tissue_h, tissue_e], -1), 0.01), -1.5, 0.5),
        (_log(band_h, 3e-5), -7, 1.5),
        (_log(band_e, 3e-5), -7, 1.5),
        (band_he / (np.sqrt(band_h * band_e) + 3e-4), 0, 0.5),
        (q_h[..., 2:] / (q_h[..., 1:2] + 0.05), 1.5, 0.5),
        (q_e[..., 2:] / (q_e[..., 1:2] + 0.05), 1.5, 0.5),
        (q_angle, 0.5, 0.25),
        (np.sqrt(blobs[..., :1]), 1.5, 0.5),
        (blob_rise, 0.1, 0.05),
        (blob_top, 0.4, 0.15),
        (part(kernel.WHITE, 3), 0.25, 0.25),
        (_log(spread, 1e-4), -5, 1),
        (np.sqrt(nuclei), 0.3, 0.25),
        (nuclear_h, 0.5, 0.1),
        (nuclear_e, 0.2, 0.1),
        (q_h[..., [0, 1, 3]], 0.25, 0.2),
        (q_e[..., [0, 1, 3]], 0.25, 0.2),
        (_log(gradients, 1e-4), -5, 1.5),
        (coherence, 0.2, 0.2),
    ]
    return np.concatenate([(x - centre) / scale for x, centre, scale in columns], -1).astype(np.float32)


class StainEncoder:
    """Stain and texture statistics, without weights.

    The tile is unmixed into haematoxylin and eosin (Ruifrok and Johnston 2001). The first of the 50 tokens
    describes the whole tile, the others its 7 x 7 cells, row-major, each by the same statistics: stain
    ratio, spread of both stains at five scales and their correlation there, quantiles, nuclei, lumen, gradients.
    The pooled embedding is the first token. Runs on the CPU, on as many threads as torch is given; the numbers
    do not depend on the number of threads.
    """

    name = "stain"
    identity = "stain-1"
    dim = 48
    tile_px = _TILE_PX

    def encode(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, 50, 48) and pooled (B, 48), float32, of tiles (B, 224, 224, 3) uint8."""
        if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[1:] != (_TILE_PX, _TILE_PX, 3):
            raise ValueError(
                f"`tiles` must be uint8 of shape (B, {_TILE_PX}, {_TILE_PX}, 3), found {tiles.dtype} {tuple(tiles.shape)}."
            )
        images = tiles.cpu().contiguous().numpy()
        sums = np.zeros((len(images), kernel.GRID**2, kernel.N_SUMS), np.float32)
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(
                pool.map(
                    lambda k: kernel.tile_sums(images[k], kernel.DENSITY, kernel.UNMIX, sums[k]), range(len(images))
                )
            )
        whole = _statistics(sums.sum(1, keepdims=True), _TILE_PX**2)
        cells = _statistics(sums, kernel.CELL**2)
        tokens = torch.from_numpy(np.concatenate([whole, cells], 1)).to(tiles.device)
        return tokens, tokens[:, 0]

    def to(self, device: torch.device | str) -> Self:
        """Return the encoder itself: it has no weights to move."""
        return self


ENCODERS = {"stain": StainEncoder}
