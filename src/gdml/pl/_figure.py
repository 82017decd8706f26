"""Where the panels of a figure stand."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from ._spots import SpotLayout

# inches: longest side of a panel, between panels, for the colour bar, title, scale bar, name of the slide
_PANEL_INCH, _GAP_INCH, _BAR_INCH, _TITLE_INCH, _FOOT_INCH, _LABEL_INCH = 2.6, 0.15, 0.75, 0.35, 0.3, 0.3
_NARROWEST_INCH = 2.1  # room for a title


def new_axes(layouts: list[SpotLayout], counts: list[int], *, ncols: int, row_label: bool) -> list[Axes]:
    """Make a figure with axes for all panels, each as large as its slide asks for.

    Positions are set in inches: panels have fixed aspects, for which matplotlib's own layouts leave wide gaps.

    Parameters
    ----------
    layouts
        The spots of each group of panels.
    counts
        Number of panels of each group: side by side, with one colour bar.
    ncols
        Groups in a row.
    row_label
        Leave room for the name of the slide, left of each row.

    Returns
    -------
    Axes, group after group.
    """
    sizes = [_panel_inches(layout) for layout in layouts]
    panels = max(counts)
    left = _LABEL_INCH if row_label else 0.1
    column = max(width for width, _ in sizes) * panels + _GAP_INCH * (panels - 1) + _BAR_INCH
    rows = range(0, len(counts), ncols)
    heights = [_TITLE_INCH + max(height for _, height in sizes[i : i + ncols]) + _FOOT_INCH for i in rows]
    total = np.array([left + column * min(ncols, len(counts)), sum(heights)])

    figure = plt.figure(figsize=total)
    axes = []
    for i, (count, (width, height)) in enumerate(zip(counts, sizes, strict=True)):
        top = sum(heights[: i // ncols]) + _TITLE_INCH
        for j in range(count):
            x = left + column * (i % ncols) + j * (width + _GAP_INCH)
            corner, extent = np.array([x, total[1] - top - height]) / total, np.array([width, height]) / total
            axes.append(figure.add_axes((*corner, *extent)))
    return axes


def _panel_inches(layout: SpotLayout) -> tuple[float, float]:
    left, right, top, bottom = layout.limits()
    inch_per_px = _PANEL_INCH / max(right - left, bottom - top)
    return max((right - left) * inch_per_px, _NARROWEST_INCH), (bottom - top) * inch_per_px
