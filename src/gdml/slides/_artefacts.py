"""What covers or spoils tissue on a thumbnail: ink, folds, and what is out of focus.

The rules miss rather than invent: on the ten real sections of ``benchmarks/tissue.py`` they take next to nothing away.
"""

import numpy as np
from numpy.typing import NDArray
from skimage.filters import apply_hysteresis_threshold, gaussian
from skimage.measure import label, regionprops

from ._morphology import closed, grown, opened, without_small

_Mask = NDArray[np.bool_]
_Floats = NDArray[np.floating]

# ink
_NIB, _RIM, _STROKE = 15.0, 40.0, 5e4  # half the least width and the rim of a stroke, um; its least area, um**2
_COLOURED = 0.2  # least mean density
_INKY = 0.45  # chromaticity that no stain reaches: dense in red above all
_UNLIKE = 0.3  # difference from the usual chromaticity of the slide
_EVEN = 0.15  # relative variation of density along a red stroke
_PALE, _ON_GLASS = 0.12, 0.2  # density of glass, and the least share of it around a red stroke

# folds
_FOLD_WINDOW = 20.0  # um
_HUES = 16
_DOUBLED = 1.3  # times the 90th percentile of the density of tissue of the same hue
_FOLD_LENGTH, _FOLD_WIDTH, _SLENDER, _FOLD_AREA = 500.0, 200.0, 3.5, 2e4  # um, um, length by width, um**2

# focus
_FOCUS_WINDOW, _FOCUS_AREA = 100.0, 5e4  # um, um**2
_NOISE = 4e-6  # variance of density by rounding to 8 bits
_SOFT, _SOFTER = -0.8, 0.7  # logarithm of the ratio of amplitudes; below the median of the slide


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
    x, y = red / divisor - 1, (green - blue) / (3**0.5 * divisor)
    dense = density > _COLOURED
    if not dense.any():
        return dense
    # stains differ between laboratories: ink also differs from most of what is coloured on the slide
    usual_x, usual_y, usual_density = (float(np.median(values[dense])) for values in (x, y, density))
    unlike = usual_x + _UNLIKE
    over_tissue = min(unlike, max(0.35, usual_x + _UNLIKE / 2))  # mixed with stain; beside surer pixels alone
    blues = apply_hysteresis_threshold(np.where(dense, x, -1.0), over_tissue, max(_INKY, unlike))
    deep = np.where((density > 0.5) & (y > 0.5), x, -1.0)  # equally dense in red and green, as dark blue inks are
    blues |= apply_hysteresis_threshold(deep, min(over_tissue, 0.25), max(0.3, usual_x + 0.1))
    greens = apply_hysteresis_threshold(np.where(dense & (x > -0.3), usual_y - y, -1.0), _UNLIKE, 1.5 * _UNLIKE)
    blacks = np.minimum(np.minimum(red, green), blue) > max(0.75, 2 * usual_density)
    blacks &= np.hypot(x, y) < 0.15
    ink = np.zeros(density.shape, bool)
    for colour in (blues, greens, blacks, _red_on_glass(x, y, green, density, um)):
        ink |= without_small(opened(colour, _NIB / um), _STROKE / um**2)
    return grown(ink, _RIM / um)


def _red_on_glass(x: _Floats, y: _Floats, green: _Floats, density: _Floats, um: float) -> _Mask:
    """Red ink. Blood has its hue, but is not as even, nor does so much of its outline lie on glass."""
    variance = gaussian(density**2, 3) - gaussian(density, 3) ** 2
    even = np.sqrt(np.maximum(variance, 0)) < _EVEN * density
    seeds = opened(even & (x < -0.6) & (y < 0.3) & (green > 0.5), _RIM / um)
    strokes, margin = np.zeros_like(seeds), int(2 * _RIM / um) + 1
    for part in regionprops(label(without_small(seeds, _STROKE / um**2), connectivity=1)):
        top, left, bottom, right = part.bbox
        box = np.s_[max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin]
        one = np.zeros_like(seeds[box])
        one[tuple(part.coords.T - [[start.start] for start in box])] = True
        rim = grown(one, 2 * _RIM / um) & ~grown(one, _RIM / um)
        if rim.any() and np.mean(density[box][rim] < _PALE) > _ON_GLASS:
            strokes[box] |= one
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
    folds = np.zeros_like(dense)
    for part in regionprops(label(without_small(dense, _FOLD_AREA / um**2), connectivity=1)):
        length, width = part.axis_major_length, part.axis_minor_length
        narrow = part.area / length * um < _FOLD_WIDTH and length > _SLENDER * width
        if length * um > _FOLD_LENGTH and narrow:
            folds[part.slice] |= part.image
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
    soft = opened(closed(soft, _FOCUS_WINDOW / um), _FOCUS_WINDOW / 2 / um)
    # sharp detail within the window hides the rim of what is soft
    return grown(without_small(soft & tissue, _FOCUS_AREA / um**2), window) & tissue
