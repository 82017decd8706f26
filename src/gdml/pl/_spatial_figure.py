"""Positions of the maps of a figure, in millimetres of a printed page."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._page import COLUMN_MM, HEAD_PT, PAGE_MM, SMALL_PT, TEXT_PT, inches, lines_mm
from ._spots import SpotLayout

# mm: edge of the figure, between panels, between groups, colour bar with its label, scale bar, between rows
_EDGE, GAP, _BETWEEN, _BAR, _FOOT, _ROWS = 1.0, 2.0, 4.0, 13.0, 4.5, 2.0
_PAD = 1.6  # around the lines above a panel
_TALLEST, _NARROWEST = 1.4, 14.0  # height over width of a panel; width
# the same for models in columns
_GRID_WIDEST, _GRID_NARROWEST, _NAMES, _GRID_BAR, _GRID_LABEL, EACH_BAR = 34.0, 11.0, 9.0, 9.0, 7.0, 4.5
_GRID_ROWS = 1.5


def rows_of(libraries: Sequence[str], ncols: int, *, by_slide: bool) -> list[list[int]]:
    """Divide groups into rows; ``by_slide``: each slide begins a row."""
    rows: list[list[int]] = []
    for i, name in enumerate(libraries):
        if not rows or len(rows[-1]) == ncols or (by_slide and name != libraries[i - 1]):
            rows.append([])
        rows[-1].append(i)
    return rows


def panel_mm(n_panels: int, n_bars: int, ncols: int) -> float:
    """Width of a panel where ``ncols`` groups of as many panels and colour bars stand side by side on the page."""
    total = COLUMN_MM if ncols == 1 else PAGE_MM
    group = (total - 2 * _EDGE - _BETWEEN * (ncols - 1)) / ncols
    return max((group - n_bars * _BAR - GAP * (n_panels - 1)) / n_panels, _NARROWEST)


def beside_bars(widths: list[float], *, each: bool) -> list[float]:
    """Widths of the texts above the panels of a group, which may reach over the colour bar at their right."""
    return [width + (_BAR - GAP if each or i + 1 == len(widths) else 0) for i, width in enumerate(widths)]


def new_axes(
    layouts: Sequence[SpotLayout],
    counts: Sequence[int],
    rows: Sequence[Sequence[int]],
    *,
    width: float,
    each: bool,
    n_lines: int,
) -> list[Axes]:
    """Create a figure with axes for all panels.

    Positions are set in millimetres: matplotlib's layouts leave wide gaps between panels of fixed aspect.

    Parameters
    ----------
    layouts
        Spots of each group of panels.
    counts
        Number of panels of each group, which are side by side.
    rows
        Groups of each row of the figure.
    width
        Of a panel, mm.
    each
        Each panel has a colour bar; else each group.
    n_lines
        Lines of text between the heading of a group and its panels.

    Returns
    -------
    Axes, group after group.
    """
    step = width + GAP + (_BAR if each else 0)
    group = step * max(counts) - GAP + (0 if each else _BAR)
    head = lines_mm(1, HEAD_PT) + lines_mm(n_lines, TEXT_PT) + _PAD
    heights = [_height(layout, width) for layout in layouts]
    tops = np.cumsum([0.0, *(head + max(heights[i] for i in row) + _FOOT + _ROWS for row in rows)])
    columns = max(len(row) for row in rows)
    total = (2 * _EDGE + group * columns + _BETWEEN * (columns - 1), float(tops[-1]) - _ROWS)

    figure = plt.figure(figsize=(inches(total[0]), inches(total[1])))
    axes = []
    for top, row in zip(tops, rows, strict=False):
        for column, i in enumerate(row):
            left = _EDGE + column * (group + _BETWEEN)
            axes += [_add(figure, total, left + j * step, top + head, width, heights[i]) for j in range(counts[i])]
    return axes


def column_mm(n_columns: int, *, each: bool) -> float:
    """Width of a column where as many models stand side by side; panels narrower than 11 mm widen the page instead."""
    right = _GRID_LABEL + (0 if each else _GRID_BAR)
    free = PAGE_MM - 2 * _EDGE - _NAMES - right - GAP * (n_columns - 1)
    return float(np.clip(free / n_columns, _GRID_NARROWEST, _GRID_WIDEST))


def new_grid(
    layouts: Sequence[SpotLayout], libraries: Sequence[str], n_columns: int, *, each: bool, n_lines: int
) -> list[Axes]:
    """Create a figure with a row of axes for each group of panels and aligned columns.

    Parameters
    ----------
    layouts
        Spots of each row.
    libraries
        Name of the slide of each row; the last row of each slide has space for a scale bar.
    n_columns
        Panels per row.
    each
        Each panel has a colour bar, below it; else each row.
    n_lines
        Lines of the headings of columns.

    Returns
    -------
    Axes, row after row.
    """
    width = column_mm(n_columns, each=each)
    head, score = lines_mm(n_lines, TEXT_PT) + _PAD, lines_mm(1, SMALL_PT) + _PAD
    last = [i + 1 == len(libraries) or libraries[i + 1] != libraries[i] for i in range(len(libraries))]
    heights = [_height(layout, width) for layout in layouts]
    below = [(EACH_BAR if each else 0) + (_FOOT + _ROWS if end else _GRID_ROWS) for end in last]
    tops = head + np.cumsum([0.0, *(score + h + b for h, b in zip(heights, below, strict=True))])
    right = _GRID_LABEL + (0 if each else _GRID_BAR)
    total = (2 * _EDGE + _NAMES + (width + GAP) * n_columns - GAP + right, float(tops[-1]) - _ROWS)

    figure = plt.figure(figsize=(inches(total[0]), inches(total[1])))
    return [
        _add(figure, total, _EDGE + _NAMES + j * (width + GAP), top + score, width, height)
        for top, height in zip(tops, heights, strict=False)
        for j in range(n_columns)
    ]


def _add(figure: Figure, total: tuple[float, float], left: float, top: float, width: float, height: float) -> Axes:
    """Add axes at a position in mm from the upper left corner."""
    return figure.add_axes((left / total[0], 1 - (top + height) / total[1], width / total[0], height / total[1]))


def _height(layout: SpotLayout, width: float) -> float:
    """Height of a panel in proportion to its slide, mm; narrow slides do not fill the width."""
    left, right, top, bottom = layout.limits()
    return width * min((bottom - top) / (right - left), _TALLEST)
