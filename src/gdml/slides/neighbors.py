"""The tiles of the neighbour region of a spot."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gdml.slides import neighbor_boxes, neighbor_mask

Neighbors = Literal["exact", "lattice"]


def neighbor_tiles(
    xy: NDArray[np.float64], scale: Mapping[str, Any], n_side: int, neighbors: Neighbors
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Centres of the tiles of the neighbour region of each spot, and which of them lie inside the image.

    Parameters
    ----------
    xy
        Spot centres, full-resolution px, (n, 2).
    scale
        What :func:`gdml.pp.tile` recorded of the slide: ``side_px``, ``width`` and ``height`` are used.
    n_side
        Tiles along a side of the region, odd.
    neighbors
        ``"exact"``: the region is centred on the spot. ``"lattice"``: the tiles are those of one lattice that starts
        at the corner of the slide, around the tile that contains the spot. Neighbouring spots share them, and each
        differs from its ``"exact"`` position by at most half a side in x and in y.

    Returns
    -------
    centres : float64, (n, n_side**2, 2)
        Row-major. The middle one is the spot's own centre for both kinds.
    mask : bool, (n, n_side**2)
        True where the tile lies wholly inside the image; always in the middle.
    """
    side_px, size = float(scale["side_px"]), (int(scale["width"]), int(scale["height"]))
    middle = xy if neighbors == "exact" else (np.floor(xy / side_px) + 0.5) * side_px
    centers = neighbor_boxes(middle, side_px, n_side) + side_px / 2
    mask = neighbor_mask(middle, side_px, size, n_side)
    centers[:, n_side**2 // 2] = xy
    return centers, mask
