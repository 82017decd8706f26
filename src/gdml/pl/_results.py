"""What plots read from the results of comparisons, and how they say that a protocol is optimistic."""

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from gdml import _keys
from gdml._errors import did_you_mean

from ._common import BLACK, COLORS, GREY, RED

METRICS = {
    "pcc_a": "PCC(A)",
    "pcc_h": "PCC(H)",
    "pcc_h_best": "PCC(H), genes chosen\non the test slides",
    "spearman": "Spearman's \N{GREEK SMALL LETTER RHO}",
    "mse": "MSE (lower is better)",
    "mae": "MAE (lower is better)",
}
ERRORS = ("mse", "mae")  # the lower the better
MEAN_STYLE: dict[str, Any] = {"color": BLACK, "marker": "o", "ms": 5.5, "mec": "white", "mew": 0.6}
LINE_STYLE: dict[str, Any] = {"color": BLACK, "lw": 0.8, "ls": (0, (4, 2))}  # of the mean that others are held against
_MARKERS = "osD^vP"
_MOST_FOLDS = 12  # that can be told apart


def check_result(result: Any, *parts: str, made_by: str = "gdml.tl.cross_validate", argument: str = "result") -> None:
    """Check that ``result`` has what is read from it.

    Raises
    ------
    TypeError
        If it has not.
    """
    absent = [part for part in parts if not hasattr(result, part)]
    if absent:
        raise TypeError(
            f"`{argument}` is a {type(result).__name__} without {absent[0]!r}; give what {made_by} returns."
        )


def check_metrics(metrics: str | Sequence[str]) -> list[str]:
    """List the metrics asked for.

    Raises
    ------
    ValueError
        If there is none, or one is unknown.
    """
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    if not metrics:
        raise ValueError("`metrics` is empty; name one at least, such as 'pcc_a'.")
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"Unknown metric {metric!r}. {did_you_mean(str(metric), METRICS)}")
    return metrics


def check_names(argument: str, wanted: Any, known: Iterable[Any]) -> list[Any]:
    """List what was asked for, one name or several, as the table has it.

    Raises
    ------
    KeyError
        If a name is unknown.
    ValueError
        If there is none.
    """
    by_text = {str(name): name for name in known}
    wanted = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else list(wanted)
    for name in wanted:
        if str(name) not in by_text:
            raise KeyError(f"`{argument}` names {name!r}, which is not there. {did_you_mean(str(name), by_text)}")
    if not wanted:
        raise ValueError(f"`{argument}` is empty; name one at least, or leave it out.")
    return list(dict.fromkeys(by_text[str(name)] for name in wanted))


class Style(NamedTuple):
    """How the slides of one fold are drawn."""

    color: str
    marker: str
    label: str | None


def fold_styles(slides: pd.DataFrame) -> dict[Any, Style]:
    """Give each fold a colour and a marker; one for all where there is but one fold, or more than can be told apart."""
    folds = list(pd.unique(slides["fold"]))
    n = len(COLORS)
    if 1 < len(folds) <= _MOST_FOLDS:
        return {
            fold: Style(COLORS[i % n], _MARKERS[(i + i // n) % len(_MARKERS)], str(fold))
            for i, fold in enumerate(folds)
        }
    return {fold: Style(GREY, "o", None if i else "slide") for i, fold in enumerate(folds)}


def tell_protocol(result: Any, axes: Sequence[Axes], *, own_figure: bool) -> None:
    """Write above the panels that the scores are optimistic, in a way that cannot be missed; other notes in grey.

    Above the whole figure where it is ours, else above the first of the axes.
    """
    note, optimistic = str(result.note or ""), bool(result.optimistic)
    if optimistic and "optimistic" not in note.lower():
        note = ": ".join(filter(None, [f"optimistic (protocol {str(result.protocol)!r})", note]))
    if not note:
        return
    first = axes[0]
    figure: Any = first.get_figure(root=True)
    size = 11 if optimistic else 9
    inches = figure.get_size_inches()[0] if own_figure else first.get_window_extent().width / figure.dpi
    text = fill(note, max(20, int(inches * 72 / (0.62 * size))))
    style: dict[str, Any] = {"color": GREY, "fontsize": size}
    if optimistic:
        box = {"facecolor": RED, "edgecolor": RED, "pad": 3}
        style = {"color": "white", "fontsize": size, "fontweight": "bold", "bbox": box}
    if not own_figure:
        first.set_title(text, loc="left", pad=10, **style)
        return
    figure.get_layout_engine().set(h_pad=0.08)  # the box stands out of its text
    above = figure.suptitle(text, **style)
    figure.draw_without_rendering()  # panels take their places, which are not the middle of the figure
    places = [one.get_position() for one in axes]
    middle = (min(place.x0 for place in places) + max(place.x1 for place in places)) / 2
    half = (0.53 * above.get_window_extent().width + 6) / figure.bbox.width  # texts are wider at other resolutions
    above.set_x(np.clip(middle, half, max(half, 1 - half)))


def is_optimistic(adata: AnnData, key: str) -> bool:
    """Whether the predictions under ``key`` come from models that were selected on the spots they were predicted for."""
    record = adata.uns.get(key, {}).get(_keys.PREDICT, {})
    return bool(record.get("optimistic", record.get("protocol") == "paper"))


def explain(ax: Axes, marks: list[Line2D], styles: Sequence[Style]) -> None:
    """Write the legend, right of the panels: ``marks``, and the slides of each fold."""
    named = [style for style in styles if style.label is not None]
    if len(named) > 1:
        marks = [*marks, Line2D([], [], lw=0, label="slides, by test fold:")]
    dots = [Line2D([], [], color=s.color, marker=s.marker, ms=4, mew=0, lw=0, label=s.label) for s in named]
    ax.legend(handles=[*marks, *dots], loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
