"""What predictions of each gene are worth: expected against attainable correlation."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gdml import _keys
from gdml._errors import check_count, did_you_mean
from gdml.spots.container import table_of

from ._common import BLUE, GREY, ORANGE, bare, finish, given_axes
from ._names import name_points
from ._page import COLUMN_MM, SMALL_PT, TEXT_PT, figure_of, inches, size_mm, wrapped
from ._warrants import ATTAINABLE, EXPECTED, HIGH, LOW, WARRANT, gene_table

_STYLES = {"carried by the image": (BLUE, "o"), "partly": (ORANGE, "s"), "not shown": (GREY, "D")}
_OTHER = (GREY, "^")
# the rule of gdml.training.Warrant, from the best verdict to the worst
_RULE = {
    "carried by the image": "at least half of the attainable, interval from 0.2 up",
    "partly": "interval above 0",
    "not shown": "interval reaches 0, or is not known",
}
_HEIGHT_MM = 92.0
_HANDLE_MM = 6.0  # a marker of the legend, with the space around it


def warrant(
    adata: AnnData,
    *,
    genes: str | Sequence[str] | None = None,
    n_labels: int = 5,
    key: str = _keys.KEY,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure:
    """Plot for each gene the correlation to expect of its predictions against the best that its counts allow.

    The expected correlation is that of predictions out of fold, with its interval. The attainable
    one is limited by the noise of the counts: the same tissue measured twice would correlate so. On the solid line all
    that can be attained is reached, on the dashed line half of it. Colours and markers are the verdicts of
    :func:`gdml.tl.predict`; the legend gives their rule (:class:`gdml.training.Warrant`) and the number of genes.

    Parameters
    ----------
    adata
        With predictions of :func:`gdml.tl.predict` by a model that keeps predictions out of fold, or of
        :func:`gdml.tl.cross_validate`. A SpatialData with one table works as well.
    genes
        Genes to label, instead of the best and the worst.
    n_labels
        Number of genes to label with the highest and with the lowest expected correlation.
    key
        Key of the predictions; of a cross-validation, such as ``"gdml_ridge"``.
    ax
        Axes to draw on; a new figure, 85 mm wide, by default.
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
        If ``adata.uns[key]["predict"]["genes"]`` is missing, or a gene has no expected and attainable correlation.
    ValueError
        If the table lacks a column, or has no gene with both correlations.
    TypeError
        If ``n_labels`` is not a number.

    Examples
    --------
    >>> import gdml
    >>> gdml.tl.predict(slide, model)  # doctest: +SKIP
    >>> gdml.pl.warrant(slide, genes=["FASN", "GNAS"])  # doctest: +SKIP
    """
    check_count("n_labels", n_labels, at_least=0)
    adata = table_of(adata)
    table, left_out = _drawable(adata, key)
    marked = _marked(table, genes, n_labels)
    if ax is None:
        size = (inches(COLUMN_MM), inches(_HEIGHT_MM))
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    else:
        (ax,) = given_axes(ax, 1)
    _draw(ax, table)
    _explain(ax, table, left_out, str(adata.uns[key][_keys.PREDICT].get("unseen", "")))
    figure_of(ax).draw_without_rendering()  # names are placed between the points of the final layout
    x, y = table[ATTAINABLE].to_numpy(), table[EXPECTED].to_numpy()
    name_points(ax, x, y, {int(table.index.get_loc(gene)): gene for gene in marked}, pt=SMALL_PT)
    return finish(ax, show, return_fig)


def _drawable(adata: AnnData, key: str) -> tuple[pd.DataFrame, int]:
    """Genes with an expected and an attainable correlation, and the number of the others."""
    table = gene_table(adata, key)
    if table is None or ATTAINABLE not in table:
        call = "gdml.tl.predict(adata, model" + (")" if key == _keys.KEY else f", key_added={key!r})")
        raise KeyError(
            f"adata.uns[{key!r}]['predict'] has no table 'genes' of what predictions are worth. {call} writes it with a "
            "model that keeps out-of-fold predictions; fit the model again with gdml.tl.fit if it does not. "
            "gdml.tl.cross_validate(adata, 'ridge') writes it for key='gdml_ridge', unless protocol='paper'."
        )
    for column in (WARRANT, EXPECTED, LOW, HIGH):
        if column not in table:
            raise ValueError(f"adata.uns[{key!r}]['predict']['genes'] has no column {column!r}; it has {list(table)}.")
    known = table[[EXPECTED, ATTAINABLE]].notna().all(axis=1)
    if not known.any():
        raise ValueError(f"No gene of adata.uns[{key!r}]['predict']['genes'] has an expected and an attainable PCC.")
    return table[known], int((~known).sum())


def _marked(table: pd.DataFrame, genes: str | Sequence[str] | None, n_labels: int) -> list[str]:
    """Genes to label."""
    if genes is None:
        ranked = table[EXPECTED].sort_values(ascending=False, kind="stable").index
        n = min(n_labels, len(ranked) // 2)
        return [*ranked[:n], *ranked[len(ranked) - n :]]
    genes = [genes] if isinstance(genes, str) else list(genes)
    for gene in genes:
        if gene not in table.index:
            raise KeyError(f"`genes` names {gene!r}, which has no warrant. {did_you_mean(str(gene), table.index)}")
    return list(dict.fromkeys(genes))


def _draw(ax: Axes, table: pd.DataFrame) -> None:
    """Draw the points with their intervals, and the lines of all and of half that can be attained."""
    x, y = table[ATTAINABLE], table[EXPECTED]
    known = _with_interval(table)
    ax.vlines(known[ATTAINABLE], known[LOW], known[HIGH], color=GREY, lw=0.4, alpha=0.45, zorder=1)
    for verdict in _verdicts(table):
        own = table[WARRANT] == verdict
        color, marker = _STYLES.get(verdict, _OTHER)
        ax.plot(x[own], y[own], marker, color=color, ms=2.6, mew=0, zorder=2)
    right = max(1.0, float(x.max()))
    ax.plot([0, right], [0, right], color="black", lw=0.6, zorder=0)
    ax.plot([0, right], [0, right / 2], color="black", lw=0.6, ls=(0, (4, 3)), zorder=0)
    ax.axhline(0, color=GREY, lw=0.5, zorder=0)
    drawn = np.concatenate([y, known[LOW], known[HIGH]])
    lowest, highest = min(0.0, float(np.nanmin(drawn))), max(1.0, float(np.nanmax(drawn)))
    ax.set(xlim=(min(0.0, float(x.min())), right), ylim=(lowest - 0.05, highest))


def _with_interval(table: pd.DataFrame) -> pd.DataFrame:
    """Genes whose interval says anything: one held-out patient or slide gives that from -1 to 1."""
    return table[~((table[LOW] <= -1) & (table[HIGH] >= 1))]


def _explain(ax: Axes, table: pd.DataFrame, left_out: int, unseen: str) -> None:
    """Write axes and, above them, the legend."""
    width = size_mm(ax)[0] - _HANDLE_MM
    handles = []
    for verdict in _verdicts(table):
        color, marker = _STYLES.get(verdict, _OTHER)
        rule = f": {_RULE[verdict]}" if verdict in _RULE else ""
        label = "\n".join(wrapped(f"{verdict} ({int((table[WARRANT] == verdict).sum())}){rule}", width, SMALL_PT))
        handles.append(Line2D([], [], color=color, marker=marker, ms=4, mew=0, lw=0, label=label))
    handles.append(Line2D([], [], color="black", lw=0.6, label="all that is attainable"))
    handles.append(Line2D([], [], color="black", lw=0.6, ls=(0, (4, 3)), label="half of it"))
    where: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.01), "borderaxespad": 0.0, "borderpad": 0.2}
    ax.legend(handles=handles, **where, frameon=False, fontsize=SMALL_PT, handlelength=1.6, alignment="left")
    ax.set_xlabel(
        f"attainable PCC ({len(table)} genes{f', {left_out} left out' if left_out else ''})", fontsize=TEXT_PT
    )
    ax.set_ylabel(f"expected PCC{f' on an {unseen}' if unseen else ''}\nwith its 90 % interval", fontsize=TEXT_PT)
    ax.tick_params(labelsize=SMALL_PT)
    bare(ax)


def _verdicts(table: pd.DataFrame) -> list[str]:
    """Verdicts in the table: known ones from best to worst, then others."""
    found = list(pd.unique(table[WARRANT].dropna().astype(str)))
    return [one for one in _STYLES if one in found] + [one for one in found if one not in _STYLES]
