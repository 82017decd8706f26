"""Opening an image, whatever holds it."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from ._array import ArraySlide, LazySlide
from ._slide import Slide
from .scaled import ScaledSlide
from .spatialdata import is_element, open_placed


def open_slide(source: Any, *, um_per_px: float | None = None, coordinate_system: str | None = None) -> Slide:
    """Open an image from a file, an array or a container.

    Parameters
    ----------
    source
        - path of an image file, or of an image in a SpatialData store or another OME-Zarr (``"x.zarr/images/name"``),
          in its pixels;
        - array (height, width, 3 or 4), uint8 or float in [0, 1];
        - image of a SpatialData object (DataArray or multi-scale DataTree), in the coordinates of
          ``coordinate_system``. The transformation to it may scale and shift;
        - squidpy ``ImageContainer`` with one RGB layer;
        - a :class:`Slide`, which is returned as it is.
    um_per_px
        Micrometres per full-resolution px; by default from the metadata.
    coordinate_system
        Of an image of a SpatialData object; None: ``"global"``, or its only one.

    Returns
    -------
    The slide. Files and lazy arrays are read region by region.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    KeyError
        If the image has no such coordinate system.
    ValueError
        If the image cannot be read, its transformation does more than scale and shift, it has several coordinate
        systems and none is named, or ``um_per_px`` is not positive.
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
    slide = open_placed(source, coordinate_system) if is_element(source) else _open(source)
    if um_per_px is None:
        return slide
    return ScaledSlide(slide, um_per_px=float(um_per_px))


def _open(source: Any) -> Slide:
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        if path.is_dir():
            from ._zarr import open_ome_zarr

            return open_ome_zarr(path)
        from ._file import open_file  # imports the native image libraries

        return open_file(path)
    if isinstance(source, Slide):
        return source
    if isinstance(source, np.ndarray):
        return ArraySlide(source)
    # Containers are recognised by their attributes, so that their packages need not be imported here.
    if type(source).__module__.split(".")[0] == "squidpy" and hasattr(source, "data"):
        return LazySlide(_only_layer(source.data), name="ImageContainer")
    raise TypeError(
        f"An image cannot be read from {type(source).__name__}; pass a path, an array (height, width, 3), an image "
        'of a SpatialData object (sdata["name"]), a squidpy ImageContainer or a gdml.slides.Slide.'
    )


def _only_layer(dataset: Any) -> Any:
    images = {str(name): array for name, array in dataset.data_vars.items() if array.shape[-1] in (3, 4)}
    if len(images) != 1:
        raise ValueError(
            f"The ImageContainer holds {len(images)} RGB layers ({', '.join(images) or 'none'}), one is needed; "
            "pass the layer itself: container['name']."
        )
    return next(iter(images.values()))
