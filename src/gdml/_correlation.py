"""Correlation of measured and predicted expression, gene by gene."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

# Values that differ by less than this fraction of their size differ by float32 rounding alone.
_CONSTANT = 1e-6


def check_pair(measured: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Get both as float64; refuse what is not spots x genes, of the same shape."""
    y, p = np.asarray(measured, np.float64), np.asarray(predicted, np.float64)
    if y.ndim != 2 or y.shape != p.shape:
        raise ValueError(
            f"`measured` has shape {y.shape} and `predicted` {p.shape}: both must be spots x genes, of the same shape."
        )
    if not len(y):
        raise ValueError("`measured` and `predicted` have no spots.")
    return y, p


def centred(x: NDArray[np.float64]) -> NDArray[np.float64]:
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
    y, p = check_pair(measured, predicted)
    return np.clip(np.einsum("ij,ij->j", centred(y), centred(p)), -1, 1)


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
    y, p = check_pair(measured, predicted)
    undefined = np.isnan(pearson_per_gene(y, y)) | np.isnan(pearson_per_gene(p, p))
    found = pearson_per_gene(rankdata(y, axis=0), rankdata(p, axis=0))
    return np.where(undefined, np.nan, found)
