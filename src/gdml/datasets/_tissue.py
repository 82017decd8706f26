"""Layout of a synthetic tissue: nuclei, glands and stain fields, in micrometres."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.stats import rankdata

STEP_UM = 10.0  # cell of the coarse maps
FIELD_UM = 110.0  # standard deviation of the smoothing that makes a field
DRIVERS = ("nuclei", "haematoxylin", "eosin", "glands")

NUCLEUS_SPACING_UM = 8.5
GLAND_SPACING_UM = 62.0
RING_UM = 5.5  # from the edge of a lumen to the nuclei around it

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Tissue:
    """Layout of a slide; positions (x, y) and lengths in um, maps (rows, columns) with cells of ``STEP_UM``.

    Parameters
    ----------
    side
        Width and height of the slide.
    inside
        Map, positive within the tissue: approximate distance to its edge.
    fields
        Map of each driver, in [0, 1], every value equally frequent.
    nuclei
        Centres, (n, 2).
    spindle
        Which nuclei are elongated (stroma), (n,), bool.
    lumens
        Centres of the glands' lumens, (n, 2).
    radii
        Radii of the lumens, (n,).
    """

    side: float
    inside: Array
    fields: dict[str, Array]
    nuclei: Array
    spindle: NDArray[np.bool_]
    lumens: Array
    radii: Array

    def at(self, coarse: Array, xy: Array) -> Array:
        """Interpolate values of a coarse map at positions, (n,)."""
        return map_coordinates(coarse, (xy[:, ::-1] / STEP_UM - 0.5).T, order=1, mode="nearest")

    def drivers(self, xy: Array, diameter: float) -> Array:
        """Drivers of expression in discs of the given diameter at ``xy``, (n, 4), in the order of ``DRIVERS``.

        Nuclei per mm2, mean strength of haematoxylin and of eosin (1 on average), fraction of the area that is lumen.
        """
        n = self.inside.shape[0]
        edges = np.arange(n + 1) * STEP_UM
        count = np.histogram2d(self.nuclei[:, 1], self.nuclei[:, 0], bins=(edges, edges))[0]
        fine = 2.5
        centre = (np.arange(round(self.side / fine)) + 0.5) * fine
        lumen = self.lumen_distance(centre, fine) < 0
        k = round(STEP_UM / fine)
        lumen_share = lumen[: n * k, : n * k].reshape(n, k, n, k).mean((1, 3))
        maps = [
            count / (STEP_UM / 1000) ** 2,
            strength(self.fields["haematoxylin"]),
            strength(self.fields["eosin"]),
            lumen_share,
        ]
        offset = np.arange(-diameter / 2, diameter / 2 + 1, 5.0)
        disc = np.stack(np.meshgrid(offset, offset), -1).reshape(-1, 2)
        disc = disc[np.hypot(*disc.T) <= diameter / 2]
        cells = np.clip((xy[:, None] + disc) // STEP_UM, 0, n - 1).astype(int)
        return np.stack([m[cells[..., 1], cells[..., 0]].mean(1) for m in maps], 1)

    def lumen_distance(self, centre: NDArray[np.floating], pixel: float) -> NDArray[np.float32]:
        """Distance in um to the edge of the nearest lumen, negative inside, at most 20; (n, n) pixels."""
        out = np.full((len(centre), len(centre)), 20, np.float32)
        for (x, y), radius in zip(self.lumens, self.radii, strict=True):
            reach = int((1.3 * radius + 20) / pixel) + 1
            i, j = int(y / pixel), int(x / pixel)
            rows, columns = slice(max(0, i - reach), i + reach), slice(max(0, j - reach), j + reach)
            dx, dy = centre[columns] - x, centre[rows, None] - y
            # lumens are uneven: three lobes, turned by their position
            wave = 1 + 0.18 * np.cos(2 * np.arctan2(dy, dx) + x) + 0.1 * np.cos(3 * np.arctan2(dy, dx) + y)
            out[rows, columns] = np.minimum(out[rows, columns], np.hypot(dx, dy) - radius * wave)
        return out


def strength(field: Array) -> Array:
    """Strength of a stain, 0.55 to 1.45, of its field in [0, 1]."""
    return 0.55 + 0.9 * field


def make_tissue(rng: np.random.Generator, side: float) -> Tissue:
    """Draw the layout of a slide of ``side`` x ``side`` um."""
    n = int(side / STEP_UM)
    fields = {name: smooth_field(rng, n, FIELD_UM / STEP_UM) for name in DRIVERS}
    # a rounded square with an uneven edge
    u = (np.arange(n) + 0.5) * STEP_UM - side / 2
    shape = (np.abs(u) ** 5 + np.abs(u[:, None]) ** 5) ** (1 / 5)
    inside = side / 2 - 45 - shape - 75 * smooth_field(rng, n, 9) - 15 * smooth_field(rng, n, 2)

    bare = Tissue(side, inside, fields, np.empty((0, 2)), np.empty(0, bool), np.empty((0, 2)), np.empty(0))
    lumens = _sites(rng, side, GLAND_SPACING_UM, jitter=0.22)
    level = bare.at(fields["glands"], lumens)
    keep = (bare.at(inside, lumens) > 30) & (rng.random(len(lumens)) < 1.9 * level - 0.25)
    lumens, level = lumens[keep], level[keep]
    radii = np.clip((6 + 12 * level) * rng.lognormal(0, 0.22, len(level)), 4.5, 30)
    lumens, radii = _without_overlap(lumens, radii, gap=3 * RING_UM)

    cells = _sites(rng, side, NUCLEUS_SPACING_UM, jitter=0.3)
    density = bare.at(fields["nuclei"], cells)
    keep = (bare.at(inside, cells) > 4) & (rng.random(len(cells)) < 0.1 + 0.75 * density**1.2)
    cells, density = cells[keep], density[keep]
    ring, n_ring = [np.empty((0, 2))], np.round(2 * np.pi * (radii + RING_UM) / 6.5).astype(int)
    for centre, radius, m in zip(lumens, radii, n_ring, strict=True):
        angle = np.arange(m) * 2 * np.pi / m + rng.normal(0, 0.08, m)
        out = radius + RING_UM + rng.normal(0, 0.9, m)
        ring.append(centre + out[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1))
    gland = Tissue(side, inside, fields, cells, np.empty(0, bool), lumens, radii)
    pixel = 2.0
    distance = gland.lumen_distance((np.arange(int(side / pixel)) + 0.5) * pixel, pixel)
    i, j = np.clip((cells / pixel).astype(int), 0, len(distance) - 1).T[::-1]
    free = distance[i, j] > RING_UM + 5
    cells, density = cells[free], density[free]
    spindle = rng.random(len(cells)) > 0.15 + 1.1 * density
    nuclei = np.concatenate([cells, *ring])
    spindle = np.concatenate([spindle, np.zeros(len(nuclei) - len(cells), bool)])
    return Tissue(side, inside, fields, nuclei, spindle, lumens, radii)


def smooth_field(rng: np.random.Generator, n: int, sigma: float) -> Array:
    """Draw a smooth random field, (n, n), whose values are spread evenly over [0, 1]."""
    pad = int(3 * sigma)
    rough = rng.standard_normal((n + 2 * pad, n + 2 * pad))
    field = gaussian_filter(rough, sigma)[pad : pad + n, pad : pad + n]
    return ((rankdata(field) - 0.5) / field.size).reshape(n, n)


def _without_overlap(xy: Array, radii: Array, gap: float) -> tuple[Array, Array]:
    """Remove the smaller of any two discs that are closer than ``gap``."""
    apart = np.hypot(*(xy[:, None] - xy).transpose(2, 0, 1)) - radii[:, None] - radii
    larger = (radii > radii[:, None]) & (apart < gap)
    free = ~larger.any(1)
    return xy[free], radii[free]


def _sites(rng: np.random.Generator, side: float, spacing: float, jitter: float) -> Array:
    """Draw points of a hexagonal lattice, each moved by a normal of ``jitter`` spacings; (n, 2), within the slide."""
    x, y = np.meshgrid(np.arange(0, side, spacing), np.arange(0, side, spacing * np.sqrt(0.75)))
    x[1::2] += spacing / 2
    xy = np.stack([x.ravel(), y.ravel()], 1)
    xy += rng.normal(0, jitter * spacing, xy.shape)
    return xy[((xy > 0) & (xy < side)).all(1)]
