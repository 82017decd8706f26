"""Panels of paired differences: models in rows, or values of a setting in columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ._common import BLACK, GREY, bare, given_axes, model_names
from ._differences import (
    PAGE,
    SMALL,
    TYPE,
    axis_label,
    draw_differences,
    explain_differences,
    limits,
    read_differences,
    write_p,
)
from ._results import ERRORS, check_names, check_result

_PANEL, _P, _ROW, _LETTER = 1.75, 0.35, 0.3, 0.057  # inches: a panel, its p-values, a row, a letter of a name
_NARROWEST = 3.35  # a column of a journal, 85 mm


def draw_benchmark(
    result: Any,
    reference: str,
    metrics: Sequence[str],
    order: Sequence[str] | None,
    labels: Mapping[str, str] | None,
    ax: Any,
) -> list[Axes]:
    """Draw the differences of models from one, a row per model and a panel per metric.

    Parameters are those of :func:`gdml.pl.benchmark`.
    """
    check_result(result, "compare", "differences", "models", "group_key")
    found = read_differences(result, reference, metrics)
    first = found[metrics[0]].table["difference"]
    models = list(first.sort_values(ascending=metrics[0] in ERRORS, kind="stable").index)
    names = model_names([*models, reference], labels)
    models = models if order is None else check_names("order", order, models)
    if ax is None:
        width = _LETTER * max(len(names[model]) for model in models) + 0.2 + (_PANEL + _P) * len(metrics)
        size = min(max(width, _NARROWEST), PAGE), 1.15 + _ROW * len(models)
        axes = list(plt.subplots(1, len(metrics), figsize=size, layout="constrained", squeeze=False)[1][0])
    else:
        axes = given_axes(ax, len(metrics))
    for i, (one, metric) in enumerate(zip(axes, metrics, strict=True)):
        for row in range(0, len(models), 2):  # every other row is shaded
            one.axhspan(row - 0.5, row + 0.5, color=BLACK, alpha=0.04, lw=0, zorder=0)
        draw_differences(one, found[metric], models, vertical=False)
        write_p(one, found[metric], models, vertical=False)
        one.set_yticks(range(len(models)), [names[model] for model in models] if i == 0 else [])
        one.set_ylim(len(models) - 0.5, -0.5)
        one.set_xlim(*limits(found[metric], models))
        one.set_xlabel(axis_label(metric, names[reference]), fontsize=TYPE)
        one.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        one.tick_params(labelsize=TYPE, width=0.6, length=3)
        one.tick_params(axis="y", length=0)
        bare(one)
        one.spines["left"].set_visible(False)
        one.spines["bottom"].set_linewidth(0.6)
    explain_differences(axes[0].get_figure(root=True), result, found[metrics[0]], own_figure=ax is None, ax=axes[-1])  # type: ignore[arg-type]
    return axes


def draw_ablation(result: Any, reference: str, metric: str, fields: Mapping[str, Any], ax: Any) -> list[Axes]:
    """Draw the differences of variants from one, a panel per field and a column per value.

    Parameters
    ----------
    result, reference, metric, ax
        As in :func:`gdml.pl.ablation`.
    fields
        Of each field its ``models`` and their ``labels``, in the order of the values.
    """
    check_result(result, "compare", "differences", "models", "group_key", made_by="gdml.tl.ablate")
    found = read_differences(result, reference, [metric])[metric]
    if ax is None:
        letters = {
            name: max(len(line) for label in one.labels for line in label.split("\n")) for name, one in fields.items()
        }
        widths = [0.15 + len(one.models) * max(0.42, _LETTER * letters[name]) for name, one in fields.items()]
        size = min(max(0.7 + sum(widths), _NARROWEST), PAGE), 2.6
        grid = plt.subplots(
            1, len(fields), figsize=size, width_ratios=widths, sharey=True, layout="constrained", squeeze=False
        )
        axes = list(grid[1][0])
    else:
        axes = given_axes(ax, len(fields))
    everything = [model for one in fields.values() for model in one.models]
    for i, (one, (name, steps)) in enumerate(zip(axes, fields.items(), strict=True)):
        draw_differences(one, found, steps.models, vertical=True)
        write_p(one, found, steps.models, vertical=True)
        if reference in steps.models:
            at = steps.models.index(reference)
            one.axvspan(at - 0.42, at + 0.42, color=BLACK, alpha=0.07, lw=0, zorder=0)
        for at in [i for i, model in enumerate(steps.models) if model != reference and model not in found.table.index]:
            one.annotate(
                "no score", (at, 0.5), xycoords=one.get_xaxis_transform(), rotation=90, color=GREY, ha="center",
                va="center", fontsize=SMALL,
            )  # fmt: skip
        one.set_xticks(np.arange(len(steps.models)), steps.labels)
        one.set_xlim(-0.6, len(steps.models) - 0.4)
        one.set_ylim(*limits(found, everything))
        one.set_xlabel(str(name), fontsize=TYPE)
        one.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        one.tick_params(labelsize=TYPE, width=0.6, length=3, labelleft=i == 0)
        bare(one)
        one.spines[["left", "bottom"]].set_linewidth(0.6)
    axes[0].set_ylabel(axis_label(metric, reference), fontsize=TYPE)
    explain_differences(axes[0].get_figure(root=True), result, found, own_figure=ax is None, ax=axes[-1])  # type: ignore[arg-type]
    return axes
