"""Ranked correlations of genes."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import check_count, did_you_mean
from gdml.spots.container import table_of

from ._common import BLUE, GREY, RED, bare, finish, given_axes, spread
from ._gene_curves import Scores, draw_curves, scores_of_models
from ._results import draw_note


def gene_scores(
    adata: AnnData,
    *,
    genes: Sequence[str] | None = None,
    n_labels: int = 6,
    key: str | Sequence[str] | Any = _keys.KEY,
    labels: Mapping[str, str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure:
    """Plot the Pearson correlation of each gene, ranked from best to worst.

    Points are correlations averaged over slides; bars span the lowest to the highest slide. The dashed line marks
    PCC(A).

    Several models are drawn as a curve each, labelled with PCC(A). Each curve has its own ranking: the same rank can be
    another gene on another curve.

    Parameters
    ----------
    adata
        With scores of :func:`gdml.tl.evaluate`; not read if ``key`` is a result. A SpatialData with one table works as
        well.
    genes
        Genes to label, instead of the best and the worst. With several models, genes to mark on every curve, at most
        six; none by default.
    n_labels
        Number of best and of worst genes to label; with one model only.
    key
        Key in ``adata.uns`` of the scores; several keys for several models; or the result of
        :func:`gdml.tl.cross_validate`, for all its models.
    labels
        Names of the models by key; by default the key without ``gdml_``. With several models only.
    ax
        Axes to draw on; a new figure by default.
    show
        Call :func:`matplotlib.pyplot.show`.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The Axes; the Figure if ``return_fig``.

    Raises
    ------
    KeyError
        If there are no scores under ``key``, or a gene has none.
    TypeError
        If ``key`` is neither a key, nor several, nor a result of :func:`gdml.tl.cross_validate`, or ``n_labels`` is not a
        number.
    ValueError
        If all genes are constant, ``n_labels`` is negative, or more than six genes are to be marked.

    Examples
    --------
    >>> import gdml
    >>> gdml.tl.evaluate(adata)  # doctest: +SKIP
    >>> gdml.pl.gene_scores(adata, genes=["FASN", "GNAS"])  # doctest: +SKIP
    """
    check_count("n_labels", n_labels, at_least=0)
    models = scores_of_models(table_of(adata), key)
    own = ax is None
    size = (5.6, 3.8) if len(models) == 1 else (6.4, 4.2)
    ax = plt.subplots(figsize=size, layout="constrained")[1] if ax is None else given_axes(ax, 1)[0]
    if len(models) > 1:
        draw_curves(ax, models, genes, labels)
    else:
        _draw_ranked(ax, next(iter(models.values())), genes, n_labels)
    if hasattr(key, "optimistic"):
        draw_note(key, [ax], own_figure=own)
    return finish(ax, show, return_fig)


def _draw_ranked(ax: Axes, scores: Scores, genes: Sequence[str] | None, n_labels: int) -> None:
    """Draw the genes of a model, with their range over slides, and label some."""
    names, pcc, overall = scores.genes, scores.pcc, scores.pcc_a
    order, mean = scores.ranked()
    low, high = np.nanmin(pcc[:, order], axis=0), np.nanmax(pcc[:, order], axis=0)
    rank = np.arange(1, len(order) + 1)

    if len(pcc) > 1:
        ax.vlines(rank, low, high, color=BLUE, alpha=0.3, lw=0.8)
    ax.plot(rank, mean[order], "o", color=BLUE, ms=2.5, mew=0)
    ax.axhline(0, color=GREY, lw=0.8)
    ax.axhline(overall, color=RED, lw=0.8, ls="--")
    pad = 0.04 * len(order)
    ax.set_xlim(-pad, len(order) + 1 + pad)
    ax.margins(y=0.06)
    _name_genes(ax, names[order], mean[order], _labelled(names, order, genes, n_labels))
    ax.annotate(
        f"PCC(A) {overall:.2f}" + ("\noptimistic" if scores.optimistic else ""), (1, overall), xycoords=ax.get_yaxis_transform(), xytext=(4, 0),
        textcoords="offset points", color=RED, va="center", fontsize="small",
    )  # fmt: skip
    left_out = len(names) - len(order)
    ax.set_xlabel("genes, ranked" + (f" ({left_out} constant, left out)" if left_out else ""))
    ax.set_ylabel("PCC" + (f", mean and range of {len(pcc)} slides" if len(pcc) > 1 else ""))
    bare(ax)


def _labelled(
    names: NDArray[np.str_], order: NDArray[np.intp], genes: Sequence[str] | None, n_labels: int
) -> NDArray[np.intp]:
    """Ranks of the genes to label."""
    if genes is None:
        n = min(n_labels, len(order) // 2)
        return np.r_[np.arange(n), np.arange(len(order) - n, len(order))]
    for gene in [genes] if isinstance(genes, str) else genes:
        if gene not in names[order]:
            raise KeyError(
                f"`genes` names {gene!r}, which has no correlation. {did_you_mean(gene, names[order].tolist())}"
            )
    return np.flatnonzero(np.isin(names[order], genes))


def _name_genes(ax: Axes, names: NDArray[np.str_], values: NDArray[np.float64], ranks: NDArray[np.intp]) -> None:
    """Write the names of the better genes to the upper right of their points, the others to the lower left.

    Ranked points fall from the upper left to the lower right, so that both corners are free. Each column of names is as
    close to its points as it fits above (or below) the curve; if it fits nowhere, the limits of the axis are extended.
    """
    n = len(names)
    bottom, top = ax.get_ylim()
    points = ax.get_window_extent().height / ax.figure.dpi * 72
    columns = []
    for better in (True, False):
        these = ranks[(ranks < n / 2) == better]
        if not len(these):
            continue
        line = min(10, 0.4 * points / len(these)) / points  # of text, as a fraction of the axis
        height = (len(these) + 1) * line
        # the lower column is the upper one of mirrored ranks and values
        curve, last = (values, these.max()) if better else (-values[::-1], n - 1 - these.min())
        limit = top if better else -bottom
        tried = np.arange(int(last + 0.09 * n), max(int(last + 0.09 * n), n // 2) + 1).clip(max=n - 1)
        fits = curve[tried] + height * (top - bottom) <= limit
        column = tried[fits.argmax()] if fits.any() else tried[-1]
        columns.append((these, column if better else n - 1 - column, line, better))
    for _ in range(10):  # lines of text span more of the axis when its limits are extended
        for these, column, line, better in columns:
            height = (len(these) + 1) * line * (top - bottom)
            top, bottom = (
                (max(top, values[column] + height), bottom) if better else (top, min(bottom, values[column] - height))
            )
    ax.set_ylim(bottom, top)

    for these, column, line, better in columns:
        gap = line * (top - bottom)
        limits = (values[column] + gap, top - gap / 2) if better else (bottom + gap / 2, values[column] - gap)
        for rank, y in zip(these, spread(values[these], gap, *limits), strict=True):
            ax.annotate(
                names[rank], (rank + 1, values[rank]), xytext=(column + 1, y), fontsize="small", fontstyle="italic",
                va="center", ha="left" if better else "right",
                arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 1, "shrinkB": 1, "relpos": (1 - better, 0.5)},
                path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
            )  # fmt: skip
