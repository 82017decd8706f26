"""Correlations of genes: read from an AnnData or a comparison, and drawn as a ranked curve per model."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import did_you_mean, some
from gdml.metrics import nan_mean

from ._common import BLACK, COLORS, GREY, add_legend, bare, model_names, spread, two_digits
from ._results import check_result, is_optimistic, is_table, prediction_keys

_COLORS, _LINES, _MARKERS = (*COLORS, BLACK), ("-", (0, (4, 1.5)), (0, (1, 1))), "osD^vP"
_LABEL_PT = 11.0  # height of a line


class Scores(NamedTuple):
    """Correlations of a model."""

    genes: NDArray[np.str_]
    pcc: NDArray[np.float64]  # slides x genes
    pcc_a: float
    optimistic: bool = False  # to be written beside the score

    def ranked(self) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Columns of the genes from best to worst, without constant ones, and the mean over slides of every gene."""
        mean = nan_mean(self.pcc, 0)
        order = np.argsort(-mean, kind="stable")  # NaN last
        return order[~np.isnan(mean[order])], mean


def scores_of_models(adata: AnnData, key: str | Iterable[str] | Any) -> dict[str, Scores]:
    """Read the correlations of each model, from ``adata.uns`` or from the result of a comparison.

    Raises
    ------
    KeyError
        If there are no scores under a key.
    TypeError
        If ``key`` is neither a key, nor several, nor a result.
    ValueError
        If there is no model, or a model without any correlation.
    """
    if isinstance(key, str):
        found = {key: _recorded(adata, key)}
    elif isinstance(key, Iterable) and not isinstance(key, pd.DataFrame):
        found = {str(one): _recorded(adata, str(one)) for one in key}
    else:
        found = _compared(key)
    if not found:
        raise ValueError("`key` is empty; name at least one model.")
    for name, scores in found.items():
        if np.isnan(scores.pcc).all():
            raise ValueError(f"No gene has a correlation under {name!r}: all are constant.")
    return found


def _recorded(adata: AnnData, key: str) -> Scores:
    record = adata.uns.get(key, {}).get(_keys.EVALUATE)
    if record is None:
        raise KeyError(f"`key` is {key!r}, but adata.uns[{key!r}] holds no scores; {_how_to_score(adata, key)}")
    pcc = np.atleast_2d(np.asarray(record["pcc"], np.float64))
    return Scores(
        np.asarray(record["genes"]).astype(str), pcc, float(nan_mean(nan_mean(pcc, 1))), is_optimistic(adata, key)
    )


def _how_to_score(adata: AnnData, key: str) -> str:
    """Say which call makes scores under ``key``, or under the keys that have predictions."""
    if is_table(adata, key):
        return f"run gdml.tl.evaluate(adata, key={key!r})."
    if known := prediction_keys(adata):
        return (
            f"predictions are under {some(map(repr, known))}: run gdml.tl.evaluate(adata, key={known[0]!r}) and pass "
            "that key, or pass the result of gdml.tl.cross_validate as `key`."
        )
    return "run gdml.tl.predict(adata, model) and then gdml.tl.evaluate(adata)."


def _compared(result: Any) -> dict[str, Scores]:
    check_result(result, "scores", "intervals", "optimistic", "note", "protocol", argument="key")
    means = result.intervals()
    pcc_a = means[means["metric"] == "pcc_a"].set_index("model")["mean"]
    found = {}
    for model, table in result.scores.groupby("model", sort=False, observed=True):
        by_slide = table.groupby(["fold", "slide", "gene"], observed=True)["pcc"].mean().unstack("gene")  # over seeds
        genes, pcc = by_slide.columns.to_numpy().astype(str), by_slide.to_numpy(np.float64)
        found[str(model)] = Scores(genes, pcc, float(pcc_a[model]))
    return found


