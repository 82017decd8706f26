"""Scale bar of a map."""

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes

from ._page import size_mm


def scale_bar(ax: Axes, um_per_px: float | None, *, fontsize: float | str = "small", below_pt: float = 6.0) -> None:
    """Draw a scale bar of a round length below the axes, whose unit is a px; none if the scale is unknown."""
    if um_per_px is None:
        return
    left, right = ax.get_xlim()
    longest = 0.3 * (right - left) * um_per_px
    power = 10.0 ** np.floor(np.log10(longest))
    length = max(step * power for step in (1, 2, 5) if step * power <= longest)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    below = -below_pt / 72 * 25.4 / size_mm(ax)[1]
    bar_end = left + length / um_per_px
    ax.plot(
        [left, bar_end], [below, below], transform=ax.get_xaxis_transform(), color="black", lw=1.5,
        solid_capstyle="butt", clip_on=False,
    )  # fmt: skip
    ax.annotate(
        label, (bar_end, below), xycoords=ax.get_xaxis_transform(), xytext=(3, 0), textcoords="offset points",
        va="center", fontsize=fontsize, annotation_clip=False,
        path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
    )  # fmt: skip
