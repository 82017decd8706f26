"""Geometry of the tiles in a feature file, and the tile of each spot."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from gdml._errors import some
from gdml.spots.resolve import Spots
from gdml.spots.scale import slide_scale

from ._feature_file import FeatureFile

if TYPE_CHECKING:
    from ._feature_inputs import Image

_SAME = 0.1  # relative difference below which the stated and the true size of a tile are one
_OFF_PX = 1.0  # between a spot and the centre of its tile: corners are whole px
_OFF_SIDES = 0.05  # the same in sides of a tile, where the tile bears the name of the spot


class Tiles(NamedTuple):
    """Tiles of a slide.

    Parameters
    ----------
    centers
        (n, 2) float64, in the coordinates of the spots.
    tile_um
        Side, um; NaN where unknown, for tiles of native pixels.
    record
        Entry of the slide in ``uns["gdml"]["tiles"]["slides"]``, without the fingerprint.
    doubt
        What the sources of the scale disagree on; empty where they agree.
    """

    centers: NDArray[np.float64]
    tile_um: float
    record: dict[str, Any]
    doubt: str


def tiles_of(file: FeatureFile, spots: Spots, library: str, image: "Image", um_per_px: float | None) -> Tiles:
    """Lay the tiles of a file on its slide.

    Parameters
    ----------
    file
        The file.
    spots, library
        The spots, whose scale factors and pitch state the scale too, and the slide.
    image
        The image.
    um_per_px
        What the user passed.

    Raises
    ------
    ValueError
        If the file is of another image, its tiles lie outside, or their size is not known.
    """
    slide = image.slide
    size = file.size if slide is None else slide.size
    if slide is not None and file.size is not None and file.size != slide.size:
        raise ValueError(
            f"{str(file.path)!r} is of an image of {file.size[0]} x {file.size[1]} px, that of slide {library!r} has "
            f"{slide.size[0]} x {slide.size[1]} px. Pass the image that the features were computed on."
        )
    if size is None:
        width, height = np.ceil((file.corners + file.side_px).max(0)).astype(int).tolist()
        size = (width, height)
    outside = ((file.centers < 0) | (file.centers >= size)).any(1)
    if outside.any():
        raise ValueError(
            f"{str(file.path)!r}: {outside.sum()} of {len(file)} tiles lie outside the image of slide {library!r}, "
            f"{size[0]} x {size[1]} px. Pass the image that the features were computed on."
        )
    stated = slide.um_per_px if slide is not None else None
    scale = slide_scale(spots, library, given=um_per_px, metadata=stated or file.um_per_px, pitch_um=None)
    value, source = scale.um_per_px, scale.source
    if source == "image metadata" and not stated:
        source = "feature file"
    if np.isnan(value) and file.nominal_um_per_px is not None:
        value, source = file.nominal_um_per_px, "magnification"
    tile_um, doubt = _tile_um(file, library, value)
    record = {
        "image": image.name,
        "um_per_px": value,
        "um_per_px_source": source,
        "side_px": file.side_px,
        "width": size[0],
        "height": size[1],
        "left": float(image.origin[0]),
        "top": float(image.origin[1]),
    }
    return Tiles(file.centers + image.origin, tile_um, record, "; ".join(filter(None, (scale.conflict, doubt))))


def _tile_um(file: FeatureFile, library: str, um_per_px: float) -> tuple[float, str]:
    """Side of a tile, um, and a sentence where it is not what the file states.

    Programs tile by magnification or by a rounded number of pixels: what they call one size is taken for one size as
    long as the slide's own scale agrees within 10 %.
    """
    true = file.side_px * um_per_px
    if np.isnan(true):
        if file.tile_um is not None:
            return file.tile_um, ""
        if file.side_px == file.tile_px:
            return float("nan"), ""
        raise ValueError(
            f"{str(file.path)!r} does not state how many um its tiles are, and um per px of slide {library!r} is unknown; "
            "pass um_per_px=."
        )
    if file.tile_um is None or abs(true / file.tile_um - 1) <= _SAME:
        return (true if file.tile_um is None else file.tile_um), ""
    return true, f"slide {library!r} (tiles are {true:.4g} um, not {file.tile_um:.4g} as {file.program} states)"


def match_spots(
    file: FeatureFile, centers: NDArray[np.float64], xy: NDArray[np.float64], names: NDArray[np.str_]
) -> NDArray[np.intp]:
    """Tile of each spot.

    Parameters
    ----------
    file
        The file; where it has names of spots, these decide.
    centers
        (n, 2) centres of its tiles.
    xy, names
        (m, 2) centres and (m,) names of the spots of the slide.

    Returns
    -------
    (m,) rows of the file; -1 for spots without a tile.

    Raises
    ------
    ValueError
        If tiles that bear the names of spots lie elsewhere.
    """
    if file.barcodes is not None and np.isin(names, file.barcodes).any():
        order = np.argsort(file.barcodes, kind="stable")
        place = np.minimum(np.searchsorted(file.barcodes[order], names), len(order) - 1)
        rows = np.where(file.barcodes[order[place]] == names, order[place], -1)
        off = np.abs(centers[rows] - xy).max(1)
        far = (rows >= 0) & (off > max(_OFF_PX, _OFF_SIDES * file.side_px))
        if far.any():
            raise ValueError(
                f"{str(file.path)!r}: {far.sum()} tiles bear the names of spots ({some(names[far], 3)}), but lie up to "
                f"{off[far].max():.0f} px away from them: they are of another slide, or in other coordinates."
            )
        return rows
    distance, found = KDTree(centers).query(xy, p=np.inf)
    return np.where(distance <= _OFF_PX, found, -1)


def unmatched_text(centers: NDArray[np.float64], xy: NDArray[np.float64], lacking: NDArray[np.bool_]) -> str:
    """Describe how far the spots without a tile are from the nearest one."""
    off = KDTree(centers).query(xy[lacking], p=np.inf)[0]
    return f"the nearest tile is {np.median(off):.3g} px away in the median"
