"""What covers or spoils tissue on a thumbnail: ink, folds, and what is out of focus.

The rules miss rather than invent: on the ten real sections of ``benchmarks/tissue.py`` they take next to nothing away.
"""

import numpy as np
from numpy.typing import NDArray
from skimage.filters import apply_hysteresis_threshold, gaussian
from skimage.measure import label, regionprops
from skimage.morphology import isotropic_closing, isotropic_dilation, isotropic_opening

_Mask = NDArray[np.bool_]
_Floats = NDArray[np.floating]

# ink
_NIB, _RIM, _STROKE = 15.0, 40.0, 5e4  # half the least width and the rim of a stroke, um; its least area, um**2
_COLOURED = 0.2  # least mean density
_INKY, _INKY_OVER_TISSUE = 0.45, 0.3  # redder in density than any stain; over tissue, than the tissue by this much
_RED_EVEN, _PALE, _ON_GLASS = (
    0.15,
    0.12,
    0.2,
)  # relative variation along a red stroke; density and share of glass around

# folds
_FOLD_WINDOW = 20.0  # um
_HUES = 16
_DOUBLED = 1.3  # times the 90th percentile of the density of tissue of the same hue
_FOLD_LENGTH, _FOLD_WIDTH, _SLENDER, _FOLD_AREA = 500.0, 200.0, 3.5, 2e4  # um, um, length by width, um**2

# focus
_FOCUS_WINDOW, _FOCUS_AREA = 100.0, 5e4  # um, um**2
_NOISE = 4e-6  # variance of density by rounding to 8 bits
_SOFT, _SOFTER = -0.8, 0.7  # logarithm of the ratio of amplitudes; below the median of the slide


def without_small(mask: _Mask, area: float) -> _Mask:
    """Mask without the parts smaller than ``area`` px."""
    parts = label(mask, connectivity=1)
    large = np.bincount(parts.ravel()) >= area
    large[0] = False
    return large[parts]


def find_ink(channels: _Floats, um: float) -> _Mask:
    """Pen marks: hues that haematoxylin and eosin do not have, and what is black.

    Hue and saturation are those of optical density: the chromatic coordinates of van der Laak et al. 2000 (Cytometry
    39:275), which do not depend on the amount of dye.

    Parameters
    ----------
    channels
        Optical density, (h, w, 3).
    um
        Micrometres per px.

    Returns
    -------
    (h, w), with the rim of the strokes.
    """
    red, green, blue = (gaussian(channels[..., c], 1) for c in range(3))
    density = (red + green + blue) / 3
    divisor = np.maximum(density, 1e-3)
    x, y = red / divisor - 1, (green - blue) / (np.sqrt(3) * divisor)
    dense = density > _COLOURED
    coloured = dense if dense.any() else np.ones_like(dense)
    # stains differ between laboratories: ink also differs from most of what is coloured on the slide
    usual_x, usual_y, usual_density = (float(np.median(values[coloured])) for values in (x, y, density))
    unlike, nearly = usual_x + _INKY_OVER_TISSUE, usual_x + _INKY_OVER_TISSUE / 2
    over_tissue = min(unlike, max(0.35, nearly))
    blues = apply_hysteresis_threshold(np.where(dense, x, -1.0), over_tissue, max(_INKY, unlike))
    deep = (density > 0.5) & (y > max(0.5, usual_y + 0.2))
    blues |= apply_hysteresis_threshold(np.where(deep, x, -1.0), min(over_tissue, 0.25), max(0.25, nearly))
    greens = apply_hysteresis_threshold(np.where(dense & (x > -0.3), usual_y - y, -1.0), 0.3, 0.45)
    blacks = np.minimum(np.minimum(red, green), blue) > max(0.75, 2 * usual_density)
    blacks &= np.hypot(x, y) < 0.15
    ink = np.zeros(density.shape, bool)
    for colour in (blues, greens, blacks, _red_on_glass(x, y, green, density, um)):
        ink |= without_small(isotropic_opening(colour, _NIB / um), _STROKE / um**2)
    return isotropic_dilation(ink, _RIM / um) if ink.any() else ink


