"""Scores of predictions against measurements, gene by gene: plain functions on arrays.

A gene that is constant in a slide has no correlation: its value is NaN, it is left out of all means, and it
ranks lowest.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._attainable import attainable_pcc
from ._correlation import check_pair, pearson_per_gene, spearman_per_gene

__all__ = [
    "attainable_pcc",
    "gene_ranks",
    "mae_per_gene",
    "mse_parts_per_gene",
    "mse_per_gene",
    "nan_mean",
    "pcc_a",
    "pcc_h",
    "pearson_per_gene",
    "spearman_per_gene",
    "spread_per_gene",
    "top_genes",
]


def mse_per_gene(measured: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    """Mean squared error of each gene over the spots.

    Parameters
    ----------
    measured, predicted
        Expression, spots x genes.

    Returns
    -------
    Length genes, in squared units of the expression.

    Raises
    ------
    ValueError
        If the two are not spots x genes of the same shape, with at least one spot.
    """
    y, p = check_pair(measured, predicted)
    return ((y - p) ** 2).mean(0)


def mse_parts_per_gene(measured: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean squared error of each gene on one slide, in two parts that add up to :func:`mse_per_gene`.

    Parameters
    ----------
    measured, predicted
        Expression, spots x genes.

    Returns
    -------
    level : length genes
        Squared difference of the means over the spots: the whole slide is predicted too high or too low.
    pattern : length genes
        Variance of the error over the spots: what remains where the level is right.

    Raises
    ------
    ValueError
        If the two are not spots x genes of the same shape, with at least one spot.
    """
    y, p = check_pair(measured, predicted)
    error = y - p
    return error.mean(0) ** 2, error.var(0)


def spread_per_gene(measured: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    """Divide the standard deviation of the predictions by that of the measured values, for each gene of one slide.

    Predictions that minimise the squared error vary less than what was measured, by the part that they cannot explain:
    the best linear prediction with correlation r has a spread of r.

    Parameters
    ----------
    measured, predicted
        Expression, spots x genes.

    Returns
    -------
    Length genes, at least 0; NaN where the measured values are constant (to float32 precision) or values are not
    finite.

    Raises
    ------
    ValueError
        If the two are not spots x genes of the same shape, with at least one spot.
    """
    y, p = check_pair(measured, predicted)
    constant = np.isnan(pearson_per_gene(y, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(constant, np.nan, p.std(0) / y.std(0))


def mae_per_gene(measured: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    """Mean absolute error of each gene over the spots.

    Parameters
    ----------
    measured, predicted
        Expression, spots x genes.

    Returns
    -------
    Length genes, in units of the expression.

    Raises
    ------
    ValueError
        If the two are not spots x genes of the same shape, with at least one spot.
    """
    y, p = check_pair(measured, predicted)
    return np.abs(y - p).mean(0)


def nan_mean(values: ArrayLike, axis: int | None = None) -> NDArray[np.float64]:
    """Mean over the values that are not NaN; NaN, without a warning, if there are none.

    Parameters
    ----------
    values
        Any shape.
    axis
        As in :func:`numpy.nanmean`.

    Returns
    -------
    float64, ``values`` without that axis (or without all axes).
    """
    values = np.asarray(values, np.float64)
    found = ~np.isnan(values)
    count = found.sum(axis)
    total = np.where(found, values, 0).sum(axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _by_fold(pcc: ArrayLike) -> NDArray[np.float64]:
    found = np.atleast_2d(np.asarray(pcc, np.float64))
    if found.ndim != 2:
        raise ValueError(f"`pcc` has shape {found.shape}; it must be folds (or slides) x genes.")
    return found


def gene_ranks(pcc: ArrayLike) -> NDArray[np.float64]:
    """Rank of each gene by its correlation, averaged over folds.

    Parameters
    ----------
    pcc
        Correlations, folds x genes (or genes alone).

    Returns
    -------
    Length genes; 1 is the best. Equal genes of a fold share the mean of their ranks; NaN ranks lowest.
    """
    ranks = []
    for fold in _by_fold(pcc):
        _, place, count = np.unique(-np.nan_to_num(fold, nan=-2.0), return_inverse=True, return_counts=True)
        ranks.append((count.cumsum() - (count - 1) / 2)[place])
    return np.mean(ranks, axis=0)


def top_genes(pcc: ArrayLike, n: int = 50) -> NDArray[np.intp]:
    """Genes with the best mean rank over folds.

    Choose them on data that is not scored afterwards: if they are chosen on the scored slides, their mean is
    optimistic.

    Parameters
    ----------
    pcc
        Correlations, folds x genes (or genes alone).
    n
        Number of genes; all if there are fewer.

    Returns
    -------
    Columns of ``pcc``, best first; genes that are NaN in every fold are never among them.
    """
    pcc = _by_fold(pcc)
    order = np.argsort(gene_ranks(pcc), kind="stable")
    return order[~np.isnan(pcc[:, order]).all(0)][:n]


def pcc_a(pcc: ArrayLike) -> float:
    """PCC(A): correlations averaged over genes, then over slides.

    Parameters
    ----------
    pcc
        Correlations, slides x genes (or genes alone). NaN is left out, and so are slides with NaN alone.

    Returns
    -------
    The mean; NaN if no gene has a correlation.
    """
    return float(nan_mean(nan_mean(_by_fold(pcc), 1)))


def pcc_h(pcc: ArrayLike, genes: ArrayLike) -> float:
    """PCC(H): as :func:`pcc_a`, over the genes given, for instance those of :func:`top_genes`.

    Parameters
    ----------
    pcc
        Correlations, slides x genes (or genes alone).
    genes
        Columns of ``pcc``.

    Returns
    -------
    The mean; NaN if no gene has a correlation.
    """
    return pcc_a(_by_fold(pcc)[:, np.asarray(genes, dtype=np.intp)])


def __dir__() -> list[str]:
    return sorted(__all__)
