"""Tissue against glass on a thumbnail, and how many spots lie over glass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.filters import gaussian, threshold_otsu

_SIGMA = 3.0  # thumbnail px
_SMALLEST = 64  # thumbnail px; smaller images are not judged
_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
_NOISE = 0.003  # optical density; keeps the logarithm of the texture finite on uniform glass
_CONTRAST = np.log(5)  # least ratio of textures; 7 to 27 on ten real sections, 2 to 3 in most crops without glass
_PALER = 0.03  # optical density by which glass is paler than tissue
_MANY, _SOME, _BETTER = 0.10, 0.03, 4  # share that is suspicious alone; with another orientation this much better
_FEWEST = 5  # spots over glass

_Floats = NDArray[np.float64]
ORIENTATIONS: dict[str, Callable[[_Floats, _Floats, float, float], tuple[_Floats, _Floats]]] = {
    "x and y are swapped": lambda x, y, w, h: (y, x),
    "flipped left to right": lambda x, y, w, h: (w - x, y),
    "flipped top to bottom": lambda x, y, w, h: (x, h - y),
    "turned by 180 degrees": lambda x, y, w, h: (w - x, h - y),
    "turned by 90 degrees clockwise": lambda x, y, w, h: (h - y, x),
    "turned by 90 degrees counterclockwise": lambda x, y, w, h: (y, w - x),
    "flipped about the rising diagonal": lambda x, y, w, h: (h - y, w - x),
}


@dataclass(frozen=True)
class Coverage:
    """How well spots and tissue match.

    Parameters
    ----------
    over_glass
        Share of the spots that lie over glass.
    best
        Change of the coordinates under which the fewest spots lie over glass.
    best_over_glass
        Share of the spots over glass after that change.
    n_spots
        Number of spots.
    """

    over_glass: float
    best: str
    best_over_glass: float
    n_spots: int

    @property
    def better(self) -> bool:
        """Whether the spots match the tissue much better after the change ``best``."""
        return self.over_glass > _SOME and self.best_over_glass * _BETTER <= self.over_glass

    @property
    def suspicious(self) -> bool:
        """Whether many spots lie over glass, or some of them and far fewer in another orientation."""
        return self.over_glass * self.n_spots >= _FEWEST and (self.over_glass > _MANY or self.better)


def glass(image: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
    """Glass on a thumbnail.

    Glass is smooth and tissue is textured, whatever the tint of the scan: Otsu's threshold splits the logarithm of
    the local standard deviation of optical density.

    Parameters
    ----------
    image
        RGB, (height, width, 3), a whole slide at about 1,000 px.

    Returns
    -------
    True where there is glass, (height, width). None where the image is too small or does not show both: its two
    classes differ too little in texture, or the smooth one is not the paler one.
    """
    if min(image.shape[:2]) < _SMALLEST:
        return None
    density = optical_density(image).mean(2)
    return smooth_areas(texture(density, _SIGMA), density)


def optical_density(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical density of each channel, from 0 (white) to 2.4."""
    return _DENSITY[image]


def texture(
    density: NDArray[np.floating], sigma: float, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.floating]:
    """Logarithm of the local standard deviation of optical density.

    Parameters
    ----------
    density
        Mean optical density of the channels, (h, w).
    sigma
        Of the Gaussian window, px.
    valid
        Pixels to use; all by default.

    Returns
    -------
    (h, w). It rests on the nearest valid pixels alone.
    """
    if valid is None:
        mean, square = gaussian(density, sigma), gaussian(density**2, sigma)
    else:
        weight = np.maximum(gaussian(valid.astype(density.dtype), sigma), 1e-6)
        mean, square = (gaussian(np.where(valid, values, 0), sigma) / weight for values in (density, density**2))
    return np.log(np.sqrt(np.maximum(square - mean**2, 0)) + _NOISE)


def smooth_areas(
    grain: NDArray[np.floating], density: NDArray[np.floating], valid: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_] | None:
    """Areas without texture, by Otsu's threshold.

    Parameters
    ----------
    grain
        Texture of :func:`texture`, (h, w).
    density
        Mean optical density, (h, w).
    valid
        Pixels to judge; all by default.

    Returns
    -------
    True where there is none, (h, w). None where the two classes differ too little, or the smooth one is not the paler.
    """
    judged = np.ones(grain.shape, bool) if valid is None else valid
    if not judged.any() or np.ptp(grain[judged]) < _CONTRAST:
        return None
    smooth = grain <= threshold_otsu(grain[judged])
    low, high = smooth & judged, ~smooth & judged
    contrast = grain[high].mean() - grain[low].mean()
    paler = density[high].mean() - density[low].mean()
    return smooth if contrast > _CONTRAST and paler > _PALER else None


def coverage(
    image: NDArray[np.uint8],
    xy: NDArray[np.float64],
    size: tuple[float, float],
    scales: Mapping[str, float] | None = None,
) -> Coverage | None:
    """Share of the spots over glass, as they are and in every other orientation.

    Parameters
    ----------
    image
        Thumbnail of the whole image, (h, w, 3).
    xy
        Spot centres, px of the image, (n, 2).
    size
        Width and height of the image, px.
    scales
        Further changes to try, by name: factors on the coordinates.

    Returns
    -------
    None where tissue and glass cannot be told apart.
    """
    mask = glass(image)
    if mask is None or len(xy) == 0:
        return None
    x, y = xy.T
    width, height = size
    changed = {name: turn(x, y, width, height) for name, turn in ORIENTATIONS.items()}
    changed |= {name: (x * factor, y * factor) for name, factor in (scales or {}).items()}
    shares = {name: _share(mask, *places, size) for name, places in changed.items()}
    best = min(shares, key=lambda name: shares[name])
    return Coverage(_share(mask, x, y, size), best, shares[best], len(xy))


def _share(mask: NDArray[np.bool_], x: _Floats, y: _Floats, size: tuple[float, float]) -> float:
    """Share of the positions that lie over glass or outside the image."""
    column = np.floor(x * mask.shape[1] / size[0]).astype(int)
    row = np.floor(y * mask.shape[0] / size[1]).astype(int)
    inside = (column >= 0) & (column < mask.shape[1]) & (row >= 0) & (row < mask.shape[0])
    over = np.ones(len(x), bool)
    over[inside] = mask[row[inside], column[inside]]
    return float(over.mean())
