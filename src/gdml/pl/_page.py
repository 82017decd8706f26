"""Sizes of type and of panels on a printed page, and texts that fit them."""

from functools import lru_cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

# journals print figures at the width of one column or of the page, with type of 5 to 8 pt
COLUMN_MM, PAGE_MM = 85.0, 180.0
HEAD_PT, TEXT_PT, SMALL_PT = 8.0, 7.0, 6.0
LINE = 1.2  # distance of lines over the size of type
MM_PER_PT = 25.4 / 72
_BEYOND_MM = 4.0  # that the unit may be longer than its colour bar


def inches(mm: float) -> float:
    """Convert to inches, the unit of matplotlib's figures."""
    return mm / 25.4


def figure_of(ax: Axes) -> Any:
    """Figure of axes, also of those in a subfigure."""
    return ax.get_figure(root=True)


def size_mm(ax: Axes) -> tuple[float, float]:
    """Width and height of axes on paper, without titles."""
    box = ax.get_window_extent()
    dpi = figure_of(ax).dpi
    return box.width / dpi * 25.4, box.height / dpi * 25.4


def lines_mm(n: int, pt: float) -> float:
    """Height of some lines of text."""
    return n * pt * LINE * MM_PER_PT


@lru_cache(maxsize=4096)
def text_mm(text: str, pt: float, weight: str = "normal") -> float:
    """Width of a text."""
    if not text:
        return 0.0
    return float(TextPath((0, 0), text, size=pt, prop=FontProperties(weight=weight)).get_extents().x1) * MM_PER_PT


def wrapped(text: str, width_mm: float, pt: float, weight: str = "normal") -> list[str]:
    """Break a text into lines of at most this width, between words where that suffices, else within them."""
    lines, line = [], ""
    for word in text.split():
        tried = f"{line} {word}".strip()
        if text_mm(tried, pt, weight) <= width_mm:
            line = tried
            continue
        if line:
            lines.append(line)
        while text_mm(word, pt, weight) > width_mm and len(word) > 1:
            n = next((n for n in range(len(word) - 1, 1, -1) if text_mm(word[:n], pt, weight) <= width_mm), 1)
            lines.append(word[:n])
            word = word[n:]
        line = word
    return [*lines, line] if line or not lines else lines


def unit_lines(unit: str, height_mm: float) -> str:
    """Break the unit of a colour bar of this height, if it is too long, where it is read best."""
    if text_mm(unit, SMALL_PT) <= height_mm + _BEYOND_MM:
        return unit
    return unit.replace(" per ", " per\n")
