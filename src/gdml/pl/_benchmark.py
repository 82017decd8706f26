"""Scores of models with their intervals, slide by slide."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gdml._errors import count

from ._common import BLACK, GREY, bare, finish, given_axes, model_names
from ._paired_panels import draw_benchmark
from ._results import (
    ERRORS,
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

_MEAN, _FIRST, _LAST = -0.22, 0.02, 0.34  # fractions of the row height from its middle: mean, band of the slides


def benchmark(
    result: Any,
    *,
    metrics: str | Sequence[str] = ("pcc_a", "pcc_h"),
    folds: str | Sequence[str] | None = None,
    order: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    floor: str | None = "ridge",
    reference: str | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool | None = None,
) -> NDArray[Any] | Figure:
    """Plot the scores of models, a row per model: mean, bootstrap interval, and every slide.

    The legend says what the intervals are over: groups (such as patients), or slides if there are fewer than five
    groups. A slide has the same height in every row, so that it can be followed from model to model. If the protocol
    makes scores optimistic, as ``"paper"`` does, a warning is written above the panels.

    With ``reference``, paired differences from that model are drawn instead: the mean with its interval, a dot for each
    group, a line at zero, and the p-value of :meth:`gdml.tl.Comparison.compare`, grey where so few groups allow none
    below 0.05. The figure is made to be printed at its own size, 85 to 180 mm wide.

    Parameters
    ----------
    result
        Result of :func:`gdml.tl.cross_validate`.
    metrics
        Columns of panels: ``"pcc_a"``, ``"pcc_h"``, ``"pcc_h_best"``, ``"spearman"``, ``"mse"``, ``"mae"``.
    folds
        One or several folds, each in a row of panels with the intervals over its own slides. By default all folds
        together.
    order
        Models to draw, from top to bottom. By default all, sorted by the first metric in all panels.
    labels
        Names of the models to write instead of their labels.
    floor
        Baseline model: a dashed line marks its mean. None, or a model that was not compared: no line.
    reference
        Draw the differences of all other models from this one, slide by slide, over all folds together.
    ax
        Axes to draw on, one per panel, fold after fold; a new figure by default.
    show
        Call :func:`matplotlib.pyplot.show`.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    Array of the Axes, panel after panel; the Figure if ``return_fig``.

    Raises
    ------
    TypeError
        If ``result`` is not a result of :func:`gdml.tl.cross_validate`.
    KeyError
        If a fold or a model is unknown.
    ValueError
        If a metric or ``reference`` is unknown, ``folds`` is given with it, or ``ax`` has another number of axes.

    Examples
    --------
    >>> import gdml
    >>> result = gdml.tl.cross_validate(adata, model=["ridge", "gene-dml"], group_key="patient")  # doctest: +SKIP
    >>> gdml.pl.benchmark(result, metrics=["pcc_a", "mse"])  # doctest: +SKIP
    >>> gdml.pl.benchmark(result, reference="ridge")  # doctest: +SKIP
    """
    check_result(result, "intervals", "slides", "optimistic", "note", "protocol")
    metrics = check_metrics(metrics)
    if reference is not None:
        if folds is not None:
            raise ValueError("`folds` can't be combined with `reference`: differences are over all folds together.")
        axes = draw_benchmark(result, reference, metrics, order, labels, ax)
        draw_note(result, axes, own_figure=ax is None)
        return finish(np.array(axes, dtype=object), show, return_fig)
    slides, pooled = result.slides(), result.intervals()
    models = _ranked(pooled, metrics[0])
    runs = getattr(result, "runs", pd.DataFrame({"model": models, "status": "done"}))
    models += [model for model in pd.unique(runs["model"]) if model not in models]  # all of their runs failed
    names = _with_failures(model_names(models, labels), runs)
    models = models if order is None else check_names("order", order, models)
    if floor is not None and floor != "ridge":
        check_names("floor", floor, models)
    styles = fold_styles(slides)  # before folds are chosen: a fold keeps its colour
    if folds is None:
        blocks: list[tuple[Any, pd.DataFrame, pd.DataFrame]] = [(None, pooled, slides)]
    else:
        by_fold = result.intervals(by_fold=True)
        blocks = [
            (fold, by_fold[by_fold["fold"] == fold], slides[slides["fold"] == fold])
            for fold in check_names("folds", folds, pd.unique(slides["fold"]))
        ]

    shape = len(blocks), len(metrics)
    if ax is None:
        row_inch = np.clip(0.2 + 0.012 * len(slides) / slides["model"].nunique(), 0.34, 0.6)
        row_inch = max(row_inch, 0.2 * max(1 + names[model].count("\n") for model in models))
        name_inch = 0.09 * max(len(line) for model in models for line in names[model].split("\n"))
        size = name_inch + 2.2 + 2.2 * shape[1], max((0.3 + row_inch * len(models)) * shape[0] + 0.5, 2.4)
        grid = plt.subplots(*shape, figsize=size, sharex="col", layout="constrained", squeeze=False)[1]
        axes = list(grid.ravel())
    else:
        axes = given_axes(ax, shape[0] * shape[1])
    heights = _heights(slides)
    for k, one in enumerate(axes):
        fold, means, points = blocks[k // shape[1]]
        metric = metrics[k % shape[1]]
        _draw_panel(one, means[means["metric"] == metric].set_index("model").reindex(models), floor)
        _draw_slides(one, points.assign(height=heights.loc[points.index]), models, metric, styles)
        one.set_yticks(range(len(models)), [names[model] for model in models])
        one.tick_params(axis="y", length=0, labelleft=k % shape[1] == 0)
        if fold is not None and k % shape[1] == 0:
            one.set_ylabel(str(fold), fontweight="bold")
        if ax is not None or k >= shape[1] * (shape[0] - 1):
            one.set_xlabel(METRICS[metric])
    marks = [
        Line2D([], [], **MEAN_STYLE, lw=1.5, label=mean_label(result, pd.concat([means for _, means, _ in blocks])))
    ]
    if floor is not None and floor in models:
        marks.append(Line2D([], [], **LINE_STYLE, label=f"mean of {names[floor].split(chr(10))[0]}"))
    explain(axes[shape[1] - 1], marks, list(styles.values()) if folds is None else [])
    draw_note(result, axes, own_figure=ax is None)
    return finish(np.array(axes, dtype=object), show, return_fig)


def _ranked(means: pd.DataFrame, metric: str) -> list[str]:
    """Models from best to worst; those without a score last."""
    score = means[means["metric"] == metric].set_index("model")["mean"].reindex(pd.unique(means["model"]))
    return list(score.sort_values(ascending=metric in ERRORS, kind="stable").index)


def _with_failures(names: dict[str, str], runs: pd.DataFrame) -> dict[str, str]:
    """Names of the models, with the number of failed runs."""
    failed = runs["status"].eq("failed").groupby(runs["model"], observed=True).agg(["sum", "size"])
    lost = {model: f"\n({n} of {count(size, 'run')} failed)" for model, n, size in failed.itertuples() if n}
    return {model: name + lost.get(model, "") for model, name in names.items()}


def _heights(slides: pd.DataFrame) -> pd.Series:
    """Height of each slide within the row of its model, folds one below the other."""
    place = slides.groupby(["fold", "slide"], sort=False, observed=True).ngroup()
    return _FIRST + (_LAST - _FIRST) * (place + 0.5) / (place.max() + 1)


def _draw_panel(ax: Axes, table: pd.DataFrame, floor: str | None) -> None:
    """Draw means and intervals, a row per model."""
    for i in range(0, len(table), 2):  # every other row is shaded
        ax.axhspan(i - 0.5, i + 0.5, color=BLACK, alpha=0.04, lw=0, zorder=0)
    if floor in table.index:
        ax.axvline(table["mean"][floor], **LINE_STYLE, zorder=1)
    row = np.arange(len(table)) + _MEAN
    ax.hlines(row, table["low"], table["high"], color=BLACK, lw=1.5, zorder=3)
    ax.plot(table["mean"], row, **MEAN_STYLE, lw=0, zorder=4)
    for i in np.flatnonzero(table["mean"].isna()).tolist():
        ax.annotate("no score", (0.5, i), xycoords=ax.get_yaxis_transform(), color=GREY, ha="center", va="center")
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    bare(ax)
    ax.spines["left"].set_visible(False)


def _draw_slides(ax: Axes, points: pd.DataFrame, models: list[str], metric: str, styles: dict[Any, Style]) -> None:
    """Draw the score of each slide."""
    points = points[points["model"].isin(models)]
    row = pd.Series(range(len(models)), index=models)
    for fold, these in points.groupby("fold", sort=False, observed=True):
        style = styles[fold]
        y = row.loc[these["model"]].to_numpy() + these["height"].to_numpy()
        ax.plot(these[metric], y, style.marker, color=style.color, ms=3.2, mew=0, alpha=0.85, zorder=2)
