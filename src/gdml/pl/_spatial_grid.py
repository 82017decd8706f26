"""Draw the maps of several models in columns, with a row per gene and slide."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import Colormap

from gdml.spots.coordinates import ONE_SLIDE

from ._common import GREY, RED, two_digits
from ._expression_colors import common_scale
from ._page import HEAD_PT, LINE, MM_PER_PT, SMALL_PT, TEXT_PT, figure_of, size_mm, unit_lines, wrapped
from ._scale_bar import scale_bar
from ._spatial_draw import FOOT_PT, foot_note, style_bar, warning
from ._spatial_figure import EACH_BAR, GAP, column_mm, new_grid
from ._spatial_groups import MEASURED, Group, Panel
from ._spatial_texts import OPTIMISTIC, grid_note
from ._spots import SpotLayout, draw_spots

_PAD_PT, _SCORE_PT = 2.0, 11.0  # between a map and its score; from a map to the heading of its column
_BAR_MM, _TICKS_MM = 1.6, 9.0


def draw_models(
    axes: list[Axes] | None,
    groups: list[Group],
    layouts: list[SpotLayout],
    names: Mapping[str, str],
    *,
    each: bool,
    cmap: Colormap,
    unit: str,
    letters: Sequence[str],
) -> list[Axes]:
    """Draw a row per gene and slide with a column per model, on a new page if no axes are given."""
    n = len(groups[0].panels)
    headings = _headings(groups[0], names, column_mm(n, each=each) if axes is None else size_mm(axes[0])[0])
    if axes is None:
        libraries = [group.library for group in groups]
        axes = new_grid(layouts, libraries, n, each=each, n_lines=max(len(lines) for lines in headings))
    rows = [axes[i : i + n] for i in range(0, len(axes), n)]
    for ax, panel, lines in zip(rows[0], groups[0].panels, headings, strict=True):
        _heading(ax, panel, lines)
    slides: dict[str, list[int]] = {}
    for i, (row, group, spots) in enumerate(zip(rows, groups, layouts, strict=True)):
        slides.setdefault(group.library, []).append(i)
        _draw_row(row, group, spots, each=each, cmap=cmap)
        row[0].set_ylabel(group.gene, fontstyle="italic", fontweight="bold", fontsize=TEXT_PT, labelpad=2)
        _above(row[0], letters[i], HEAD_PT, fontweight="bold")
    for library, own in slides.items():
        _name([rows[i][0] for i in own], f"slide {library}" if library != ONE_SLIDE else "")
        _unit([rows[i][-1] for i in own], unit, 0 if each else _TICKS_MM)
        last, spots = rows[own[-1]], layouts[own[-1]]
        below = FOOT_PT + (EACH_BAR / MM_PER_PT if each else 0)
        scale_bar(last[0], spots.um_per_px, fontsize=SMALL_PT, below_pt=below)
        foot_note(last[-1], grid_note([groups[i] for i in own], spots.noun, each=each), below_pt=below)
    return axes


def _headings(group: Group, names: Mapping[str, str], width: float) -> list[list[str]]:
    """Headings of the columns, broken to their width; those of predictions that are optimistic say so below the name."""
    return [
        [*wrapped(names.get(panel.kind, panel.kind), width, TEXT_PT), *([OPTIMISTIC] if panel.optimistic else [])]
        for panel in group.panels
    ]


def _draw_row(row: list[Axes], group: Group, spots: SpotLayout, *, each: bool, cmap: Colormap) -> None:
    """Draw the maps of a gene on a slide, with their scores and colour bars."""
    norm, ends = common_scale([panel.values for panel in group.panels])
    for ax, panel in zip(row, group.panels, strict=True):
        if each:
            norm, ends = common_scale([panel.values])
        drawn = draw_spots(ax, spots, panel.values, cmap=cmap, norm=norm)
        if panel.pcc is not None:
            _above(ax, f"PCC {two_digits(panel.pcc)}", SMALL_PT, **warning(panel))
        if not panel.n:
            text = "not measured" if panel.kind == MEASURED else "not predicted"
            lines = "\n".join(wrapped(text, size_mm(ax)[0], SMALL_PT))
            ax.text(0.5, 0.5, lines, transform=ax.transAxes, color=GREY, ha="center", va="center", fontsize=SMALL_PT)
        elif each:
            _bar_below(ax, drawn, ends)
    if not each:
        _bar_right(row[-1], drawn, ends)


def _above(ax: Axes, text: str, pt: float, **style: Any) -> None:
    ax.set_title(text, loc="left", fontsize=pt, pad=_PAD_PT, **style)


def _heading(ax: Axes, panel: Panel, lines: list[str]) -> None:
    """Write the heading of a column, above the scores of its maps."""
    for i, line in enumerate(reversed(lines)):
        style: dict[str, Any] = {"fontsize": TEXT_PT}
        if panel.optimistic and not i:  # small as the scores it is about: in bold it fits the narrowest column only so
            style = {"fontsize": SMALL_PT, "color": RED, "fontweight": "bold"}
        ax.annotate(
            line, (0, 1), xycoords="axes fraction", xytext=(0, _SCORE_PT + i * TEXT_PT * LINE), textcoords="offset points",
            ha="left", va="bottom", annotation_clip=False, **style,
        )  # fmt: skip


def _name(column: list[Axes], text: str) -> None:
    """Write the slide upright at the left of its rows."""
    _beside(
        column, "\n".join(wrapped(text, _tall(column), TEXT_PT, "bold")), -6.5, TEXT_PT, ha="right", fontweight="bold"
    )


def _unit(column: list[Axes], unit: str, beyond_mm: float) -> None:
    """Write the unit upright at the right of the rows of a slide."""
    _beside(column, unit_lines(unit, _tall(column)), 1 + beyond_mm, SMALL_PT, ha="left")


def _tall(column: list[Axes]) -> float:
    """Height from the lowest to the highest of some axes, mm."""
    places = [ax.get_window_extent() for ax in column]
    dpi = figure_of(column[0]).dpi
    return (max(place.y1 for place in places) - min(place.y0 for place in places)) / dpi * 25.4


def _beside(column: list[Axes], text: str, mm: float, pt: float, **style: Any) -> None:
    """Write a text upright, centred on some axes, left of them (negative ``mm``) or right of them."""
    figure = figure_of(column[0])
    places = [ax.get_position() for ax in column]
    x = (places[0].x0 if mm < 0 else places[0].x1) + mm / (figure.bbox.width / figure.dpi * 25.4)
    y = (min(place.y0 for place in places) + max(place.y1 for place in places)) / 2
    figure.text(x, y, text, rotation=90, va="center", fontsize=pt, linespacing=1.1, **style)


def _bar_right(ax: Axes, drawn: Collection, ends: str) -> None:
    """Draw the colour bar of a row; its unit is written once for all rows."""
    width, height = size_mm(ax)
    bar = ax.inset_axes((1 + GAP / 2 / width, 0.06, _BAR_MM / width, 0.88))
    figure_of(ax).colorbar(drawn, cax=bar, extend=ends, extendfrac=min(0.06, 1.2 / height))
    bar.locator_params(axis="y", nbins=max(2, min(5, int(height / 6))))
    style_bar(bar)


def _bar_below(ax: Axes, drawn: Collection, ends: str) -> None:
    """Draw the colour bar of a map, with its lowest and highest value."""
    width, height = size_mm(ax)
    bar = ax.inset_axes((0.06, -2.0 / height, 0.88, 1.0 / height))
    colors = figure_of(ax).colorbar(drawn, cax=bar, orientation="horizontal", extend=ends)
    low, high = drawn.get_clim()
    digits = int(np.clip(2 - np.floor(np.log10(high - low)), 0, 3)) if width > 16 else 1
    colors.set_ticks([low, high], labels=[f"{low:.{digits}f}", f"{high:.{digits}f}"])
    for label, side in zip(bar.get_xticklabels(), ("left", "right"), strict=True):
        label.set(horizontalalignment=side)
    style_bar(bar)
