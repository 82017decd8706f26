"""Paired differences of models: what a figure of them says, and how it is drawn."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from gdml._errors import count, did_you_mean

from ._common import BLACK, BLUE, GREY
from ._results import ERRORS, MEAN_STYLE, METRICS, mean_label

#: Points: type of a figure that is printed at its own size.
TYPE, SMALL = 7.0, 6.5
#: Inches: the width of a page.
PAGE = 7.08
_DOT: dict[str, Any] = {"color": BLUE, "marker": "o", "ms": 3.4, "mew": 0, "alpha": 0.75, "lw": 0}
_MEAN: dict[str, Any] = {**MEAN_STYLE, "ms": 5.0}


class Differences(NamedTuple):
    """Differences of all models from one, of one metric."""

    table: pd.DataFrame  # as of Comparison.compare, by model
    points: pd.DataFrame  # model, unit, difference
    unit: str  # what a point is: the name of a group, "slide" or "block"


def read_differences(result: Any, reference: str, metrics: Sequence[str]) -> dict[str, Differences]:
    """Differences of each metric, with a point for each group, or for each slide or block of a single group.

    Raises
    ------
    ValueError
        If there is no such model, or nothing that it is compared with.
    """
    if reference not in result.models:
        raise ValueError(f"`reference` is {reference!r}. {did_you_mean(str(reference), result.models)}")
    tables = result.compare(reference, metric=metrics)
    if tables.empty:
        raise ValueError(f"No other model shares a slide with `reference` {reference!r}: there is nothing to compare.")
    found = {}
    for metric in metrics:
        table = tables[tables["metric"] == metric].set_index("model")
        rows = result.differences(reference, metric=metric)
        unit, name = _unit(rows, result.group_key)
        weight = rows["n_spots"].astype(float) if metric in ERRORS else pd.Series(1.0, rows.index)
        by_unit = pd.DataFrame({"w": weight, "wd": weight * rows["difference"]}).groupby(
            [rows["model"], *(rows[column].rename(column) for column in unit)], sort=False
        )
        points = by_unit.sum().eval("wd / w").rename("difference").reset_index()
        points["unit"] = points.groupby(unit, sort=False).ngroup()
        found[metric] = Differences(table, points[["model", "unit", "difference"]], name)
    return found


def _unit(rows: pd.DataFrame, group_key: str | None) -> tuple[list[str], str]:
    if rows["group"].nunique() > 1:
        return ["group"], group_key or "slide"
    if rows["slide"].nunique() > 1:
        return ["slide"], "slide"
    return ["fold", "slide"], "block"


def axis_label(metric: str, reference: str) -> str:
    """Label of the axis of a difference."""
    name, *lower = METRICS[metric].split(" (")
    return f"difference in {name}\nfrom {reference}" + (f" ({lower[0]}" if lower else "")


def p_text(p: float) -> str:
    """Write a p-value; empty where there is no test."""
    if np.isnan(p):
        return ""
    return f"{p:.1g}" if p < 0.01 else f"{p:.2f}"


def draw_differences(ax: Axes, found: Differences, models: Sequence[str], *, vertical: bool) -> None:
    """Draw means, intervals and points, a place for each model: rows, or columns where ``vertical``."""
    n_units = int(found.points["unit"].max()) + 1
    (ax.axhline if vertical else ax.axvline)(0, color=BLACK, lw=0.8, zorder=1)
    for place, model in enumerate(models):
        if model not in found.table.index:
            continue
        row = found.table.loc[model]
        mine = found.points[found.points["model"] == model]
        beside = place + 0.08 + 0.26 * (mine["unit"] + 0.5) / n_units  # a group has the same height in every row
        values = mine["difference"]
        ax.plot(*((beside, values) if vertical else (values, beside)), **_DOT, zorder=2)
        at = place - 0.16
        (ax.vlines if vertical else ax.hlines)(at, row["low"], row["high"], color=BLACK, lw=1.3, zorder=3)
        ax.plot(*((at, row["difference"]) if vertical else (row["difference"], at)), **_MEAN, lw=0, zorder=4)


def explain_differences(figure: Figure, result: Any, found: Differences, *, own_figure: bool, ax: Axes) -> None:
    """Say what the marks are, how many groups there are, and what the test can show.

    Below the panels of a figure that gdml made, else right of the last of the axes.
    """
    n_units = int(found.points["unit"].nunique())
    marks = [
        Line2D([], [], **_MEAN, lw=1.3, label=mean_label(result, found.table).replace("\n", " ")),
        Line2D([], [], **_DOT, label=f"{found.unit} (n = {n_units})"),
        Line2D([], [], lw=0, label=_about_p(found.table, str(result.group_key or "slide"))),
    ]
    style: dict[str, Any] = {"frameon": False, "fontsize": SMALL, "handletextpad": 0.5, "borderaxespad": 0.2}
    if own_figure:
        figure.legend(handles=marks, loc="outside lower center", **style)
    else:
        ax.legend(handles=marks, loc="upper left", bbox_to_anchor=(1.15, 1), **style)


def _about_p(table: pd.DataFrame, group: str) -> str:
    numbers = table["n_groups"].unique()
    if len(numbers) > 1:
        return f"P: sign flips over {group}s"
    groups = count(int(numbers[0]), group)
    if numbers[0] < 2:
        return f"no P-value: {groups}"
    return f"P: sign flips over {groups}, {p_text(table['p_least'].iloc[0])} at least"


def limits(found: Differences, models: Sequence[str]) -> tuple[float, float]:
    """Range of what is drawn, zero included, with some space."""
    table = found.table.reindex(models)
    drawn: NDArray[np.float64] = np.concatenate(
        [
            table[["low", "high", "difference"]].to_numpy(float).ravel(),
            found.points["difference"].to_numpy(float),
            [0.0],
        ]
    )
    low, high = np.nanmin(drawn), np.nanmax(drawn)
    space = 0.07 * ((high - low) or 1.0)
    return float(low - space), float(high + space)


def write_p(ax: Axes, found: Differences, models: Sequence[str], *, vertical: bool) -> None:
    """Write the p-values in the margin, in grey where no number of wins could have made them small."""
    if found.table["p_value"].isna().all():
        return
    style: dict[str, Any] = {"fontsize": SMALL, "annotation_clip": False}
    at: dict[str, Any]
    for place, model in enumerate(models):
        if model not in found.table.index:
            continue
        row = found.table.loc[model]
        color = GREY if row["p_least"] > 0.05 else BLACK
        text = p_text(row["p_value"])
        if vertical:
            at = {"xy": (place, 1.01), "xycoords": ax.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        else:
            at = {"xy": (1.03, place), "xycoords": ax.get_yaxis_transform(), "ha": "left", "va": "center"}
        ax.annotate(text, color=color, **at, **style)
    if vertical:
        ax.annotate("P", (-0.02, 1.01), xycoords="axes fraction", ha="right", va="bottom", fontstyle="italic", **style)
    else:
        ax.annotate("P", (1.03, 1.01), xycoords="axes fraction", ha="left", va="bottom", fontstyle="italic", **style)
