"""A slide known by some of its pixels, where reading all of it would be slow."""

from hashlib import blake2b

import numpy as np

from ._slide import Slide

_PATCHES, _PATCH_PX = 8, 128
_UINT8 = np.dtype(np.uint8)


def patch_hash(slide: Slide, dtype: np.dtype = _UINT8) -> str:
    """Hash of a grid of patches of a slide, hexadecimal: equal for equal pixels, whatever holds them.

    Parameters
    ----------
    slide
        Read from top to bottom, at native resolution.
    dtype
        Of the pixels before they were made uint8.
    """
    width, height = slide.size
    digest = blake2b(repr((width, height, str(dtype))).encode(), digest_size=16)
    for top in np.unique(np.linspace(0, max(height - _PATCH_PX, 0), _PATCHES).astype(int)):
        for left in np.unique(np.linspace(0, max(width - _PATCH_PX, 0), _PATCHES).astype(int)):
            right, bottom = min(left + _PATCH_PX, width), min(top + _PATCH_PX, height)
            patch = slide.read_region(left, top, right - left, bottom - top, (right - left, bottom - top))
            digest.update(np.ascontiguousarray(patch).data)
    return digest.hexdigest()
