"""Pairs of views of the same position on a slide.

Views are cut from the slides in memory by one affine map each (position, scale in um per px, quarter turn,
mirroring) and then change their stains. Both views of a pair show the same place at nearly the same
scale: the size of nuclei is information that expression depends on, and an encoder taught to ignore it is worse.
"""

from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import conv2d, pad

#: Rows: haematoxylin, eosin, residual, in optical density of red, green and blue (Ruifrok and Johnston 2001).
STAINS = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]], np.float32)
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
MASK_PX = 12  # px of the slide along a side of a px of its tissue mask
TILE_UM = 112.0  # tissue is looked for around a place as far as a tile of gdml reaches
MEAN, STD = 0.5, 0.25  # of pixels in [0, 1], for all channels: stains differ, so none is centred on its own


@dataclass
class Augmentation:
    """Ranges of the random transformations of views.

    Parameters
    ----------
    um_per_px
        Smallest and largest micrometres per pixel, drawn log-uniformly for each pair.
    scale_jitter
        The views of a pair differ in the logarithm of their scale by up to twice this.
    stain_gain
        Haematoxylin and eosin are multiplied by up to 1 plus or minus twice this, the residual by half as much.
    stain_shift
        Up to this is added to each of the three.
    blur
        Fraction of the views that are blurred by one px.
    """

    um_per_px: tuple[float, float] = (0.35, 1.0)
    scale_jitter: float = 0.2
    stain_gain: float = 0.04
    stain_shift: float = 0.012
    blur: float = 0.3


@dataclass
class TrainingSlide:
    """A slide in memory, and positions on its tissue.

    Parameters
    ----------
    pixels
        (height, width, 3) uint8.
    um_per_px
        Micrometres per pixel.
    places
        (n, 2) float64, x and y in px, of positions surrounded by tissue.
    """

    pixels: NDArray[np.uint8]
    um_per_px: float
    places: NDArray[np.float64]

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], um_per_px: float) -> "TrainingSlide":
        """Detect the tissue, which is coloured or dark, unlike glass."""
        height, width = (n // MASK_PX * MASK_PX for n in pixels.shape[:2])
        small = pixels[MASK_PX // 2 : height : MASK_PX, MASK_PX // 2 : width : MASK_PX].astype(np.float32)
        tissue = (small.max(2) - small.min(2) > 25) & (small.mean(2) < 230)
        share = ndimage.uniform_filter(tissue.astype(np.float32), int(TILE_UM / (MASK_PX * um_per_px)))
        rows, cols = np.nonzero(share > 0.3)
        return cls(pixels, um_per_px, np.column_stack([cols, rows]) * float(MASK_PX))


class Views:
    """Draws pairs of views; batch ``i`` depends on the seed and on ``i`` alone.

    A batch is drawn from a single slide, so that differences between slides are not learned. Slides are drawn with
    probability proportional to the square root of their tissue area.

    Parameters
    ----------
    slides
        Slides to draw from.
    n
        Pairs in a batch.
    px
        Side of a view, px.
    augmentation
        Transformations of the views.
    seed
        Random seed.
    """

    def __init__(self, slides: list[TrainingSlide], n: int, px: int, augmentation: Augmentation, seed: int) -> None:
        self.slides, self.n, self.px, self.augmentation, self.seed = slides, n, px, augmentation, seed
        weight = np.sqrt([len(slide.places) for slide in slides])
        self.share = weight / weight.sum()

    def __call__(self, i: int) -> Tensor:
        """Return batch ``i``, (2 n, 3, px, px) float32, channels last in memory; rows k and n + k are a pair."""
        rng = np.random.default_rng([self.seed, i])
        a = self.augmentation
        slide = self.slides[rng.choice(len(self.slides), p=self.share)]
        place = slide.places[rng.integers(len(slide.places), size=self.n)] + rng.uniform(0, MASK_PX, (self.n, 2))
        scale = np.exp(rng.uniform(*np.log(a.um_per_px), self.n))
        other = scale * np.exp(rng.uniform(-a.scale_jitter, a.scale_jitter, self.n))
        return torch.cat([self._view(rng, slide, place, s) for s in (scale, other)])

    def _view(self, rng: np.random.Generator, slide: TrainingSlide, place: NDArray, um_per_px: NDArray) -> Tensor:
        n, step = len(place), um_per_px / slide.um_per_px
        turn, mirror = rng.integers(0, 4, n) * (np.pi / 2), rng.choice([-1.0, 1.0], n)
        affine = np.stack(
            [mirror * step * np.cos(turn), -step * np.sin(turn), mirror * step * np.sin(turn), step * np.cos(turn)], 1
        )
        out = np.empty((n, self.px, self.px, 3), np.float32)
        _sample(slide.pixels, place, affine, out)
        density = -torch.log((torch.from_numpy(out).view(n, -1, 3) + 1) / 256)
        matrix, shift = self._stains(rng, n)
        changed = torch.exp(-torch.baddbmm(shift[:, None], density, matrix)).clamp_(0, 1)
        images = changed.view(n, self.px, self.px, 3).permute(0, 3, 1, 2)
        blurred = int(n * self.augmentation.blur)
        kernel = torch.outer(*[torch.tensor([0.25, 0.5, 0.25])] * 2).expand(3, 1, 3, 3)
        images[:blurred] = conv2d(pad(images[:blurred], (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
        return ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)

    def _stains(self, rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        """Matrices (n, 3, 3) and shifts (n, 3) that change the stains of optical densities."""
        a = self.augmentation
        gain = 1 + rng.uniform(-1, 1, (n, 3)) * a.stain_gain * np.array([2, 2, 1])
        matrix = np.einsum("ij,nj,jk->nik", np.linalg.inv(STAINS), gain, STAINS)
        shift = rng.uniform(-a.stain_shift, a.stain_shift, (n, 3)) @ STAINS
        return torch.from_numpy(matrix.astype(np.float32)), torch.from_numpy(shift.astype(np.float32))


@numba.njit(parallel=True, fastmath=True, cache=True)
def _sample(pixels: NDArray, centers: NDArray, affine: NDArray, out: NDArray) -> None:
    """Bilinear views around ``centers``; near white beyond the slide."""
    height, width, side = pixels.shape[0], pixels.shape[1], out.shape[1]
    half = (side - 1) / 2
    for at in numba.prange(len(centers) * side):
        i, row = at // side, at % side
        v = row - half
        for col in range(side):
            u = col - half
            x = centers[i, 0] + affine[i, 0] * u + affine[i, 1] * v - 0.5
            y = centers[i, 1] + affine[i, 2] * u + affine[i, 3] * v - 0.5
            left, top = int(np.floor(x)), int(np.floor(y))
            if left < 0 or top < 0 or left + 1 >= width or top + 1 >= height:
                out[i, row, col] = 245.0
                continue
            right, down = np.float32(x - left), np.float32(y - top)
            for c in range(3):
                above = pixels[top, left, c] * (1 - right) + pixels[top, left + 1, c] * right
                below = pixels[top + 1, left, c] * (1 - right) + pixels[top + 1, left + 1, c] * right
                out[i, row, col, c] = above * (1 - down) + below * down
