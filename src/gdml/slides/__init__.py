"""Where pixels come from: one small protocol over files, arrays, SpatialData and squidpy images."""

from ._geometry import (
    grid_kind,
    neighbor_boxes,
    neighbor_mask,
    tile_side_px,
    um_per_px_from_grid,
    um_per_px_from_neighbors,
)
from ._open import open_slide
from ._scaled import ScaledSlide
from ._slide import Slide

__all__ = [
    "ScaledSlide",
    "Slide",
    "grid_kind",
    "neighbor_boxes",
    "neighbor_mask",
    "open_slide",
    "tile_side_px",
    "um_per_px_from_grid",
    "um_per_px_from_neighbors",
]
