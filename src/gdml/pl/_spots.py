"""Spots of one slide: shapes, sizes, limits, H&E underneath."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from matplotlib.colors import Colormap, Normalize
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import check_number, did_you_mean, some
from gdml.slides.geometry import grid_kind, um_per_px_from_grid, um_per_px_from_neighbors
from gdml.spots.images import slide_entry
from gdml.spots.scale import PITCH_UM

from ._page import MM_PER_PT, size_mm

SHAPES = {"hex": 6, "square": 4, "circle": 0}
SIZES = ("true", "touch")
#: Of more spots those of true size are dots of a quarter of a millimetre in a map of print size.
LEGIBLE = 1000
FADED = 0.5  # opacity of the H&E image under spots
_THROUGH = 0.75  # opacity of tiles that cover it
_VISIUM = 0.55  # diameter over pitch; Space Ranger writes 65 um for 55
_EDGE, _EDGE_PT = 0.06, 0.4  # white edge of circles over the image: share of the diameter, and the widest, pt


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
    opacity: float  # of the image
    noun: str  # "spot", "bin" or "tile"
    corner: tuple[float, float] = (0.0, 0.0)  # of the image
    see_through: bool = False  # over the image

    def limits(self) -> tuple[float, float, float, float]:
        """Left, right, top, bottom: the spots with half a spot of margin."""
        left, top = self.xy.min(0) - self.diameter
        right, bottom = self.xy.max(0) + self.diameter
        return left, right, top, bottom


def spot_layout(
    adata: AnnData,
    library: str,
    rows: NDArray[np.intp],
    *,
    shape: str | None,
    size: float | str | None,
    img: bool | float,
    key: str,
    entry: Mapping[str, Any] | None = None,
) -> SpotLayout:
    """Layout of the spots of a slide; ``entry`` in place of that in ``uns["spatial"]``.

    Raises
    ------
    KeyError
        If ``img`` is set and the slide has no hires image.
    ValueError
        If the shape is unknown.
    """
    tiles = adata.uns.get(key, {}).get(_keys.TILES, {})
    xy = np.asarray(adata.obsm[str(tiles.get("spatial_key", _keys.SPATIAL))], np.float64)[rows]
    visium = slide_entry(adata, library) if entry is None else entry
    grid = [adata.obs[k].to_numpy()[rows] for k in (_keys.ARRAY_ROW, _keys.ARRAY_COL) if k in adata.obs]
    kind = grid_kind(*grid) if len(grid) == 2 else None
    factors, tiled = visium.get("scalefactors", {}), tiles.get("slides", {}).get(library, {})
    # tiles of a slide without spots, and bins, cover the tissue
    noun = "bin" if "bin_size_um" in factors else "spot"
    noun = "tile" if library in adata.uns.get(key, {}).get(_keys.TISSUE, {}) else noun
    covering = noun != "spot"
    size = size or ("true" if covering or (img and len(rows) <= LEGIBLE) else "touch")
    hexagons = kind == "hex" and (covering or (size == "touch" and not img))  # circles show the image between them
    shape = shape or ("hex" if hexagons else "square" if covering else "circle")
    given = factors.get("spot_diameter_fullres")
    pitch = _pitch(xy, grid) or 2 * float(given or 1)
    true = float(given or pitch / 2)
    if covering:
        true = min(float(given or pitch), pitch) if shape == "square" else pitch  # those that overlap hide one another
    elif kind == "hex":
        true = min(true, _VISIUM * pitch)
    diameter = {"true": true, "touch": pitch}[size] if isinstance(size, str) else true * size

    scale = tiled.get("um_per_px", np.nan)
    of_array = factors.get("bin_size_um", np.nan) if covering else PITCH_UM.get(kind or "", np.nan)
    pitch_um = visium.get("metadata", {}).get(_keys.SPOT_PITCH, of_array)
    um_per_px = scale if np.isfinite(scale) else pitch_um / pitch
    image, image_scale = _hires(visium, library) if img else (None, 1.0)
    return SpotLayout(
        xy,
        shape,
        diameter,
        _direction(xy, SHAPES[shape]),
        float(um_per_px) if np.isfinite(um_per_px) else None,
        image,
        image_scale,
        FADED if isinstance(img, bool) else float(img),
        noun,
        (float(tiled.get("left", 0.0)), float(tiled.get("top", 0.0))),
        covering and shape != "circle",
    )


def check_style(shape: Any, size: Any, img: Any) -> None:
    """Refuse styles of spots that do not exist.

    Raises
    ------
    ValueError
        If ``shape`` or a text as ``size`` is unknown, a number as ``size`` not positive, or a number as ``img`` not above
        0 and at most 1.
    TypeError
        If ``size`` or ``img`` has another type.
    """
    if shape is not None and shape not in SHAPES:
        raise ValueError(f"`shape` is {shape!r}. {did_you_mean(str(shape), SHAPES)}")
    if isinstance(size, str) and size not in SIZES:
        raise ValueError(f"`size` is {size!r}. {did_you_mean(size, SIZES)}")
    if size is not None and not isinstance(size, str):
        check_number("size", size, above=0, hint="1 is the true size")
    if not isinstance(img, bool | np.bool_):
        check_number("img", img, above=0, hint="it is the opacity of the image; or True, False")
        if img > 1:
            raise ValueError(f"`img` is {img!r}; as the opacity of the image it must be at most 1.")


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


def draw_spots(ax: Axes, spots: SpotLayout, values: NDArray[Any], *, cmap: Colormap, norm: Normalize) -> Collection:
    """Draw a value per spot, in image orientation (y down), at equal aspect."""
    left, right, top, bottom = spots.limits()
    # limits are widened on narrow slides, instead of narrowing the axes, so that titles fit
    box = ax.get_window_extent()
    wider = max(0.0, (bottom - top) * box.width / box.height - (right - left)) / 2
    ax.set(xlim=(left - wider, right + wider), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    if spots.image is not None:
        (height, width), (x, y) = np.array(spots.image.shape[:2]) / spots.image_scale, spots.corner
        extent, limits = (x, x + width, y + height, y), (ax.get_xlim(), ax.get_ylim())
        ax.imshow(spots.image, extent=extent, interpolation="antialiased", alpha=spots.opacity, zorder=0)
        ax.set(xlim=limits[0], ylim=limits[1])
    # an edge in the colour of the spot closes the seams that renderers leave between tiles
    style: dict[str, Any] = {"cmap": cmap, "norm": norm, "linewidths": 0.2, "edgecolors": "face", "zorder": 1}
    if spots.image is not None and spots.see_through:
        # neither edges nor blended borders, which would be seen as a mesh
        style |= {"linewidths": 0, "edgecolors": "none", "antialiaseds": False, "alpha": _THROUGH, "rasterized": True}
    elif spots.image is not None:
        pt_per_px = size_mm(ax)[0] / MM_PER_PT / (right - left + 2 * wider)
        style |= {"linewidths": min(_EDGE_PT, _EDGE * spots.diameter * pt_per_px), "edgecolors": "white"}
    elif spots.shape == "circle":
        style |= {"linewidths": 0}
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
    return drawn