def _red_on_glass(x: _Floats, y: _Floats, green: _Floats, density: _Floats, um: float) -> _Mask:
    """Red ink. Blood has its hue, but is not as even, nor does so much of its outline lie on glass."""
    variance = gaussian(density**2, 3) - gaussian(density, 3) ** 2
    even = np.sqrt(np.maximum(variance, 0)) < _RED_EVEN * density
    seeds = isotropic_opening(even & (x < -0.6) & (y < 0.3) & (green > 0.5), _RIM / um)
    parts = label(without_small(seeds, _STROKE / um**2), connectivity=1)
    strokes = np.zeros_like(seeds)
    for i in range(1, parts.max() + 1):
        one = parts == i
        rim = isotropic_dilation(one, 2 * _RIM / um) & ~isotropic_dilation(one, _RIM / um)
        strokes |= one & (np.mean(density[rim] < _PALE) > _ON_GLASS)
    reddish = (x < -0.45) & (y < 0.35) & (green > 0.5)
    return apply_hysteresis_threshold(reddish + strokes.astype(np.int8), 0.5, 1.5)


def find_folds(channels: _Floats, tissue: _Mask, um: float) -> _Mask:
    """Folds: long and narrow, and far denser than the rest of the slide is where it has the same hue.

    Two layers of tissue have the hue of one. Dense nuclei are dark too, but they have a hue of their own.

    Parameters
    ----------
    channels
        Optical density, (h, w, 3).
    tissue
        Where there is tissue, (h, w).
    um
        Micrometres per px.

    Returns
    -------
    (h, w).
    """
    smoothed = np.stack([gaussian(channels[..., c], _FOLD_WINDOW / um) for c in range(3)], -1)[tissue]
    density = smoothed.mean(1)
    hue = smoothed[:, 0] / np.maximum(density, 1e-3)
    edges = np.quantile(hue, np.linspace(0, 1, _HUES + 1)[1:-1])
    bins = np.searchsorted(edges, hue)
    dense = np.zeros(tissue.shape, bool)
    usual = np.array([np.quantile(density[bins == i], 0.9) if (bins == i).any() else np.inf for i in range(_HUES)])
    dense[tissue] = density > _DOUBLED * usual[bins]
    parts = label(without_small(dense, _FOLD_AREA / um**2), connectivity=1)
    folds = np.zeros_like(dense)
    for part in regionprops(parts):
        length, width = part.axis_major_length, part.axis_minor_length
        narrow = part.area / length * um < _FOLD_WIDTH and length > _SLENDER * width
        if length * um > _FOLD_LENGTH and narrow:
            folds[parts == part.label] = True
    return folds


def find_blurred(density: _Floats, tissue: _Mask, um: float) -> _Mask:
    """Tissue out of focus: its finest detail is faint beside the next coarser one, compared with the rest of the slide.

    The ratio of the two, unlike the amount of detail, is nearly the same in all sharp tissue.

    Parameters
    ----------
    density
        Mean optical density, (h, w).
    tissue
        Where there is tissue, (h, w).
    um
        Micrometres per px.

    Returns
    -------
    (h, w). A blur narrower than about 10 um or 1.5 px is not seen.
    """
    fine, coarse = gaussian(density, 1), gaussian(density, 3)
    window = _FOCUS_WINDOW / um
    detail = np.maximum(gaussian((density - fine) ** 2, window) - _NOISE, _NOISE / 10)
    shape = gaussian((fine - coarse) ** 2, window) + _NOISE
    sharpness = 0.5 * np.log(detail / shape)
    soft = tissue & (sharpness < min(_SOFT, float(np.median(sharpness[tissue])) - _SOFTER))
    soft = isotropic_opening(isotropic_closing(soft, _FOCUS_WINDOW / um), _FOCUS_WINDOW / 2 / um)
    return without_small(soft & tissue, _FOCUS_AREA / um**2)
