"""Scores of an ablation against the values of each field."""

from collections.abc import Sequence
from numbers import Number
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from ._common import BLACK, GREY, bare, finish, given_axes
from ._paired_panels import draw_ablation
from ._results import (
    LINE_STYLE,
    MEAN_STYLE,
    METRICS,
    Style,
    check_metrics,
    check_names,
    check_result,
    draw_note,
    explain,
    fold_styles,
    mean_label,
)

_LINE = 14  # letters per line in the label of a value


class _Steps(NamedTuple):
    """Values of a field, from left to right."""

    models: list[str]
    labels: list[str]
    default: int | None  # position
    ordered: bool  # numbers


def ablation(
    result: Any,
    *,
    metric: str = "pcc_a",
    fields: str | Sequence[str] | None = None,
    reference: str | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool | None = None,
) -> NDArray[Any] | Figure:
    """Plot the score against each varied field, a panel per field: mean, bootstrap interval, and every slide.

    Thin lines join the scores of a slide, which separates shared changes from the spread between slides. A grey band
    marks the default value, a dashed line its mean. Numbers are sorted and equally spaced. The legend says what the
    intervals are over. If the protocol makes scores optimistic, a warning is written above the panels.

    With ``reference``, paired differences from that variant are drawn instead, as in :func:`gdml.pl.benchmark`.

    Parameters
    ----------
    result
        Result of :func:`gdml.tl.ablate`.
    metric
        ``"pcc_a"``, ``"pcc_h"``, ``"pcc_h_best"``, ``"spearman"``, ``"mse"`` or ``"mae"``.
    fields
        Fields to draw; by default all that were varied.
    reference
        Draw differences from this variant, most often the unchanged model: ``reference="gene-dml"``.
    ax
        Axes to draw on, one per field; a new figure by default.
    show
        Call :func:`matplotlib.pyplot.show`.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    Array of the Axes, one per field; the Figure if ``return_fig``.

    Raises
    ------
    TypeError
        If ``result`` is not a result of :func:`gdml.tl.ablate`.
    KeyError
        If a field was not varied.
    ValueError
        If the metric or ``reference`` is unknown, nothing was varied, or ``ax`` has another number of axes.

    Examples
    --------
    >>> import gdml
    >>> result = gdml.tl.ablate(adata, {"k": [6, 18, 26]}, group_key="patient")  # doctest: +SKIP
    >>> gdml.pl.ablation(result)  # doctest: +SKIP
    """
    check_result(result, "variants", "intervals", "slides", "optimistic", "note", "protocol", made_by="gdml.tl.ablate")
    (metric,) = check_metrics(metric)
    varied = [field for field in pd.unique(result.variants.get("field", pd.Series(dtype=object))) if field]
    if not varied and "field" not in result.variants:
        raise TypeError("`result` compares models, not settings; give what gdml.tl.ablate returns.")
    if not varied:
        raise ValueError("`result` holds the default only; pass fields and their values to gdml.tl.ablate.")
    fields = varied if fields is None else check_names("fields", fields, varied)
    steps = [_steps(result.variants, field) for field in fields]
    if reference is not None:
        axes = draw_ablation(result, reference, metric, dict(zip(fields, steps, strict=True)), ax)
        draw_note(result, axes, own_figure=ax is None)
        return finish(np.array(axes, dtype=object), show, return_fig)
    means = result.intervals()
    means = means[means["metric"] == metric].set_index("model")
    slides = result.slides()
    styles = fold_styles(slides)

    if ax is None:
        lines = [[line for label in one.labels for line in label.split("\n")] for one in steps]
        each = [max(0.095 * max(map(len, own)), 0.55) for own in lines]  # inches, of a value
        widths = [0.3 + max(inch * len(one.models), 1.2) for inch, one in zip(each, steps, strict=True)]
        height = 3.0 + 0.17 * max(label.count("\n") for one in steps for label in one.labels)
        axes = list(
            plt.subplots(
                1, len(fields), figsize=(2.4 + sum(widths), height), width_ratios=widths, sharey=True, squeeze=False,
                layout="constrained",
            )[1][0]
        )  # fmt: skip
    else:
        axes = given_axes(ax, len(fields))
    for one, field, values in zip(axes, fields, steps, strict=True):
        _draw_slides(one, slides[slides["model"].isin(values.models)], values, metric, styles)
        _draw_means(one, means.reindex(values.models), values)
        one.set_xlabel(str(field))
        bare(one)
    axes[0].set_ylabel(METRICS[metric])
    marks = [
        Line2D([], [], **MEAN_STYLE, lw=1.5, label=mean_label(result, means)),
        Line2D([], [], **LINE_STYLE, label="mean of the default"),
    ]
    explain(axes[-1], marks, list(styles.values()))
    draw_note(result, axes, own_figure=ax is None)
    return finish(np.array(axes, dtype=object), show, return_fig)


def _steps(variants: pd.DataFrame, field: str) -> _Steps:
    """List the values of a field and the default: numbers and switches sorted, others in the given order."""
    rows = variants[(variants["field"] == field) | (variants["field"] == "")]
    values = dict(zip(rows.index, rows[field], strict=True))
    switch = all(isinstance(value, (bool, np.bool_)) for value in values.values())
    ordered = not switch and all(isinstance(value, Number) for value in values.values())
    models = sorted(values, key=values.__getitem__) if switch or ordered else list(values)
    default = next((i for i, model in enumerate(models) if rows["default"][model]), None)
    return _Steps(models, [fill(_text(values[model]), _LINE) for model in models], default, ordered)


def _text(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "on" if value else "off"
    if isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
        return ", ".join(map(_text, value)) or "none"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, Number) else str(value)


def _draw_slides(ax: Axes, slides: pd.DataFrame, steps: _Steps, metric: str, styles: dict[Any, Style]) -> None:
    """Draw the scores of each slide, joined by a line."""
    for (fold, _), one in slides.groupby(["fold", "slide"], sort=False, observed=True):
        y = one.set_index("model")[metric].reindex(steps.models)
        style = styles[fold]
        x = np.arange(len(y))
        ax.plot(x, y, color=style.color, lw=0.8, alpha=0.45, marker=style.marker, ms=3.2, mew=0, zorder=2)


def _draw_means(ax: Axes, table: pd.DataFrame, steps: _Steps) -> None:
    """Draw means and intervals, and mark the default."""
    x = np.arange(len(table))
    if steps.default is not None:
        at = steps.default
        ax.axvspan(at - 0.32, at + 0.32, color=BLACK, alpha=0.07, lw=0, zorder=0)
        ax.axhline(table["mean"].iloc[at], **LINE_STYLE, zorder=1)
    ax.vlines(x, table["low"], table["high"], color=BLACK, lw=1.5, zorder=3)
    ax.plot(x, table["mean"], **MEAN_STYLE, lw=1.2 if steps.ordered else 0, zorder=4)
    for at in np.flatnonzero(table["mean"].isna()).tolist():
        ax.annotate(
            "no score", (at, 0.5), xycoords=ax.get_xaxis_transform(), rotation=90, color=GREY, ha="center", va="center"
        )
    ax.set_xticks(x, steps.labels)
    if steps.default is not None:
        ax.get_xticklabels()[steps.default].set_fontweight("bold")
    ax.set_xlim(-0.6, len(table) - 0.4)
