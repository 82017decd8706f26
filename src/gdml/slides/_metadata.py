"""Micrometres per pixel in the metadata of an image file."""

from xml.etree import ElementTree

import numpy as np

# What a slide scanner can have produced. Many files have the 72 dpi of a screen (353 um/px) instead.
BELIEVABLE = (0.05, 5.0)
_UM = {"m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "Å": 1e-4}
_UM |= {"in": 25400.0, "thou": 25.4}


def believable(um_per_px: tuple[float, float]) -> float | None:
    """Micrometres per px where plausible and equal in x and y, else None."""
    x, y = um_per_px
    return x if BELIEVABLE[0] <= x <= BELIEVABLE[1] and np.isclose(x, y, rtol=0.01) else None


def ome_um_per_px(description: str) -> tuple[float, float] | None:
    """``PhysicalSizeX`` and ``PhysicalSizeY`` of the first image of an OME-XML description, um.

    Parameters
    ----------
    description
        ``ImageDescription`` of a TIFF.

    Returns
    -------
    None where the description is no OME-XML or has no size in a unit of length; the unit is um where none is given.
    """
    if "<OME" not in description[:2000]:
        return None
    try:
        root = ElementTree.fromstring(description.strip("\x00 \n").encode())
    except ElementTree.ParseError:
        return None
    pixels = next((element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return None
    sizes = []
    for side in ("X", "Y"):
        try:
            sizes.append(
                float(pixels.get(f"PhysicalSize{side}", "")) * _UM[pixels.get(f"PhysicalSize{side}Unit", "µm")]
            )
        except (ValueError, KeyError):
            return None
    return sizes[0], sizes[1]
