"""What plots of comparisons have in common: checks, styles, legends, and the caveat of optimistic protocols."""

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from gdml import _keys
from gdml._errors import count, did_you_mean

from ._common import BLACK, COLORS, GREY, RED

METRICS = {
    "pcc_a": "PCC(A)",
    "pcc_h": "PCC(H)",
    "pcc_h_best": "PCC(H), genes chosen\non the test slides",
    "spearman": "Spearman's \N{GREEK SMALL LETTER RHO}",
    "mse": "MSE (lower is better)",
    "mae": "MAE (lower is better)",
}
ERRORS = ("mse", "mae")  # lower is better
MEAN_STYLE: dict[str, Any] = {"color": BLACK, "marker": "o", "ms": 5.5, "mec": "white", "mew": 0.6}
LINE_STYLE: dict[str, Any] = {"color": BLACK, "lw": 0.8, "ls": (0, (4, 2))}  # of the reference mean
_MARKERS = "osD^vP"
_MOST_FOLDS = 12  # that markers and colours distinguish


def check_result(result: Any, *parts: str, made_by: str = "gdml.tl.cross_validate", argument: str = "result") -> None:
    """Raise TypeError if ``result`` lacks one of the attributes ``parts``."""
    absent = [part for part in parts if not hasattr(result, part)]
    if absent:
        raise TypeError(
            f"`{argument}` is a {type(result).__name__} without {absent[0]!r}; give what {made_by} returns."
        )


def check_metrics(metrics: str | Sequence[str]) -> list[str]:
    """Return the metrics as a list; raise ValueError if it is empty or a metric is unknown."""
    metrics = [metrics] if isinstance(metrics, str) else list(metrics)
    if not metrics:
        raise ValueError("`metrics` is empty; name one at least, such as 'pcc_a'.")
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"Unknown metric {metric!r}. {did_you_mean(str(metric), METRICS)}")
    return metrics


def check_names(argument: str, wanted: Any, known: Iterable[Any]) -> list[Any]:
    """Return one name or several as a list, spelled as in ``known``.

    Raises
    ------
    KeyError
        If a name is unknown.
    ValueError
        If no name is given.
    """
    by_text = {str(name): name for name in known}
    wanted = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else list(wanted)
    for name in wanted:
        if str(name) not in by_text:
            raise KeyError(f"`{argument}` names {name!r}, which is unknown. {did_you_mean(str(name), by_text)}")
    if not wanted:
        raise ValueError(f"`{argument}` is empty; name one at least, or leave it out.")
    return list(dict.fromkeys(by_text[str(name)] for name in wanted))


class Style(NamedTuple):
    """Style of the slides of a fold."""

    color: str
    marker: str
    label: str | None


