"""Render a synthetic tissue as stained with haematoxylin and eosin."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from ._tissue import Tissue, strength

# absorption of red, green and blue by the two stains, unit length
HAEMATOXYLIN = np.array([0.65, 0.67, 0.35])
EOSIN = np.array([0.25, 0.86, 0.44])
GLASS = np.array([246.0, 243.0, 241.0])

Map = NDArray[np.float32]


@dataclass(frozen=True)
class Stain:
    """Strength and colour (absorption of RGB) of the two stains."""

    haematoxylin: float
    eosin: float
    haematoxylin_rgb: NDArray[np.float64]
    eosin_rgb: NDArray[np.float64]


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draw the stain of a patient: strengths vary by about 10 %, colours by a few degrees."""

    def colour(mean: NDArray[np.float64]) -> NDArray[np.float64]:
        shifted = mean + rng.normal(0, 0.025, 3)
        return shifted / np.linalg.norm(shifted)

    return Stain(rng.uniform(0.88, 1.12), rng.uniform(0.85, 1.15), colour(HAEMATOXYLIN), colour(EOSIN))


def render(tissue: Tissue, stain: Stain, um_per_px: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Render a tissue, (height, width, 3)."""
    n = round(tissue.side / um_per_px)
    cells = _enlarge(tissue.fields["nuclei"], n)
    fibre, direction = _fibres(rng, n, um_per_px)
    speckle = _enlarge(rng.standard_normal((n // 3, n // 3)), n)
    lumen = tissue.lumen_distance((np.arange(n) + 0.5) * um_per_px, um_per_px)

    rough = rng.standard_normal((n // 12, n // 12))
    tissue_map = _step(_enlarge(tissue.inside, n) + 2 * _enlarge(rough, n), 2.5)
    tissue_map *= 0.07 + 0.93 * _step(lumen, 0.8)  # lumens hold a little secretion
    # clefts between the fibres of loose stroma
    tissue_map *= 1 - 0.8 * _step(-fibre - 1.6 - 1.6 * cells, 0.15) * _step(lumen - 14, 2.0)
    epithelium = 1 - _step(lumen - 11, 1.5)

    nuclei = _nuclei(tissue, rng, n, um_per_px, direction)
    h = nuclei * _enlarge(strength(tissue.fields["haematoxylin"]), n)
    h += 0.05 + 0.13 * cells + 0.1 * epithelium + 0.015 * speckle
    e = (0.27 + (0.11 - 0.08 * cells) * fibre) * (1 - 0.35 * epithelium) + 0.02 * speckle
    e = np.maximum(e, 0.04) * _enlarge(strength(tissue.fields["eosin"]), n) * (1 - 0.5 * np.minimum(nuclei, 1))
    h *= tissue_map * stain.haematoxylin
    e *= tissue_map * stain.eosin

    rgb = np.empty((n, n, 3), np.uint8)
    grain = rng.standard_normal((n, n), dtype=np.float32) * 1.5
    for c in range(3):
        absorbed = h * np.float32(1.25 * stain.haematoxylin_rgb[c]) + e * np.float32(1.25 * stain.eosin_rgb[c])
        rgb[..., c] = np.clip(np.exp(-absorbed, out=absorbed) * np.float32(GLASS[c]) + grain, 0, 255)
    return rgb


def _enlarge(coarse: NDArray, n: int) -> Map:
    """Enlarge a map to n x n by bicubic interpolation."""
    return np.asarray(Image.fromarray(coarse.astype(np.float32)).resize((n, n), Image.Resampling.BICUBIC))


def _step(x: Map, width: float) -> Map:
    """Rise smoothly from 0 to 1 where ``x`` crosses 0, over plus and minus ``width``."""
    t = np.clip(x / np.float32(2 * width) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


def _fibres(rng: np.random.Generator, n: int, um_per_px: float) -> tuple[Map, Map]:
    """Draw wavy streaks some 5 um thick and 60 um long: strength, (n, n), about normal; direction, a radian map."""
    half = n // 2
    um = 2 * um_per_px
    side = int(half * um * 1.6)
    streaks = gaussian_filter(rng.standard_normal((int(side / 2.5), int(side / 10))), (0.8, 2.5))
    streaks /= streaks.std()
    y, x = np.mgrid[:half, :half].astype(np.float32) * np.float32(um)
    angle = rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    coarse = gaussian_filter(rng.standard_normal((2, half // 8, half // 8)), (0, 12 / um, 12 / um), mode="reflect")
    bend = [_enlarge(b / b.std() * 30, half) for b in coarse]
    u, v = c * x + s * y + bend[0], c * y - s * x + bend[1]
    dy, dx = np.gradient(v[::8, ::8])
    streaks = map_coordinates(streaks.astype(np.float32), [v / 2.5, u / 10], order=1, mode="grid-wrap")
    return _enlarge(streaks, n), np.arctan2(-dx, dy)


def _nuclei(tissue: Tissue, rng: np.random.Generator, n: int, um_per_px: float, direction: Map) -> Map:
    """Paint the nuclei: optical density of haematoxylin, about 0.5 to 1.2 within; (n, n).

    Elongated ones lie along the fibres, whose ``direction`` is a radian map of the slide.
    """
    kinds = 96  # stamps of each: round ones, elongated ones by angle
    r = int(np.ceil(8 / um_per_px))
    offset = np.arange(-r, r + 1) * um_per_px

    def both(*ranges: float) -> NDArray[np.float64]:
        low, high, low_spindle, high_spindle = ranges
        values = rng.uniform(low, high, kinds), rng.uniform(low_spindle, high_spindle, kinds)
        return np.concatenate(values)[:, None, None]

    long, short, dark = both(3.2, 4.7, 5.0, 7.0), both(2.7, 3.6, 1.3, 1.9), both(0.62, 0.95, 0.62, 0.95)
    angle = np.concatenate([rng.uniform(0, np.pi, kinds), np.arange(kinds) * np.pi / kinds])[:, None, None]
    shift = rng.uniform(-0.5, 0.5, (2, 2 * kinds, 1, 1)) * um_per_px
    x, y = offset - shift[0], offset[:, None] - shift[1]
    distance = np.hypot((np.cos(angle) * x + np.sin(angle) * y) / long, (np.cos(angle) * y - np.sin(angle) * x) / short)
    body = np.clip((1 - distance) * short / um_per_px + 0.5, 0, 1)
    chromatin = gaussian_filter(rng.standard_normal(body.shape), (0, 0.9 / um_per_px, 0.9 / um_per_px))
    rim = np.exp(-(((distance - 0.85) / 0.2) ** 2))
    stamps = (body * dark * np.maximum(1 + 0.18 * rim + 0.15 * chromatin / chromatin.std(), 0.3)).astype(np.float32)

    j, i = np.clip((tissue.nuclei / um_per_px).astype(int), 0, n - 1).T
    m = len(direction)
    along = direction[i * m // n, j * m // n] / np.pi + rng.normal(0, 0.06, len(i))
    kind = np.where(tissue.spindle, kinds + np.round(along * kinds).astype(int) % kinds, rng.integers(0, kinds, len(i)))
    width = n + 2 * r
    out = np.zeros(width * width, np.float32)
    for di, dj in np.argwhere(stamps.any(0)):
        at = (i + di) * width + j + dj
        # two nuclei rarely share a centre pixel, so that one write per nucleus and offset is enough
        out[at] = np.maximum(out[at], stamps[kind, di, dj])
    return out.reshape(width, width)[r:-r, r:-r]
