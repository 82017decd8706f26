"""Positions of the panels of a figure."""

from collections.abc import Collection, Sequence
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from ._spots import SpotLayout

# inches: longest side of a panel, between panels, for the colour bar, title, scale bar, name of the slide
_PANEL_INCH, _GAP_INCH, _BAR_INCH, _TITLE_INCH, _FOOT_INCH, _LABEL_INCH = 2.6, 0.15, 0.75, 0.35, 0.3, 0.3
_NARROWEST_INCH = 2.1  # of a panel, so that its title fits
# the same for models in columns
_GRID_INCH, _GRID_TITLE_INCH, _GRID_NARROWEST_INCH, _LINE_INCH, _LETTER_INCH = 12.0, 0.22, 0.95, 0.17, 0.09


def new_axes(layouts: list[SpotLayout], counts: list[int], *, ncols: int, row_label: bool) -> list[Axes]:
    """Create a figure with axes for all panels, each in proportion to its slide.

    Positions are set in inches: matplotlib's layouts leave wide gaps between panels of fixed aspect.

    Parameters
    ----------
    layouts
        Spots of each group of panels.
    counts
        Number of panels of each group, which are side by side and share a colour bar.
    ncols
        Groups per row.
    row_label
        Leave space for the name of the slide at the left of each row.

    Returns
    -------
    Axes, group after group.
    """
    sizes = [_panel_inches(layout, _PANEL_INCH, _NARROWEST_INCH) for layout in layouts]
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


def new_grid(
    layouts: Sequence[SpotLayout], libraries: Sequence[str], n_columns: int, *, names: Collection[str], warn: bool
) -> list[Axes]:
    """Create a figure with a row of axes for each group of panels and aligned columns.

    Panels shrink with the number of columns, so that the figure fits the width of a page.

    Parameters
    ----------
    layouts
        Spots of each row.
    libraries
        Name of the slide of each row; the last row of each slide has space for a scale bar.
    n_columns
        Panels per row.
    names
        Headings of the columns.
    warn
        Leave space for a warning below the headings.

    Returns
    -------
    Axes, row after row.
    """
    longest = float(np.clip(_GRID_INCH / n_columns - _GAP_INCH, 1.05, 2.0))
    sizes = [_panel_inches(layout, longest, _GRID_NARROWEST_INCH) for layout in layouts]
    column = max(width for width, _ in sizes)
    lines = max(len(heading_lines(name, column)) for name in names)
    left = _LABEL_INCH + (_LABEL_INCH if len(set(libraries)) > 1 else 0)
    head = _LINE_INCH * (lines + warn) + 0.08
    last = [i + 1 == len(libraries) or libraries[i + 1] != libraries[i] for i in range(len(libraries))]
    heights = [
        _GRID_TITLE_INCH + size[1] + (_FOOT_INCH if end else 0.06) for size, end in zip(sizes, last, strict=True)
    ]
    total = np.array([left + (column + _GAP_INCH) * n_columns + _BAR_INCH, head + sum(heights)])

    figure = plt.figure(figsize=total)
    axes = []
    for i, (_, height) in enumerate(sizes):
        top = head + sum(heights[:i]) + _GRID_TITLE_INCH
        for j in range(n_columns):
            corner = np.array([left + j * (column + _GAP_INCH), total[1] - top - height]) / total
            axes.append(figure.add_axes((*corner, *(np.array([column, height]) / total))))
    return axes


def heading_lines(name: str, inches: float) -> list[str]:
    """Break a name into lines that fit the width of a column."""
    return wrap(name, max(4, int(inches / _LETTER_INCH))) or [""]


def _panel_inches(layout: SpotLayout, longest: float, narrowest: float) -> tuple[float, float]:
    left, right, top, bottom = layout.limits()
    inch_per_px = longest / max(right - left, bottom - top)
    return max((right - left) * inch_per_px, narrowest), (bottom - top) * inch_per_px
