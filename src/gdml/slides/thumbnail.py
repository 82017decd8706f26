"""Thumbnails of whole slides, at a cost that does not grow with the slide where the format allows it."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ._slide import Slide

LONGEST = 1024  # px
HIRES_PX, LOWRES_PX = 2000, 600  # longest side of the images in a Visium AnnData
MOST_PX = 1 << 29  # pixels decoded for a thumbnail; about five seconds
_BAND = 64  # rows of the thumbnail read at a time, fewer where they hold more than this many pixels
_BAND_PX = 1 << 26


def thumbnail(slide: "Slide", longest: int = LONGEST) -> NDArray[np.uint8] | None:
    """Whole slide as a small image.

    Parameters
    ----------
    slide
        Its method ``thumbnail(longest)`` is used where it has one, else it is read in bands.
    longest
        Longer side of the result, px; small slides are not enlarged.

    Returns
    -------
    RGB, (height, width, 3). None where more than ``MOST_PX`` pixels would have to be decoded.
    """
    own = getattr(slide, "thumbnail", None)
    if own is not None:
        return own(longest)
    width, height = slide.size
    return None if width * height > MOST_PX else read_in_bands(slide, longest)


def read_in_bands(slide: "Slide", longest: int) -> NDArray[np.uint8]:
    """Read a whole slide at reduced size, band by band, so that little of it is in memory at a time.

    Parameters
    ----------
    slide
        Read by ``read_region``, from top to bottom.
    longest
        Longer side of the result, px.

    Returns
    -------
    RGB, (height, width, 3).
    """
    (width, height), (left, top) = slide.size, getattr(slide, "origin", (0.0, 0.0))
    shrink = max(max(width, height) / longest, 1.0)
    columns, rows = max(round(width / shrink), 1), max(round(height / shrink), 1)
    step = height / rows
    most = int(np.clip(_BAND_PX / (width * step), 1, _BAND))
    bands = []
    for first in range(0, rows, most):
        n = min(most, rows - first)
        bands.append(slide.read_region(left, top + first * step, width, n * step, (columns, n)))
    return np.concatenate(bands)
