"""Scores of predictions against measurements, gene by gene: plain functions on arrays.

A gene that is constant in a slide has no correlation: its value is NaN, it is left out of all means, and it
ranks lowest.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

__all__ = [
    "gene_ranks",
    "mae_per_gene",
    "mse_per_gene",
    "nan_mean",
    "pcc_a",
    "pcc_h",
    "pearson_per_gene",
    "spearman_per_gene",
    "top_genes",
]

# Values that differ by less than this fraction of their size differ by float32 rounding alone.
_CONSTANT = 1e-6


def _pair(measured: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, p = np.asarray(measured, np.float64), np.asarray(predicted, np.float64)
    if y.ndim != 2 or y.shape != p.shape:
        raise ValueError(
            f"`measured` has shape {y.shape} and `predicted` {p.shape}: both must be spots x genes, of the same shape."
        )
    if not len(y):
        raise ValueError("`measured` and `predicted` have no spots.")
    return y, p


def _centred(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns with mean zero and norm one; NaN where a column is constant or not finite."""
    size = np.abs(x).max(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = x / size  # keeps squares of very large or small values in range
        x = x - x.mean(0)
        constant = ~(np.ptp(x, axis=0) > _CONSTANT)
        x /= np.sqrt((x * x).sum(0))
    x[:, constant] = np.nan
    return x


def pearson_per_gene(measured: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    """Pearson's correlation of each gene over the spots of one slide.

    Parameters
    ----------
    measured, predicted
        Expression, spots x genes.

    Returns
    -------
    Length genes, in [-1, 1]; NaN where the measured or the predicted values are constant (to float32
    precision) or not finite.

    Raises
    ------
    ValueError
        If the two are not spots x genes of the same shape, with at least one spot.
    """
    y, p = _pair(measured, predicted)
    return np.clip(np.einsum("ij,ij->j", _centred(y), _centred(p)), -1, 1)


def spearman_per_gene(measured: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    """Spearman's rank correlation of each gene over the spots of one slide; equal values share their mean rank.

    Parameters
    ----------
    measured, predicted
        Expression, spots x genes.

    Returns
    -------
    Length genes, in [-1, 1]; NaN where the measured or the predicted values are constant (to float32
    precision) or not finite.

    Raises
    ------
    ValueError
        If the two are not spots x genes of the same shape, with at least one spot.
    """
    y, p = _pair(measured, predicted)
    undefined = np.isnan(pearson_per_gene(y, y)) | np.isnan(pearson_per_gene(p, p))
    found = pearson_per_gene(rankdata(y, axis=0), rankdata(p, axis=0))
    return np.where(undefined, np.nan, found)


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
    y, p = _pair(measured, predicted)
    return ((y - p) ** 2).mean(0)


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
    y, p = _pair(measured, predicted)
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
