"""Draw maps side by side: measured expression, and predictions of one or several models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from ._common import GREY, RED, two_digits
from ._figure import heading_lines
from ._spatial_groups import MEASURED, Group, Panel
from ._spots import SpotLayout, draw_spots, scale_bar

SCALES = {"minmax": (0, 100), "robust": (2, 98)}  # percentiles that become 0 and 1
OPTIMISTIC = "optimistic"


def draw_group(
    axes: list[Axes], group: Group, spots: SpotLayout, scale: str | None, cmap: str, unit: str, *, row_label: bool
) -> None:
    """Draw a gene on a slide, measured and predicted by one model."""
    shown, norm = _shades([panel.values for panel in group.panels], scale)
    for ax, panel, values in zip(axes, group.panels, shown, strict=True):
        drawn = draw_spots(ax, spots, values, cmap=cmap, norm=norm)
        title = MEASURED if panel.kind == MEASURED else "predicted"
        if panel.pcc is not None:
            title = f"{OPTIMISTIC if panel.optimistic else title + ','} PCC {two_digits(panel.pcc)}"
        ax.set_title(title, loc="right", fontsize="medium", **_warning(panel))
    axes[0].set_title(group.gene, loc="left", fontsize="medium", fontstyle="italic")
    if row_label:
        axes[0].set_ylabel(group.library)
    scale_bar(axes[0], spots.um_per_px)
    _color_bar(axes[-1], drawn, unit if scale is None else "scaled expression", scaled=scale is not None)


def draw_rows(
    axes: list[Axes],
    groups: list[Group],
    layouts: list[SpotLayout],
    names: Mapping[str, str],
    scale: str | None,
    cmap: str,
    unit: str,
    *,
    name_slides: bool,
) -> None:
    """Draw a row per gene and slide, with a column per model."""
    n = len(groups[0].panels)
    warn = any(panel.optimistic for panel in groups[0].panels)
    rows = [axes[i : i + n] for i in range(0, len(axes), n)]
    for i, (row, group, spots) in enumerate(zip(rows, groups, layouts, strict=True)):
        shown, norm = _shades([panel.values for panel in group.panels], scale)
        for ax, panel, values in zip(row, group.panels, shown, strict=True):
            drawn = draw_spots(ax, spots, values, cmap=cmap, norm=norm)
            if panel.pcc is not None:
                ax.set_title(f"PCC {two_digits(panel.pcc)}", fontsize="small", pad=3, **_warning(panel))
            if np.isnan(values).all():
                text = "not measured" if panel.kind == MEASURED else "not predicted"
                ax.text(0.5, 0.5, text, transform=ax.transAxes, color=GREY, ha="center", va="center", fontsize="small")
            if not i:
                _heading(ax, names.get(panel.kind, panel.kind), panel, pt=28 if warn else 16)
        row[0].set_ylabel(group.gene, fontstyle="italic")
        if i + 1 == len(groups) or groups[i + 1].library != group.library:
            scale_bar(row[0], spots.um_per_px)
        if scale is None:
            _color_bar(row[-1], drawn, unit.replace("per ", "per\n"), scaled=False)
        elif not i:  # the same for all rows
            _color_bar(row[-1], drawn, "scaled\nexpression", scaled=True)
    if name_slides:
        _name_slides([row[0] for row in rows], [group.library for group in groups])


def _warning(panel: Panel) -> dict[str, Any]:
    """Style of a score, conspicuous if it is optimistic."""
    return {"color": RED, "fontweight": "bold"} if panel.optimistic and panel.pcc is not None else {}


def _heading(ax: Axes, name: str, panel: Panel, *, pt: float) -> None:
    """Write the heading of a column, above the titles of its maps."""
    width = ax.get_window_extent().width / ax.figure.dpi
    if panel.optimistic:
        ax.set_title(f"{OPTIMISTIC}\n{ax.get_title()}".strip(), fontsize="small", pad=3, color=RED, fontweight="bold")
    ax.annotate(
        "\n".join(heading_lines(name, width)), (0.5, 1), xycoords="axes fraction", xytext=(0, pt),
        textcoords="offset points", ha="center", va="bottom", annotation_clip=False,
    )  # fmt: skip


def _name_slides(first: Sequence[Axes], libraries: Sequence[str]) -> None:
    """Write the name of each slide at the left of its rows."""
    for library in dict.fromkeys(libraries):
        own = [ax for ax, name in zip(first, libraries, strict=True) if name == library]
        places = [ax.get_position() for ax in own]
        middle = (max(place.y1 for place in places) + min(place.y0 for place in places)) / 2
        x = places[0].x0 - 0.42 / own[0].figure.bbox.width * own[0].figure.dpi
        own[0].figure.text(x, middle, library, rotation=90, ha="center", va="center", fontweight="bold")


def _shades(values: list[NDArray[np.float64]], scale: str | None) -> tuple[list[NDArray[np.float64]], Normalize]:
    """Scale the values for the colour map: each map by itself, or all on a common scale."""
    if scale is not None:
        return [_scaled(one, *SCALES[scale]) for one in values], Normalize(0, 1)
    every = np.concatenate(values)
    return values, Normalize(np.nanmin(every), np.nanmax(every))


def _scaled(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Scale values to [0, 1] between two percentiles."""
    if np.isnan(values).all():
        return values
    low = np.nanpercentile(values, low, method="higher")
    high = np.nanpercentile(values, high, method="lower")
    return np.clip((values - low) / (high - low or 1), 0, 1)


def _color_bar(ax: Axes, drawn: Collection, label: str, *, scaled: bool) -> None:
    width = ax.get_window_extent().width / ax.figure.dpi
    bar = ax.inset_axes((1 + 0.08 / width, 0.1, 0.09 / width, 0.8))
    ax.figure.colorbar(drawn, cax=bar, ticks=[0, 1] if scaled else None)
    bar.set_ylabel(label, fontsize="small", labelpad=-4 if scaled else 3)
    bar.tick_params(labelsize="small", length=2)
    bar.spines[:].set_visible(False)
