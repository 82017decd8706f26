"""Which tiles stand for the surroundings of a spot, and how they turn with it."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gdml.slides.geometry import neighbor_boxes, neighbor_mask

Neighbors = Literal["exact", "lattice"]
N_VIEWS = 8


def neighbor_tiles(
    xy: NDArray[np.float64], scale: Mapping[str, Any], n_side: int, neighbors: Neighbors
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Centres of the tiles of the neighbour region of each spot, and which of them there are.

    Parameters
    ----------
    xy
        Spot centres, full-resolution px, (n, 2).
    scale
        What :func:`gdml.pp.tile` recorded of the slide: ``side_px``, ``width``, ``height``, ``left`` and ``top`` are used.
    n_side
        Tiles along a side of the region, odd.
    neighbors
        ``"exact"``: the region is centred on the spot. ``"lattice"``: the tiles of one lattice as wide as
        a tile from the corner of the slide, those around the tile that the spot lies in; each lies at most
        half a side, in x and in y, from where ``"exact"`` has it, and neighbouring spots share them.

    Returns
    -------
    centres : float64, (n, n_side**2, 2)
        Row-major. The one in the middle is the spot's own centre, whatever the kind.
    mask : bool, (n, n_side**2)
        True where the tile lies wholly inside the image; always in the middle.
    """
    side_px, size = float(scale["side_px"]), (int(scale["width"]), int(scale["height"]))
    middle = xy if neighbors == "exact" else (np.floor(xy / side_px) + 0.5) * side_px
    centers = neighbor_boxes(middle, side_px, n_side) + side_px / 2
    corner = (float(scale.get("left", 0.0)), float(scale.get("top", 0.0)))
    mask = neighbor_mask(middle - np.asarray(corner), side_px, size, n_side)
    centers[:, n_side**2 // 2] = xy
    return centers, mask


def turned_order(n_side: int, view: int) -> NDArray[np.intp]:
    """Where each tile of a turned region lay before it was turned.

    Parameters
    ----------
    n_side
        Tiles along a side of the region.
    view
        0 to 7: quarter turns counterclockwise, plus 4 for a mirroring left to right after them.

    Returns
    -------
    (n_side**2,), row-major places in the region as it lies in the slide.
    """
    places = np.rot90(np.arange(n_side**2).reshape(n_side, n_side), view % 4)
    return (places[:, ::-1] if view >= 4 else places).ravel()