def draw_curves(
    ax: Axes, models: dict[str, Scores], genes: str | Sequence[str] | None, labels: Mapping[str, str] | None
) -> None:
    """Draw the ranked curve of each model, with markers at ``genes``.

    Raises
    ------
    KeyError
        If a gene or a model is unknown.
    ValueError
        If there are more genes than markers.
    """
    names = model_names(models, labels)
    marked = _marked(models, genes)
    curves = []
    for i, scores in enumerate(models.values()):
        order, mean = scores.ranked()
        color = _COLORS[i % len(_COLORS)]
        rank = np.arange(1, len(order) + 1)
        curves += ax.plot(rank, mean[order], color=color, lw=1.4, ls=_LINES[i // len(_COLORS) % len(_LINES)])
        for gene, marker in marked.items():
            at = np.flatnonzero(scores.genes[order] == gene)
            ax.plot(rank[at], mean[order[at]], marker, color=color, ms=6, mec="white", mew=0.7)
    ax.axhline(0, color=GREY, lw=0.8, zorder=0)
    longest = max(float(np.max(curve.get_xdata())) for curve in curves)
    ax.set_xlim(1 - 0.03 * longest, 1 + 1.03 * longest)
    ax.margins(y=0.06)
    slides = {len(scores.pcc) for scores in models.values()}
    over = f"of {slides.pop()} slides" if len(slides) == 1 else "over slides"
    ax.set_ylabel("PCC" if over == "of 1 slides" else f"PCC, mean {over}")
    ax.set_xlabel("genes, ranked for each model")
    bare(ax)
    texts = [
        f"{names[model]} {two_digits(scores.pcc_a)}" + (", optimistic" if scores.optimistic else "")
        for model, scores in models.items()
    ]
    by_score = np.argsort([-scores.pcc_a for scores in models.values()])
    _name_curves(ax, texts, curves, by_score)
    if marked:
        handles = [Line2D([], [], color=GREY, marker=marker, ms=6, lw=0, label=gene) for gene, marker in marked.items()]
        ax.legend(handles=handles, loc="lower left", frameon=False, prop={"style": "italic", "size": "small"})


def _marked(models: dict[str, Scores], genes: str | Sequence[str] | None) -> dict[str, str]:
    """Marker of each gene."""
    genes = [] if genes is None else [genes] if isinstance(genes, str) else list(genes)
    if len(genes) > len(_MARKERS):
        raise ValueError(
            f"`genes` has {len(genes)} names, but at most {len(_MARKERS)} can be marked on several curves."
        )
    known = {gene for scores in models.values() for gene in scores.genes[scores.ranked()[0]]}
    for gene in genes:
        if gene not in known:
            raise KeyError(f"`genes` names {gene!r}, which has no correlation. {did_you_mean(gene, known)}")
    return dict(zip(genes, _MARKERS, strict=False))


def _name_curves(ax: Axes, texts: list[str], curves: list[Line2D], by_score: NDArray[np.intp]) -> None:
    """Label each curve at its end; use a legend if there are too many labels."""
    line = _LABEL_PT / (ax.get_window_extent().height / ax.figure.dpi * 72)
    if (len(texts) + 1) * line > 1:
        for text, curve in zip(texts, curves, strict=True):
            curve.set_label(text)
        columns = int(np.ceil(1.4 * len(texts) * line))
        add_legend(ax, [curves[i] for i in by_score], at=(1, 1), title="PCC(A)", ncols=columns, fontsize="small")
        return
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = [tuple(np.asarray(curve.get_xydata())[-1]) for curve in curves]
    places = spread([to_axes.transform(end)[1] for end in ends], line, 0, 1 - line)
    for text, curve, end, y in zip(texts, curves, ends, places, strict=True):
        # the leader has the style of the curve, and letters are black: pale colours are hard to read
        leader = {"color": curve.get_color(), "ls": curve.get_linestyle(), "lw": 1, "shrinkA": 1, "shrinkB": 0}
        ax.annotate(
            text, end, xytext=(1.04, y), textcoords="axes fraction", va="center", fontsize="small",
            arrowprops={"arrowstyle": "-", "relpos": (0, 0.5), **leader},
        )  # fmt: skip
    ax.annotate(
        "PCC(A)", (1.04, max(places) + line), xycoords="axes fraction", color=GREY, va="center", fontsize="small"
    )
