"""Full-resolution images as lazy arrays of several resolutions."""

import os
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdml.slides import Slide, open_slide
from gdml.slides.spatialdata import scales

_BLOCK = 1024  # px, side of the blocks that are read and stored
_SMALLEST = 1024  # px, longer side of an image that gets no further level

#: Reads the box at (left, top) of the full resolution that becomes (width, height) px when shrunk by a whole factor.
Reader = Callable[[int, int, int, int, int], NDArray[np.uint8]]


def lazy_image(source: Any, systems: Mapping[str, float]) -> Any:
    """SpatialData image of a slide, in levels of half the size each.

    Every level is read from the slide, whose own levels are used, so that no level needs the one before it.

    Parameters
    ----------
    source
        Path of an image, of which blocks are read when they are computed; or whatever else
        :func:`gdml.slides.open_slide` takes.
    systems
        Coordinate systems, with the factor from the pixels of the image to each.

    Returns
    -------
    DataTree of (3, height, width), uint8.
    """
    import xarray as xr
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import set_transformation

    slide = open_slide(source)
    path = os.path.abspath(os.path.expanduser(source)) if isinstance(source, str | os.PathLike) else None
    read_block = partial(_read_slide, slide) if path is None else partial(_read_path, path)
    (width, height), factor = slide.size, 1
    levels = []
    while factor == 1 or max(width, height) >= _SMALLEST * factor:
        pixels = _level(read_block, width // factor, height // factor, factor)
        level = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"])
        del level.attrs["transform"]
        centers = {
            "y": height / pixels.shape[1],
            "x": width / pixels.shape[2],
        }  # of pixels, in those of the first level
        levels.append(
            level.assign_coords({axis: (np.arange(level.sizes[axis]) + 0.5) * step for axis, step in centers.items()})
        )
        factor *= 2
    tree = xr.DataTree.from_dict({f"scale{i}": xr.Dataset({"image": level}) for i, level in enumerate(levels)})
    set_transformation(tree, scales(systems), set_all=True)
    Image2DModel().validate(tree)
    return tree


def _level(read_block: Reader, width: int, height: int, factor: int) -> Any:
    """Lazy array (3, height, width) of one level."""
    from uuid import uuid4

    import dask.array as da

    chunks = da.core.normalize_chunks((3, _BLOCK, _BLOCK), (3, height, width), dtype=np.uint8)

    def block(block_info: Any = None) -> NDArray[np.uint8]:
        _, (top, bottom), (left, right) = block_info[None]["array-location"]
        pixels = read_block(left * factor, top * factor, right - left, bottom - top, factor)
        return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))

    # named at random: slides have no token of their own
    return da.map_blocks(
        block, chunks=chunks, dtype=np.uint8, name=f"slide-{uuid4().hex}", meta=np.empty((0, 0, 0), np.uint8)
    )


def _read_slide(slide: Slide, left: int, top: int, width: int, height: int, factor: int) -> NDArray[np.uint8]:
    x, y = getattr(slide, "origin", (0.0, 0.0))
    return slide.read_region(left + x, top + y, width * factor, height * factor, (width, height))


def _read_path(path: str, left: int, top: int, width: int, height: int, factor: int) -> NDArray[np.uint8]:
    return _read_slide(_opened(path), left, top, width, height, factor)


@lru_cache(maxsize=4)
def _opened(path: str) -> Slide:
    """Slide of which blocks are read in any order, by several threads."""
    slide = open_slide(path)
    decode = getattr(slide, "decoded", None)
    return slide if decode is None else decode()
