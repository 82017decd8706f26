"""Binary morphology with discs of any radius; scikit-image's is undefined where a mask is all True or all False."""

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label
from skimage.morphology import isotropic_dilation, isotropic_erosion

_Mask = NDArray[np.bool_]


def grown(mask: _Mask, radius: float) -> _Mask:
    """Mask with a rim of ``radius`` px."""
    return isotropic_dilation(mask, radius) if mask.any() else mask


def opened(mask: _Mask, radius: float) -> _Mask:
    """Mask without what is narrower than a disc of ``radius`` px; nothing is cut at the edge of the image."""
    return grown(_shrunk(mask, radius), radius)


def closed(mask: _Mask, radius: float) -> _Mask:
    """Mask with gaps filled that a disc of ``radius`` px does not fit into."""
    margin = int(radius) + 2
    return _shrunk(grown(np.pad(mask, margin, mode="edge"), radius), radius)[margin:-margin, margin:-margin]


def without_small(mask: _Mask, area: float) -> _Mask:
    """Mask without the parts smaller than ``area`` px."""
    if not mask.any():
        return mask
    parts = label(mask, connectivity=1)
    large = np.bincount(parts.ravel()) >= area
    large[0] = False
    return large[parts]


def _shrunk(mask: _Mask, radius: float) -> _Mask:
    return isotropic_erosion(mask, radius) if mask.any() and not mask.all() else mask
