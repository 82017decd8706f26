"""Colours of expression, chosen to stand off H&E."""

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from numpy.typing import NDArray

from gdml._errors import did_you_mean

# Yellow over green to a dark blue green, hues that neither stain has; lightness falls evenly from 90 to 20 (CIELAB), so
# that dark is high on paper, on glass and on tissue alike. From the median pixel of faded tissue (HER2ST, colon, bulb)
# every colour is at least 38 apart (CIEDE2000; viridis 37, cividis 26, magma 29), for readers without green or red cones
# at least 31 (viridis 18, cividis 23, magma 26).
EXPRESSION = LinearSegmentedColormap.from_list(
    "expression",
    ["#f2e576", "#c8d360", "#9bbf52", "#6faa52", "#499355", "#227b54", "#00634f", "#004c45", "#003637"],
)
_ENDS = (1, 99)  # percentiles of the colour scale: single spots do not determine it


def find_cmap(cmap: str | Colormap | None) -> Colormap:
    """Give the colour map of this name; that of expression by default.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if cmap is None:
        return EXPRESSION
    if isinstance(cmap, Colormap):
        return cmap
    if cmap not in colormaps:
        raise ValueError(f"`cmap` is {cmap!r}. {did_you_mean(str(cmap), colormaps)}")
    return colormaps[cmap]


def common_scale(values: list[NDArray[np.float64]]) -> tuple[Normalize, str]:
    """Colour scale of several maps, and at which ends values lie beyond it.

    Returns
    -------
    Scale from the 1st to the 99th percentile of all values, or from the lowest to the highest where these are one; and
    ``"neither"``, ``"min"``, ``"max"`` or ``"both"``, as colour bars call their pointed ends.
    """
    every = np.concatenate(values)
    every = every[~np.isnan(every)]
    if not len(every):
        return Normalize(0, 1), "neither"
    low, high = np.percentile(every, _ENDS[0], method="lower"), np.percentile(every, _ENDS[1], method="higher")
    if low == high:
        low, high = every.min(), every.max()
    if low == high:  # constant: in the middle of a scale that has a length
        return Normalize(low - 0.5, high + 0.5), "neither"
    below, above = bool(every.min() < low), bool(every.max() > high)
    return Normalize(low, high), {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
