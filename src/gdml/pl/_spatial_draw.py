"""Draw a gene on a slide: measured expression beside the predictions of one model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import Colormap
from matplotlib.text import Annotation

from gdml.spots.coordinates import ONE_SLIDE

from ._common import RED
from ._expression_colors import common_scale
from ._page import HEAD_PT, LINE, MM_PER_PT, SMALL_PT, TEXT_PT, figure_of, size_mm, text_mm, unit_lines
from ._scale_bar import scale_bar
from ._spatial_figure import beside_bars, new_axes, panel_mm, rows_of
from ._spatial_groups import Group, Panel
from ._spatial_texts import most_lines, title_lines
from ._spots import SpotLayout, draw_spots

SCALES = ("shared", "each")
OWN_SCALES = "each map on its own scale"
_PAD_PT, FOOT_PT, _SPACE_PT = 3.0, 6.0, 5.0
_BAR_MM, _BAR_LEFT_MM, _BAR_SHARE = 2.0, 1.5, 0.84  # width, distance, height over that of the panel


def draw_pairs(
    axes: list[Axes] | None,
    groups: list[Group],
    layouts: list[SpotLayout],
    names: Mapping[str, str],
    *,
    each: bool,
    cmap: Colormap,
    unit: str,
    letters: Sequence[str],
    ncols: int | None,
    by_slide: bool,
) -> list[Axes]:
    """Draw all maps of one model, on a new page if no axes are given."""
    counts = [len(group.panels) for group in groups]
    nouns = [spots.noun for spots in layouts]
    if axes is None:
        ncols = ncols or (3 if max(counts) == 1 else 2)
        rows = rows_of([group.library for group in groups], ncols, by_slide=by_slide)
        ncols = max(len(row) for row in rows)
        width = panel_mm(max(counts), max(counts) if each else 1, ncols)
        lines = title_lines(groups, names, nouns, [beside_bars([width] * n, each=each) for n in counts])
        axes = new_axes(layouts, counts, rows, width=width, each=each, n_lines=most_lines(lines))
    else:
        starts = np.cumsum([0, *counts[:-1]])
        own = [axes[start : start + n] for start, n in zip(starts, counts, strict=True)]
        lines = title_lines(groups, names, nouns, [[size_mm(ax)[0] for ax in row] for row in own])
    remaining = iter(axes)
    for group, spots, text, letter in zip(groups, layouts, lines, letters, strict=True):
        own_axes = [next(remaining) for _ in group.panels]
        style: dict[str, Any] = {"each": each, "cmap": cmap, "unit": unit, "letter": letter}
        _draw_group(own_axes, group, spots, text, n_lines=most_lines(lines), **style)
    return axes


def _draw_group(
    axes: list[Axes],
    group: Group,
    spots: SpotLayout,
    lines: list[list[str]],
    *,
    n_lines: int,
    each: bool,
    cmap: Colormap,
    unit: str,
    letter: str,
) -> None:
    """Draw the maps of a gene on a slide, with titles, scale bar and colour bars."""
    if not each:
        norm, ends = common_scale([panel.values for panel in group.panels])
    for ax, panel, text in zip(axes, group.panels, lines, strict=True):
        if each:
            norm, ends = common_scale([panel.values])
        drawn = draw_spots(ax, spots, panel.values, cmap=cmap, norm=norm)
        for i, line in enumerate(reversed(text + [""] * (n_lines - len(text)))):  # first lines are level
            _above(ax, line, _PAD_PT + i * TEXT_PT * LINE, fontsize=TEXT_PT, **warning(panel))
        if each or ax is axes[-1]:
            _color_bar(ax, drawn, unit, ends)
    _heading(axes, group, letter, _PAD_PT + n_lines * TEXT_PT * LINE)
    scale_bar(axes[0], spots.um_per_px, fontsize=SMALL_PT)
    if each and len(axes) > 1:
        foot_note(axes[-1], OWN_SCALES)


def _above(ax: Axes, text: str, pt: float, **style: Any) -> None:
    """Write a line above the left end of axes."""
    if text:
        ax.annotate(
            text, (0, 1), xycoords="axes fraction", xytext=(0, pt + 1), textcoords="offset points", annotation_clip=False,
            **style,
        )  # fmt: skip


def warning(panel: Panel) -> dict[str, Any]:
    """Style of a score, conspicuous if it is optimistic."""
    return {"color": RED, "fontweight": "bold"} if panel.optimistic and panel.pcc is not None else {}


def _heading(axes: list[Axes], group: Group, letter: str, pt: float) -> None:
    """Write the letter, the gene and the slide above the lines of the maps."""
    places = [ax.get_window_extent() for ax in axes]
    free = (places[-1].x1 - places[0].x0) / figure_of(axes[0]).dpi * 25.4
    style: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "annotation_clip": False}
    style |= {"fontsize": HEAD_PT}
    before: Annotation | None = None
    for text, weight, slant in (
        (letter, "bold", "normal"),
        (group.gene, "bold", "italic"),
        ("" if group.library == ONE_SLIDE else f"slide {group.library}", "normal", "normal"),
    ):
        fitting = _shortened(text, free, weight)
        if not fitting:
            continue
        where: dict[str, Any] = {"xy": (0, 1), "xycoords": "axes fraction", "xytext": (0, pt + 1)}
        if before is not None:
            where = {"xy": (1, 0), "xycoords": before, "xytext": (_SPACE_PT, 0)}
        before = axes[0].annotate(fitting, **where, **style, fontweight=weight, fontstyle=slant)
        free -= text_mm(fitting, HEAD_PT, weight) + _SPACE_PT * MM_PER_PT


def _shortened(text: str, width_mm: float, weight: str) -> str:
    """Cut a text that is too wide, and end it with an ellipsis."""
    if text_mm(text, HEAD_PT, weight) <= width_mm:
        return text
    fits = (n for n in range(len(text) - 1, 0, -1) if text_mm(text[:n] + "…", HEAD_PT, weight) <= width_mm)
    return next((text[:n].rstrip() + "…" for n in fits), "")


def foot_note(ax: Axes, text: str, *, below_pt: float = FOOT_PT) -> None:
    """Write a note below the right end of axes, level with the scale bar."""
    ax.annotate(
        text, (1, 0), xycoords="axes fraction", xytext=(0, -below_pt), textcoords="offset points", ha="right",
        va="center", fontsize=SMALL_PT, annotation_clip=False,
    )  # fmt: skip


def _color_bar(ax: Axes, drawn: Collection, label: str, ends: str) -> None:
    """Draw a colour bar right of a map, in the unit of its values."""
    width, height = size_mm(ax)
    bar = ax.inset_axes((1 + _BAR_LEFT_MM / width, (1 - _BAR_SHARE) / 2, _BAR_MM / width, _BAR_SHARE))
    figure_of(ax).colorbar(drawn, cax=bar, extend=ends, extendfrac=min(0.06, 1.2 / height))
    bar.locator_params(axis="y", nbins=max(2, min(6, int(height / 6))))
    bar.set_ylabel(unit_lines(label, height), fontsize=SMALL_PT, labelpad=2, linespacing=1.1)
    style_bar(bar)


def style_bar(bar: Axes) -> None:
    """Give a colour bar small type and no frame."""
    bar.tick_params(labelsize=SMALL_PT, length=1.5, width=0.5, pad=1.5)
    bar.spines[:].set_visible(False)
