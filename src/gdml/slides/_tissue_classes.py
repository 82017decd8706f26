"""Tissue and glass on a thumbnail; what is neither is found by :mod:`gdml.slides._artefacts`.

scikit-image's filters do the work. squidpy's ``experimental.im.detect_tissue`` is not used: it needs a SpatialData, may
change, and takes pen marks for tissue. ``benchmarks/tissue.py`` compares the two.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from skimage.filters import gaussian
from skimage.measure import label
from skimage.morphology import isotropic_closing, isotropic_dilation, isotropic_opening
from skimage.segmentation import clear_border

from ._artefacts import find_blurred, find_folds, find_ink, without_small
from ._tissue_map import BLURRED, FOLD, GLASS, PEN, TISSUE
from .glass import optical_density, smooth_areas, texture

# um
_WINDOW = 24.0  # of the texture
_SHADING = 1200.0  # the tint of glass varies on no smaller scale
_GAP = 25.0  # half the width of clefts that are closed
_THIN = 30.0  # half the width of what is too thin for tissue, such as hairs
# um**2
_SEED = 1.5e4  # of dense pixels that hang together; the fiducials of Visium are smaller
_HOLE = 112.0**2  # holes in tissue up to a tile are tissue
_SPECK = 5e4  # smaller pieces are dust

_FAINTEST, _FAINT = 0.02, 0.2  # least density above that of glass: absolute, and relative to the tissue's
_DARK = 3  # times as much suffices without texture
_SHADED = 0.3  # of the way from glass to tissue: the densest that smooth areas are still glass
_ROUGH, _STAINED = -4.2, 0.12  # 95th percentile of texture or median density, either, of images without glass
_BLACK, _WHITE, _PADDING = 10, 254, 0.005  # grey levels that scanners fill with, and the least share of the image


def classify(image: NDArray[np.uint8], um: float, *, focus: bool = True) -> NDArray[np.uint8]:
    """Class of each pixel of a thumbnail.

    Parameters
    ----------
    image
        RGB, (h, w, 3), about 8 um per px.
    um
        Micrometres per px of the thumbnail.
    focus
        Look for what is out of focus. The pixels must be larger than those of the scan, in which nothing is sharp.

    Returns
    -------
    Codes of ``CLASSES``, (h, w).
    """
    channels = optical_density(image)
    density = channels.mean(2)
    black, white = _padding(image.max(2) <= _BLACK), _padding(image.min(2) >= _WHITE)
    ink = find_ink(channels, um) & ~black
    tissue, with_glass = _find_tissue(density, ink | black | white, um)
    if white.any() and not with_glass:  # the glass itself is white
        tissue, with_glass = _find_tissue(density, ink | black, um)
    labels = np.full(density.shape, GLASS, np.uint8)
    labels[tissue] = TISSUE
    labels[ink] = PEN
    if with_glass and tissue.any():
        labels[find_folds(channels, tissue, um)] = FOLD
    if focus and tissue.any():
        labels[find_blurred(density, tissue, um) & (labels == TISSUE)] = BLURRED
    return labels


def _padding(flat: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Areas of one colour that are large and reach the edge of the image: what fills the frame around a scan."""
    areas = label(without_small(flat, _PADDING * flat.size), connectivity=1)
    return (areas > 0) & (clear_border(areas) == 0)


def _find_tissue(density: NDArray[np.floating], other: NDArray[np.bool_], um: float) -> tuple[NDArray[np.bool_], bool]:
    """Tissue, and whether there is glass in the image too, apart from what is neither (``other``)."""
    sigma = max(_WINDOW / um, 1.5)
    known = ~isotropic_dilation(other, sigma) if other.any() else np.ones(density.shape, bool)
    grain = texture(density, sigma, known if other.any() else None)
    smooth = smooth_areas(grain, density, known)
    if smooth is None:
        covered = known.any() and (np.quantile(grain[known], 0.95) > _ROUGH or np.median(density[known]) > _STAINED)
        tissue = np.full(density.shape, bool(covered))
    else:
        tissue = _dense(density, smooth & known, ~smooth & known, um)
    # what is left of the rim of ink is thin
    tissue = isotropic_opening(tissue & ~other, _THIN / um) if smooth is not None or other.any() else tissue
    return without_small(tissue, _SPECK / um**2) if smooth is not None else tissue, smooth is not None


def _dense(
    density: NDArray[np.floating], smooth: NDArray[np.bool_], rough: NDArray[np.bool_], um: float
) -> NDArray[np.bool_]:
    """Tissue among textured areas: what is denser than the glass around it, with small gaps and holes filled."""
    glass, typical = np.median(density[smooth]), np.median(density[rough])
    clear = smooth & (density < glass + _SHADED * (typical - glass))
    window = max(int(_SHADING / um), 3)
    share = uniform_filter(clear.astype(np.float32), window)
    around = uniform_filter(np.where(clear, density, 0).astype(np.float32), window)
    excess = gaussian(density, 1) - (around + 1e-3 * glass) / (share + 1e-3)
    least = max(_FAINTEST, _FAINT * float(np.median(excess[rough])))
    solid = (rough & (excess > least)) | (excess > _DARK * least)
    # dust and fiducials are many small spots: they count near large areas alone
    solid &= isotropic_dilation(without_small(solid, _SEED / um**2), 2 * _GAP / um)
    margin = int(_GAP / um) + 2
    closed = isotropic_closing(np.pad(solid, margin, mode="edge"), _GAP / um)[margin:-margin, margin:-margin]
    return ~without_small(~closed, _HOLE / um**2)
