"""Pairs of views of the same position on an image.

Views are cut from images in memory by one affine map each (position, scale in um per px, quarter turn, mirroring) and
then change their stains. Both views of a pair show the same place at nearly the same scale: the size of nuclei is
information that expression depends on. Their stains differ by more than those of laboratories do: an encoder that
knows a slide by its colour helps on no other slide.
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
MASK_PX = 12  # px of the image along a side of a px of its tissue mask
TILE_UM = 112.0  # tissue is looked for around a place as far as a tile of gdml reaches
EDGE_UM = 30.0  # no place is nearer to the edge of its image, beyond which it is mirrored
MEAN, STD = 0.5, 0.25  # of pixels in [0, 1], for all channels: stains differ, so none is centred on its own


@dataclass
class Augmentation:
    """Ranges of the random transformations of views.

    Parameters
    ----------
    um_per_px
        Smallest and largest micrometres per pixel, drawn log-uniformly for each pair. From coarse images, views of less
        than half their micrometres per pixel are not drawn.
    scale_jitter
        The views of a pair differ in the logarithm of their scale by up to this.
    stain_gain
        Haematoxylin, eosin and the residual are multiplied by up to exp(plus or minus this), each on its own.
    channel_gain
        So is the optical density of red, green and blue: the colour of a stain differs between laboratories.
    shift
        Up to this is added to the optical density of red, green and blue.
    blur
        Fraction of the views that are blurred: the first half of these once, a quarter twice, the rest four times.
    """

    um_per_px: tuple[float, float] = (0.35, 1.0)
    scale_jitter: float = 0.2
    stain_gain: float = 0.5
    channel_gain: float = 0.2
    shift: float = 0.06
    blur: float = 0.5


@dataclass
class Source:
    """Images of one origin in memory, one below the other, and positions on their tissue.

    Parameters
    ----------
    name
        Of the source.
    pixels
        (height, width, 3) uint8.
    um_per_px
        Micrometres per pixel.
    places
        (n, 2) float64, x and y in px, of positions surrounded by tissue.
    frames
        (n, 4) int64, left, top, right and bottom of the image that each place is on.
    """

    name: str
    pixels: NDArray[np.uint8]
    um_per_px: float
    places: NDArray[np.float64]
    frames: NDArray[np.int64]

    @classmethod
    def of(cls, name: str, images: list[NDArray[np.uint8]], um_per_px: float) -> "Source":
        """Join images of one scale."""
        heights, widths = zip(*(image.shape[:2] for image in images), strict=True)
        tops = np.concatenate([[0], np.cumsum(heights)])
        pixels = np.zeros((tops[-1], max(widths), 3), np.uint8)
        places, frames = [], []
        for image, top, bottom in zip(images, tops[:-1], tops[1:], strict=True):
            pixels[top:bottom, : image.shape[1]] = image
            found = tissue(image, um_per_px)
            places.append(found + [0, top])
            frames.append(np.tile([0, top, image.shape[1], bottom], (len(found), 1)))
        return cls(name, pixels, um_per_px, np.concatenate(places), np.concatenate(frames))


def tissue(image: NDArray[np.uint8], um_per_px: float) -> NDArray[np.float64]:
    """Positions (n, 2), x and y in px, surrounded by tissue, which is coloured or dark, unlike glass."""
    height, width = (n // MASK_PX * MASK_PX for n in image.shape[:2])
    small = image[MASK_PX // 2 : height : MASK_PX, MASK_PX // 2 : width : MASK_PX].astype(np.float32)
    stained = (small.max(2) - small.min(2) > 25) & (small.mean(2) < 230)
    share = ndimage.uniform_filter(stained.astype(np.float32), int(TILE_UM / (MASK_PX * um_per_px)))
    rows, cols = np.nonzero(share > 0.3)
    places = np.column_stack([cols, rows]) * float(MASK_PX)
    edge = EDGE_UM / um_per_px
    inside = (places >= edge) & (places <= np.array([image.shape[1], image.shape[0]]) - edge - MASK_PX)
    return places[inside.all(1)]


class Views:
    """Draws pairs of views; batch ``i`` depends on the seed and on ``i`` alone.

    A batch is drawn from a single source, so that differences between laboratories are not learned. Sources are drawn
    with probability proportional to the square root of their tissue in px.

    Parameters
    ----------
    sources
        Sources to draw from.
    n
        Pairs in a batch.
    px
        Side of a view, px.
    augmentation
        Transformations of the views.
    seed
        Random seed.
    """

    def __init__(self, sources: list[Source], n: int, px: int, augmentation: Augmentation, seed: int) -> None:
        self.sources, self.n, self.px, self.augmentation, self.seed = sources, n, px, augmentation, seed
        weight = np.sqrt([len(source.places) for source in sources])
        self.share = weight / weight.sum()
        self._binomial = torch.outer(*[torch.tensor([0.25, 0.5, 0.25])] * 2).expand(3, 1, 3, 3)

    def __call__(self, i: int) -> Tensor:
        """Return batch ``i``, (2 n, 3, px, px) float32, channels last in memory; rows k and n + k are a pair."""
        rng = np.random.default_rng([self.seed, i])
        a = self.augmentation
        source = self.sources[rng.choice(len(self.sources), p=self.share)]
        which = rng.integers(len(source.places), size=self.n)
        place, frame = source.places[which] + rng.uniform(0, MASK_PX, (self.n, 2)), source.frames[which]
        finest = max(a.um_per_px[0], source.um_per_px / 2)
        scale = np.exp(rng.uniform(np.log(finest), np.log(max(a.um_per_px[1], finest)), self.n))
        other = scale * np.exp(rng.uniform(-a.scale_jitter, a.scale_jitter, self.n))
        return torch.cat([self._view(rng, source, place, frame, s) for s in (scale, other)])

    def _view(
        self, rng: np.random.Generator, source: Source, place: NDArray, frame: NDArray, um_per_px: NDArray
    ) -> Tensor:
        n, step = len(place), um_per_px / source.um_per_px
        turn, mirror = rng.integers(0, 4, n) * (np.pi / 2), rng.choice([-1.0, 1.0], n)
        affine = np.stack(
            [mirror * step * np.cos(turn), -step * np.sin(turn), mirror * step * np.sin(turn), step * np.cos(turn)], 1
        )
        out = np.empty((n, self.px, self.px, 3), np.float32)
        _sample(source.pixels, frame, place, affine, out)
        density = -torch.log((torch.from_numpy(out).view(n, -1, 3) + 1) / 256)
        matrix, shift = self._stains(rng, n)
        changed = torch.exp(-torch.baddbmm(shift[:, None], density, matrix)).clamp_(0, 1)
        images = changed.view(n, self.px, self.px, 3).permute(0, 3, 1, 2)
        images = self._blurred(images, torch.from_numpy(rng.permutation(n)[: int(n * self.augmentation.blur)]))
        return ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)

    def _stains(self, rng: np.random.Generator, n: int) -> tuple[Tensor, Tensor]:
        """Matrices (n, 3, 3) and shifts (n, 3) that change the stains of optical densities."""
        a = self.augmentation
        gain = np.exp(rng.uniform(-1, 1, (n, 3)) * a.stain_gain)
        channel = np.exp(rng.uniform(-1, 1, (n, 1, 3)) * a.channel_gain)
        matrix = np.einsum("ij,nj,jk->nik", np.linalg.inv(STAINS), gain, STAINS) * channel
        shift = rng.uniform(-a.shift, a.shift, (n, 3))
        return torch.from_numpy(matrix.astype(np.float32)), torch.from_numpy(shift.astype(np.float32))

    def _blurred(self, images: Tensor, which: Tensor) -> Tensor:
        for times in (1, 1, 2):  # all, then half, then a quarter of them
            for _ in range(times):
                padded = pad(images[which], (1, 1, 1, 1), mode="replicate")
                images[which] = conv2d(padded, self._binomial, groups=3)
            which = which[: len(which) // 2]
        return images


@numba.njit(parallel=True, fastmath=True, cache=True)
def _sample(pixels: NDArray, frames: NDArray, centers: NDArray, affine: NDArray, out: NDArray) -> None:
    """Bilinear views around ``centers``; an image is mirrored beyond its ``frame``."""
    side = out.shape[1]
    half = (side - 1) / 2
    for at in numba.prange(len(centers) * side):
        i, row = at // side, at % side
        first_x, first_y, wide, high = frames[i, 0], frames[i, 1], frames[i, 2] - 1, frames[i, 3] - 1
        v = row - half
        for col in range(side):
            u = col - half
            x = _mirrored(centers[i, 0] + affine[i, 0] * u + affine[i, 1] * v - 0.5, first_x, wide)
            y = _mirrored(centers[i, 1] + affine[i, 2] * u + affine[i, 3] * v - 0.5, first_y, high)
            left, top = min(int(x), wide - 1), min(int(y), high - 1)
            right, down = np.float32(x - left), np.float32(y - top)
            for c in range(3):
                above = pixels[top, left, c] * (1 - right) + pixels[top, left + 1, c] * right
                below = pixels[top + 1, left, c] * (1 - right) + pixels[top + 1, left + 1, c] * right
                out[i, row, col, c] = above * (1 - down) + below * down


@numba.njit(fastmath=True, cache=True)
def _mirrored(value: float, first: int, last: int) -> float:
    """Coordinate between ``first`` and ``last`` of one that may lie beyond them."""
    period = 2.0 * (last - first)
    value = (value - first) % period
    return first + min(value, period - value)
