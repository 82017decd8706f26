"""How well the measured expression of a gene can be predicted at all: the reliability of its counts."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from ._correlation import centred, pearson_per_gene
from ._errors import check_count
from .expression import Counts, Normalization, as_normalization, find_bad_count, normalize_counts

# Genes that are made dense at once.
_BLOCK = 64


def attainable_pcc(
    counts: Counts,
    panel: ArrayLike | None = None,
    normalization: str | Normalization | Mapping[str, Any] = "scanpy",
    *,
    neighbors: sparse.sparray | sparse.spmatrix | None = None,
    n_splits: int = 10,
    seed: int | np.random.Generator = 0,
) -> NDArray[np.float64]:
    """PCC that a perfect prediction of the noise-free expression would have with the measured values of one slide.

    Counts are a sample of the molecules of a spot, so that even the true expression does not correlate perfectly with
    them. Every count is split at random into two halves (binomial thinning, which gives independent halves of a Poisson
    count; :cite:t:`Neufeld2024`), each half is normalised as the data are, with its own totals, and the halves are
    correlated over the spots. Their correlation ``r``, averaged over the splits, is stepped up to the full depth by the
    Spearman-Brown formula :cite:p:`Spearman1910,Brown1910`, ``2 r / (1 + r)``; the square root of this reliability is
    the attainable PCC.

    Parameters
    ----------
    counts
        Raw counts of the spots of one slide, spots x genes, dense or sparse.
    panel
        Columns of ``counts`` to score, ``-1`` for absent genes; all by default.
    normalization
        How the measured values were normalised: a name of :data:`gdml.expression.NORMALIZATIONS`, a
        :class:`gdml.expression.Normalization` or its record.
    neighbors
        Row-stochastic matrix, spots x spots, from :func:`gdml.expression.grid_smoother`; needed only where the
        normalisation smooths.
    n_splits
        Independent splits. With 10, the standard deviation over seeds is about 0.03 on 300 spots for genes below 0.5,
        and 0.01 above; that over samples of the same tissue is at least twice as large, so that more splits gain little.
    seed
        Seed, or generator, of the splits; the same seed gives the same numbers.

    Returns
    -------
    float64, length of ``panel``, in [0, 1]. NaN where a gene is absent or constant, as in :func:`gdml.metrics.pearson_per_gene`.
    0 where the halves do not correlate positively; a split in which a half is constant counts as no correlation.

    Raises
    ------
    ValueError
        If an entry is negative, fractional, NaN or infinite, since only whole counts can be split; if a gene is named
        twice; if ``neighbors`` is needed and missing, or a value is not allowed.
    TypeError
        If ``normalization`` or ``n_splits`` is of another kind.

    Notes
    -----
    What both halves share counts as signal, whether an image shows it or not: variation between spots beyond that of a
    Poisson count (such as that of a negative binomial), and the effect of the total count of a spot on its normalised
    values. The result is therefore an upper bound of what an image can tell.

    In simulations (``benchmarks/attainable.py simulated``) the mean over genes of one abundance lies within 0.04 of the
    PCC of the noise-free values, for 0.1 to 100 counts a spot and spots of equal totals. With 0.02 to 0.05 counts a spot
    and 300 spots it is up to 0.06 too low, since such a gene is found in a few spots alone. Where totals vary
    (log-normal, with a standard deviation of 0.5), it is up to 0.08 too high at 0.2 to 5 counts a spot, since halves of
    half the depth vary more with their total; with the totals of a shallow section (half of the spots below 650 counts,
    a standard deviation of 1.5) by 0.14, and tissue without any pattern gets 0.5 (``benchmarks/attainable.py totals``).
    With equal totals a gene without a pattern gets 0 in half of all cases, and in 19 of 20 less than
    ``(8 / n_spots) ** 0.25`` (0.4 for 300 spots, 0.24 for 2,600): smaller values of a single gene show nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from gdml.metrics import attainable_pcc
    >>> rng = np.random.default_rng(0)
    >>> rate = np.exp(rng.normal(size=(500, 1))) * [0.1, 1, 10]
    >>> np.round(attainable_pcc(rng.poisson(rate), normalization={"order": "none"}), 1)
    array([0.5, 0.8, 0.9])
    """
    norm = as_normalization(normalization)
    check_count("n_splits", n_splits)
    matrix: Any = counts.tocsr() if isinstance(counts, sparse.sparray | sparse.spmatrix) else np.asarray(counts)
    if matrix.ndim != 2:
        raise ValueError(f"`counts` has shape {matrix.shape}; it must be spots x genes.")
    bad = find_bad_count(matrix)
    if bad:
        raise ValueError(
            f"`counts` holds {bad[2]:g} (spot {bad[0]}, gene {bad[1]}): only whole counts can be split. Pass the raw "
            "counts, for instance attainable_pcc(adata.layers['counts'])."
        )
    columns = np.arange(matrix.shape[1]) if panel is None else np.asarray(panel, dtype=np.intp)
    present = columns >= 0
    if len(np.unique(columns[present])) < present.sum():
        raise ValueError("`panel` names a column of `counts` twice; name each once.")

    whole = sparse.csc_array(matrix[:, columns[present]]).astype(np.int64)
    rest = np.asarray(matrix.sum(1, dtype=np.float64)).ravel().astype(np.int64) - whole.sum(1)
    if norm.order == "panel":
        rest[:] = 0
    rng = np.random.default_rng(seed)
    r = np.mean([_half_correlation(whole, rest, norm, neighbors, rng) for _ in range(n_splits)], axis=0).clip(0, 1)
    varies = [~np.isnan(pearson_per_gene(x, x)) for x in _normalized(whole, rest, norm, neighbors) if len(x)]
    out = np.full(len(columns), np.nan)
    if varies:
        out[present] = np.where(np.concatenate(varies), np.sqrt(2 * r / (1 + r)), np.nan)
    return out


def _half_correlation(
    whole: sparse.csc_array, rest: NDArray[np.int64], norm: Normalization, neighbors: Any, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Correlation of the two halves of one split, length genes; 0 where it is not defined."""
    half = sparse.csc_array((_halve(whole.data, rng), whole.indices, whole.indptr), shape=whole.shape)
    rest_of_half = _halve(rest, rng)
    found = [np.zeros(0)]
    for one, other in zip(
        _normalized(half, rest_of_half, norm, neighbors),
        _normalized(whole - half, rest - rest_of_half, norm, neighbors),
        strict=True,
    ):
        found.append(np.einsum("ij,ij->j", centred(one.astype(np.float64)), centred(other.astype(np.float64))))
    return np.nan_to_num(np.concatenate(found))


def _halve(counts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw a binomial number with p = 1/2 for each count: the number of ones among as many random bits."""
    few = counts < 64
    mask = (np.uint64(1) << np.where(few, counts, 0).astype(np.uint64)) - np.uint64(1)
    bits = rng.integers(2**64 - 1, size=counts.shape, dtype=np.uint64, endpoint=True)
    half = np.bitwise_count(bits & mask).astype(np.int64)
    half[~few] = rng.binomial(counts[~few], 0.5)
    return half


def _normalized(
    counts: sparse.csc_array, rest: NDArray[np.int64], norm: Normalization, neighbors: Any
) -> Iterator[NDArray[np.float32]]:
    """Normalised values of a few genes after the other, so that never all of them are dense.

    The other genes are one more column, so that the totals of spots are those of all.
    """
    total = counts.sum(1) + rest
    if norm.order == "panel":
        norm = replace(norm, order="all")
    for start in range(0, counts.shape[1], _BLOCK):
        block = counts[:, start : start + _BLOCK].toarray()
        both = np.column_stack([block, total - block.sum(1)])
        yield normalize_counts(both, np.arange(block.shape[1]), norm, neighbors)