def fold_styles(slides: pd.DataFrame) -> dict[Any, Style]:
    """Colour and marker of each fold; one style for all if there is a single fold or more than can be distinguished."""
    folds = list(pd.unique(slides["fold"]))
    n = len(COLORS)
    if 1 < len(folds) <= _MOST_FOLDS:
        return {
            fold: Style(COLORS[i % n], _MARKERS[(i + i // n) % len(_MARKERS)], str(fold))
            for i, fold in enumerate(folds)
        }
    return {fold: Style(GREY, "o", None if i else "slide") for i, fold in enumerate(folds)}


def draw_note(result: Any, axes: Sequence[Axes], *, own_figure: bool) -> None:
    """Write the note of the result above the panels: as a warning if the scores are optimistic, else in grey.

    Above the whole figure if gdml created it, else above the first of the axes.
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
    letters = max(20, int(inches * 72 / (0.62 * size)))
    text = fill(note, min(letters, len(note) // (len(note) // letters + 1) + 8))  # lines of similar length
    style: dict[str, Any] = {"color": GREY, "fontsize": size}
    if optimistic:
        box = {"facecolor": RED, "edgecolor": RED, "pad": 3}
        style = {"color": "white", "fontsize": size, "fontweight": "bold", "bbox": box}
    if not own_figure:
        first.set_title(text, loc="left", pad=10, **style)
        return
    figure.get_layout_engine().set(h_pad=0.08)  # space for the frame of the text
    above = figure.suptitle(text, **style)
    figure.draw_without_rendering()  # the layout moves the panels: centre the text over them
    places = [one.get_position() for one in axes]
    middle = (min(place.x0 for place in places) + max(place.x1 for place in places)) / 2
    half = (0.53 * above.get_window_extent().width + 6) / figure.bbox.width  # texts are wider at other resolutions
    above.set_x(np.clip(middle, half, max(half, 1 - half)))


def is_optimistic(adata: AnnData, key: str) -> bool:
    """Whether the predictions under ``key`` are of models that were selected on the predicted spots."""
    record = adata.uns.get(key, {}).get(_keys.PREDICT, {})
    return bool(record.get("optimistic", record.get("protocol") == "paper"))


def measured_table(adata: AnnData, keys: Iterable[str]) -> str | None:
    """Key in ``adata.obsm`` of the measured expression to compare predictions with.

    What :func:`gdml.tl.evaluate` measured, on the scale of the predictions, comes before what models learn; the names
    under ``keys`` before those under ``"gdml"``. None if there is no such table.
    """
    candidates = [name(key) for name in (_keys.evaluated, _keys.measured) for key in (*keys, _keys.KEY)]
    return next((name for name in candidates if is_table(adata, name)), None)


def prediction_keys(adata: AnnData) -> list[str]:
    """Keys of tables of predictions in ``adata.obsm``."""
    suffixes = (_keys.measured(""), _keys.evaluated(""))
    return [
        key
        for key in adata.obsm
        if is_table(adata, key)
        and not key.endswith(suffixes)
        and (key.startswith(_keys.KEY) or _keys.PREDICT in adata.uns.get(key, {}))
    ]


def is_table(adata: AnnData, key: str) -> bool:
    """Whether ``adata.obsm[key]`` is a DataFrame."""
    return isinstance(adata.obsm.get(key), pd.DataFrame)


def mean_label(result: Any, means: pd.DataFrame) -> str:
    """Legend of means with their intervals: what the intervals are over, and how many of them.

    Parameters
    ----------
    result
        Result of a comparison; its ``group_key`` names the groups.
    means
        Rows of its ``intervals()``, with ``interval_over`` (``"groups"``, ``"slides"`` or ``"blocks"``), ``n_groups`` and
        ``n_slides`` if the result has them.
    """
    if not {"interval_over", "n_groups", "n_slides"} <= set(means):
        return "mean, bootstrap interval"

    def counted(column: str, noun: str) -> str:
        numbers = means[column].unique()
        return count(int(numbers[0]), noun) if len(numbers) == 1 else f"{noun}s"  # folds and models may differ

    groups = counted("n_groups", str(getattr(result, "group_key", None) or "group"))
    slides = counted("n_slides", "slide")
    over = means["interval_over"].dropna().astype(str)
    over = over[over != ""]
    if over.empty:
        return f"mean ({slides}, {groups})"
    if over.str.startswith("block").all():
        n_blocks = len(result.slides()[["fold", "slide"]].drop_duplicates())
        return f"mean, interval over\n{count(n_blocks, 'block')} ({slides})"
    if over.str.startswith("group").all():
        return f"mean, interval over\n{groups}"
    return f"mean, interval over\n{slides} ({groups})"


def explain(ax: Axes, marks: list[Line2D], styles: Sequence[Style]) -> None:
    """Add the legend right of the panels: ``marks``, and the slides of each fold."""
    named = [style for style in styles if style.label is not None]
    if len(named) > 1:
        marks = [*marks, Line2D([], [], lw=0, label="slides, by test fold:")]
    dots = [Line2D([], [], color=s.color, marker=s.marker, ms=4, mew=0, lw=0, label=s.label) for s in named]
    ax.legend(handles=[*marks, *dots], loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
