"""Spots of one slide at their true size: shapes, limits, H&E underneath, scale bar."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import did_you_mean, some
from gdml.slides.geometry import grid_kind, um_per_px_from_grid, um_per_px_from_neighbors
from gdml.spots.scale import PITCH_UM

SHAPES = {"hex": 6, "square": 4, "circle": 0}
_FADED, _THROUGH = 0.7, 0.75  # opacity of the H&E image, and of tiles that cover it


@dataclass(frozen=True)
class SpotLayout:
    """Positions and size of the spots of a slide, in full-resolution px."""

    xy: NDArray[np.float64]
    shape: str
    diameter: float  # of circles; between parallel sides of hexagons and squares
    angle: float  # direction of a neighbour, radians
    um_per_px: float | None
    image: NDArray[Any] | None
    image_scale: float
    corner: tuple[float, float] = (0.0, 0.0)  # of the image
    see_through: bool = False  # over the image

    def limits(self) -> tuple[float, float, float, float]:
        """Left, right, top, bottom: the spots with half a spot of margin."""
        left, top = self.xy.min(0) - self.diameter
        right, bottom = self.xy.max(0) + self.diameter
        return left, right, top, bottom


def spot_layout(
    adata: AnnData, library: str, rows: NDArray[np.intp], *, shape: str | None, size: float, img: bool, key: str
) -> SpotLayout:
    """Layout of the spots of a slide.

    Raises
    ------
    KeyError
        If ``img`` is set and the slide has no hires image.
    ValueError
        If the shape is unknown.
    """
    if shape is not None and shape not in SHAPES:
        raise ValueError(f"`shape` is {shape!r}. {did_you_mean(str(shape), SHAPES)}")
    tiles = adata.uns.get(key, {}).get(_keys.TILES, {})
    xy = np.asarray(adata.obsm[str(tiles.get("spatial_key", _keys.SPATIAL))], np.float64)[rows]
    visium: Mapping[str, Any] = next(
        (entry for name, entry in adata.uns.get(_keys.SPATIAL, {}).items() if str(name) == library), {}
    )
    grid = [adata.obs[k].to_numpy()[rows] for k in (_keys.ARRAY_ROW, _keys.ARRAY_COL) if k in adata.obs]
    kind = grid_kind(*grid) if len(grid) == 2 else None
    factors, tiled = visium.get("scalefactors", {}), tiles.get("slides", {}).get(library, {})
    # tiles of a slide without spots, and bins, cover the tissue
    covering = "bin_size_um" in factors or library in adata.uns.get(key, {}).get(_keys.TISSUE, {})
    shape = shape or ("hex" if kind == "hex" else "square" if covering else "circle")
    diameter = factors.get("spot_diameter_fullres")
    pitch = _pitch(xy, grid) or 2 * float(diameter or 1)
    sides = SHAPES[shape]
    if covering and shape == "square" and diameter:
        diameter = min(float(diameter), pitch)  # tiles that overlap would hide one another
    else:
        diameter = pitch if sides else float(diameter or pitch / 2)

    scale = tiled.get("um_per_px", np.nan)
    of_array = np.nan if covering else PITCH_UM.get(kind or "", np.nan)
    pitch_um = visium.get("metadata", {}).get(_keys.SPOT_PITCH, of_array)
    um_per_px = scale if np.isfinite(scale) else pitch_um / pitch
    image, image_scale = _hires(visium, library) if img else (None, 1.0)
    return SpotLayout(
        xy,
        shape,
        diameter * size,
        _direction(xy, sides),
        float(um_per_px) if np.isfinite(um_per_px) else None,
        image,
        image_scale,
        (float(tiled.get("left", 0.0)), float(tiled.get("top", 0.0))),
        covering and shape != "circle",
    )


def _pitch(xy: NDArray[np.float64], grid: list[NDArray[Any]]) -> float | None:
    """Distance between neighbouring spots, px: from the grid if it is known, else from nearest neighbours."""
    try:
        return 1 / um_per_px_from_grid(xy, grid[0], grid[1], 1.0)
    except (ValueError, IndexError):
        pass
    try:
        return 1 / um_per_px_from_neighbors(xy, 1.0)
    except ValueError:
        return None


def _direction(xy: NDArray[np.float64], sides: int) -> float:
    """Angle from a spot to its neighbour, radians: the mean over spots, modulo ``2 pi / sides``."""
    from scipy.spatial import cKDTree

    if len(xy) < 2 or not sides:
        return 0.0
    nearest = cKDTree(xy).query(xy, k=2)[1][:, 1]
    step = xy[nearest] - xy
    return float(np.angle(np.exp(1j * sides * np.arctan2(step[:, 1], step[:, 0])).sum()) / sides)


def _hires(visium: Mapping[str, Any], library: str) -> tuple[NDArray[Any], float]:
    images, factors = visium.get("images", {}), visium.get("scalefactors", {})
    if "hires" not in images or "tissue_hires_scalef" not in factors:
        raise KeyError(
            f"`img` is True, but adata.uns['spatial'][{library!r}] has no hires image with its scale factor (images: "
            f"{some(images) or 'none'}). Pass img=False."
        )
    return np.asarray(images["hires"]), float(factors["tissue_hires_scalef"])


def draw_spots(ax: Axes, spots: SpotLayout, values: NDArray[Any], *, cmap: str, norm: Normalize) -> Collection:
    """Draw a value per spot, in image orientation (y down), at equal aspect."""
    left, right, top, bottom = spots.limits()
    if spots.image is not None:
        (height, width), (x, y) = np.array(spots.image.shape[:2]) / spots.image_scale, spots.corner
        extent = (x, x + width, y + height, y)
        ax.imshow(spots.image, extent=extent, interpolation="antialiased", alpha=_FADED, zorder=0)
    # an edge in the colour of the spot closes the seams that renderers leave between tiles
    style: dict[str, Any] = {"cmap": cmap, "norm": norm, "linewidths": 0.2, "edgecolors": "face", "zorder": 1}
    if spots.image is not None and spots.see_through:
        # neither edges nor blended borders, which would be seen as a mesh
        style |= {"linewidths": 0, "edgecolors": "none", "antialiaseds": False, "alpha": _THROUGH, "rasterized": True}
    elif spots.image is not None:
        style |= {"linewidths": 0.4, "edgecolors": "white"}  # stained nuclei are as dark as low values
    drawn: Collection
    if spots.shape == "circle":
        d = np.full(len(spots.xy), spots.diameter)
        drawn = EllipseCollection(
            d, d, np.zeros_like(d), units="xy", offsets=spots.xy, offset_transform=ax.transData, **style
        )
    else:
        n = SHAPES[spots.shape]
        corner = spots.angle + (2 * np.arange(n) + 1) * np.pi / n
        outline = spots.diameter / 2 / np.cos(np.pi / n) * np.column_stack([np.cos(corner), np.sin(corner)])
        drawn = PolyCollection(spots.xy[:, None] + outline, **style)
    drawn.set_array(np.asarray(values, np.float64))
    ax.add_collection(drawn, autolim=False)
    # limits are widened on narrow slides, instead of narrowing the axes, so that titles fit
    box = ax.get_window_extent()
    wider = max(0.0, (bottom - top) * box.width / box.height - (right - left)) / 2
    ax.set(xlim=(left - wider, right + wider), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return drawn


def scale_bar(ax: Axes, um_per_px: float | None) -> None:
    """Draw a scale bar of a round length below the axes, whose unit is a px; none if the scale is unknown."""
    if um_per_px is None:
        return
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    longest = 0.3 * (right - left) * um_per_px
    power = 10.0 ** np.floor(np.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    below = bottom + 0.03 * (bottom - top)
    ax.plot(
        [left, left + length / um_per_px],
        [below, below],
        color="black",
        lw=2,
        solid_capstyle="butt",
        clip_on=False,
    )
    ax.annotate(
        label,
        (left + length / um_per_px, below),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize="small",
        annotation_clip=False,
        path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
    )
