"""Opening an image, whatever holds it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ._array import ArraySlide, LazySlide
from ._slide import Slide
from .scaled import ScaledSlide
from .thumbnail import LONGEST

_COORDINATES = "global"  # SpatialData's default coordinate system
_SPATIALDATA = "SpatialData image"


def open_slide(source: Any, *, um_per_px: float | None = None) -> Slide:
    """Open an image from a file, an array or a container.

    Parameters
    ----------
    source
        - path of an image file;
        - array (height, width, 3 or 4), uint8 or float in [0, 1];
        - image of a SpatialData object (DataArray or multi-scale DataTree). Coordinates are then those of its
          coordinate system: ``"global"``, or its only one. The transformation to it may scale and shift;
        - squidpy ``ImageContainer`` with one RGB layer;
        - a :class:`Slide`, which is returned as it is.
    um_per_px
        Micrometres per full-resolution px; by default from the metadata.

    Returns
    -------
    The slide. Files and lazy arrays are read region by region.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the image cannot be read, its transformation does more than scale and shift, or ``um_per_px`` is not
        positive.
    TypeError
        If ``source`` is none of the above.

    Examples
    --------
    >>> import numpy as np
    >>> slide = open_slide(np.zeros((100, 200, 3), np.uint8), um_per_px=0.5)
    >>> slide.size
    (200, 100)
    >>> slide.read_region(-10, 0, 20, 20, out=(10, 10)).shape
    (10, 10, 3)
    """
    if um_per_px is not None and not (np.isfinite(um_per_px) and um_per_px > 0):
        raise ValueError(f"`um_per_px` must be positive, found {um_per_px}.")
    slide = _open(source)
    if um_per_px is None:
        return slide
    return ScaledSlide(slide, um_per_px=float(um_per_px))


def _open(source: Any) -> Slide:
    if isinstance(source, str | os.PathLike):
        from ._file import open_file  # imports the native image libraries

        return open_file(Path(source).expanduser())
    if isinstance(source, Slide):
        return source
    if isinstance(source, np.ndarray):
        return ArraySlide(source)
    # Containers are recognised by their attributes, so that their packages need not be imported here.
    package = type(source).__module__.split(".")[0]
    if package == "squidpy" and hasattr(source, "data"):
        return LazySlide(_only_layer(source.data), name="ImageContainer")
    if package == "xarray" and hasattr(source, "dims") and hasattr(source, "isel") and hasattr(source, "dtype"):
        return _placed(LazySlide(source, name=_SPATIALDATA), source.attrs.get("transform"))
    if package == "xarray" and hasattr(source, "children") and source.children:
        levels = [next(iter(node.data_vars.values())) for node in source.children.values()]
        levels.sort(key=lambda level: level.sizes["x"])
        # Tiles come from the full resolution: SpatialData's coarser levels are point samples, which alias.
        fine = [level for level in levels if max(level.sizes["x"], level.sizes["y"]) >= LONGEST]
        slide = LazySlide(levels[-1], name=_SPATIALDATA, overview=fine[0] if fine else None)
        return _placed(slide, levels[-1].attrs.get("transform"))
    raise TypeError(
        f"An image cannot be read from {type(source).__name__}; pass a path, an array (height, width, 3), an image "
        'of a SpatialData object (sdata["name"]), a squidpy ImageContainer or a gdml.slides.Slide.'
    )


def _placed(slide: Slide, transforms: Mapping[str, Any] | None) -> Slide:
    """Apply the transformation of a SpatialData image from its pixels to its coordinate system."""
    if not transforms:
        return slide
    name = _COORDINATES if _COORDINATES in transforms else next(iter(transforms))
    if name != _COORDINATES and len(transforms) > 1:
        raise ValueError(
            f"The SpatialData image has the coordinate systems {', '.join(transforms)} and no {_COORDINATES!r}: keep the "
            "one of the spots with spatialdata.transformations.remove_transformation(image, name)."
        )
    affine = np.asarray(transforms[name].to_affine_matrix(("x", "y"), ("x", "y")), float)
    (by_x, shear_x, left), (shear_y, by_y, top) = affine[:2]
    tolerance = 1e-3 * max(abs(by_x), abs(by_y))
    if not (by_x > 0 and by_y > 0 and max(abs(shear_x), abs(shear_y), abs(by_x - by_y)) <= tolerance):
        raise ValueError(
            f"The SpatialData image is rotated, mirrored, sheared or stretched in the coordinate system {name!r} "
            f"(affine matrix {affine[:2].round(4).tolist()}), so that square tiles on the spots are not square in its "
            f"pixels. Resample it first: image = spatialdata.transform(image, to_coordinate_system={name!r})."
        )
    if by_x == by_y == 1 and left == top == 0:
        return slide
    return ScaledSlide(slide, 2 / (by_x + by_y), origin=(float(left), float(top)))


def _only_layer(dataset: Any) -> Any:
    images = {str(name): array for name, array in dataset.data_vars.items() if array.shape[-1] in (3, 4)}
    if len(images) != 1:
        raise ValueError(
            f"The ImageContainer holds {len(images)} RGB layers ({', '.join(images) or 'none'}), one is needed; "
            "pass the layer itself: container['name']."
        )
    return next(iter(images.values()))
