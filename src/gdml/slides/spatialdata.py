"""Images of SpatialData objects: in their own pixels, or in one of their coordinate systems.

They are recognised by their attributes, so that spatialdata need not be imported to read them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._array import LazySlide
from ._slide import Slide
from .scaled import ScaledSlide

GLOBAL = "global"  # SpatialData's default coordinate system
NAME = "SpatialData image"
TOLERANCE = 1e-3  # of the scale, for what is not quite a rotation


def is_element(source: Any) -> bool:
    """Whether ``source`` is an image as SpatialData holds it: a DataArray, or a DataTree of several resolutions."""
    if type(source).__module__.split(".")[0] != "xarray":
        return False
    return (hasattr(source, "isel") and hasattr(source, "dtype")) or bool(getattr(source, "children", None))


def open_pixels(element: Any, name: str = NAME) -> LazySlide:
    """Open an image in its own pixels, whatever its transformations are.

    Parameters
    ----------
    element
        DataArray or multi-scale DataTree.
    name
        Name of the slide, for messages.
    """
    levels = _levels(element)
    # Tiles come from the full resolution: coarser levels may be point samples, which alias.
    return LazySlide(levels[0], name=name, overviews=levels[1:])


def open_placed(element: Any, coordinate_system: str | None = None) -> Slide:
    """Open an image in the coordinates of one of its coordinate systems.

    Parameters
    ----------
    element
        DataArray or multi-scale DataTree.
    coordinate_system
        None takes ``"global"``, or the only one.

    Raises
    ------
    KeyError
        If the image has no such coordinate system.
    ValueError
        If there are several and none is named, or the transformation does more than scale and shift.
    """
    slide: Slide = open_pixels(element)
    transforms = _levels(element)[0].attrs.get("transform") or {}
    if not transforms and coordinate_system is None:
        return slide
    name = coordinate_system
    if name is None:
        if GLOBAL not in transforms and len(transforms) > 1:
            raise ValueError(
                f"The SpatialData image has the coordinate systems {', '.join(transforms)} and no {GLOBAL!r}: name the one "
                "of the spots, gdml.slides.open_slide(image, coordinate_system=...)."
            )
        name = GLOBAL if GLOBAL in transforms else next(iter(transforms))
    if name not in transforms:
        raise KeyError(
            f"`coordinate_system` is {name!r}, but the SpatialData image has {', '.join(transforms) or 'none'}."
        )
    affine = matrix(transforms[name], f"the SpatialData image to {name!r}")
    (by_x, shear_x, left), (shear_y, by_y, top) = affine[:2]
    tolerance = TOLERANCE * max(abs(by_x), abs(by_y))
    if not (by_x > 0 and by_y > 0 and max(abs(shear_x), abs(shear_y), abs(by_x - by_y)) <= tolerance):
        raise ValueError(
            f"The SpatialData image is rotated, mirrored, sheared or stretched in the coordinate system {name!r} "
            f"(affine matrix {affine[:2].round(4).tolist()}), so that square tiles on the spots are not square in its "
            f"pixels. Resample it first: image = spatialdata.transform(image, to_coordinate_system={name!r})."
        )
    if by_x == by_y == 1 and left == top == 0:
        return slide
    return ScaledSlide(slide, 2 / (by_x + by_y), origin=(float(left), float(top)))


def matrix(transformation: Any, what: str) -> NDArray[np.float64]:
    """Affine matrix of a transformation, (3, 3), of (x, y).

    Parameters
    ----------
    transformation
        Of spatialdata.
    what
        What it takes where, for messages.

    Raises
    ------
    ValueError
        If it has none, or one that is not finite or has no inverse.
    """
    try:
        affine = np.asarray(transformation.to_affine_matrix(("x", "y"), ("x", "y")), np.float64)
    except (AttributeError, ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"The transformation of {what} is broken ({error}); set it again with "
            "spatialdata.transformations.set_transformation."
        ) from error
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:2, :2])) < 1e-18:
        raise ValueError(
            f"The transformation of {what} has no inverse (affine matrix {affine[:2].round(4).tolist()}); set it again "
            "with spatialdata.transformations.set_transformation."
        )
    return affine


def scales(systems: Mapping[str, float]) -> dict[str, Any]:
    """Make transformations to coordinate systems, by the factor to each."""
    from spatialdata.transformations import Identity, Scale

    return {name: Identity() if by == 1 else Scale([by, by], ("x", "y")) for name, by in systems.items()}


def _levels(element: Any) -> list[Any]:
    """Resolutions of an image, the finest first."""
    children = getattr(element, "children", None)
    if not children:
        return [element]
    levels = [next(iter(node.data_vars.values())) for node in children.values()]
    return sorted(levels, key=lambda level: level.sizes["x"], reverse=True)
