"""One door to every source of pixels."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from ._array import ArraySlide, LazySlide
from ._scaled import ScaledSlide
from ._slide import Slide


def open_slide(source: Any, *, um_per_px: float | None = None) -> Slide:
    """Open an image, whatever holds it.

    Parameters
    ----------
    source
        Path of an image file; array (height, width, 3 or 4), uint8 or float in [0, 1]; image of a
        SpatialData object (DataArray or multi-scale DataTree, its pixels are those of the full
        resolution); squidpy ``ImageContainer`` with one image layer; or a :class:`Slide`.
    um_per_px
        Micrometres per full-resolution px, in place of what the metadata say.

    Returns
    -------
    The slide. Files are read region by region; nothing is decoded whole.

    Raises
    ------
    FileNotFoundError
        If a path leads nowhere.
    ValueError
        If the image cannot be read or ``um_per_px`` is not positive.
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
        from ._file import open_file  # native image libraries, only where a file is read

        return open_file(Path(source).expanduser())
    if isinstance(source, Slide):
        return source
    if isinstance(source, np.ndarray):
        return ArraySlide(source)
    # The containers are known by their looks, so that none of their packages has to be imported here.
    package = type(source).__module__.split(".")[0]
    if package == "squidpy" and hasattr(source, "data"):
        return LazySlide(_only_layer(source.data), name="ImageContainer")
    if package == "xarray" and hasattr(source, "dims") and hasattr(source, "isel") and hasattr(source, "dtype"):
        return LazySlide(source, name="SpatialData image")
    if package == "xarray" and hasattr(source, "children") and source.children:
        # Only the full resolution: the coarser levels that SpatialData makes are point samples, which alias.
        levels = [next(iter(node.data_vars.values())) for node in source.children.values()]
        return LazySlide(max(levels, key=lambda level: level.sizes["x"]), name="SpatialData image")
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
