"""Normalisation of raw counts and choice of genes: plain functions on arrays."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from ._errors import check_number, did_you_mean
from ._grid import grid_smoother

__all__ = [
    "NORMALIZATIONS",
    "Normalization",
    "as_normalization",
    "find_bad_count",
    "grid_smoother",
    "normalize_counts",
    "rank_genes",
]

_ORDERS = ("all", "panel", "none")
_TARGET_SUM = 1e4
_LOGS: dict[str, Callable[[Any], Any]] = {
    "e": np.log1p,
    "2": lambda x: np.log2(x + 1),
    "10": lambda x: np.log10(x + 1),
    "none": lambda x: x,
}

Counts: TypeAlias = ArrayLike | sparse.sparray | sparse.spmatrix


@dataclass(frozen=True)
class Normalization:
    """How raw counts become expression values.

    Parameters
    ----------
    order
        Genes whose total a spot's counts are divided by: ``"all"`` genes (as in scanpy), the ``"panel"`` (as in
        TRIPLEX and Gene-DML), or ``"none"``, where counts are not scaled (as in HEST-bench).
    target_sum
        Total of every spot after scaling; without effect where ``order`` is ``"none"``.
    log
        Base of ``log(x + 1)``: ``"e"``, ``"2"``, ``"10"``, or ``"none"`` for no logarithm.
    smooth
        Average each spot with its neighbours on the grid, after the logarithm.

    Raises
    ------
    ValueError
        If a value is not among those above.
    TypeError
        If ``target_sum`` is not a number, or ``smooth`` not a boolean.
    """

    order: Literal["all", "panel", "none"] = "all"
    target_sum: float = _TARGET_SUM
    log: Literal["e", "2", "10", "none"] = "e"
    smooth: bool = False

    def __post_init__(self) -> None:
        if self.order not in _ORDERS:
            raise ValueError(f"`order` is {self.order!r}. {did_you_mean(str(self.order), _ORDERS)}")
        if self.log not in _LOGS:
            raise ValueError(f"`log` is {self.log!r}. {did_you_mean(str(self.log), _LOGS)}")
        check_number("target_sum", self.target_sum, above=0, hint="scanpy's usual total is 1e4")
        # plain types, so that a record read back from h5ad (numpy scalars) is equal to the one written
        target_sum = _TARGET_SUM if self.order == "none" else float(self.target_sum)
        object.__setattr__(self, "target_sum", target_sum)
        if not isinstance(self.smooth, bool | np.bool_):
            raise TypeError(f"`smooth` must be True or False, found {self.smooth!r}.")
        object.__setattr__(self, "smooth", bool(self.smooth))

    @property
    def unit(self) -> str:
        """Unit of the values for labels, such as ``"ln(counts per 10,000 + 1)"``."""
        counts = "counts" if self.order == "none" else f"counts per {self.target_sum:,.0f}"
        name = {"e": "ln", "2": "log2", "10": "log10"}
        return counts if self.log == "none" else f"{name[self.log]}({counts} + 1)"

    def to_dict(self) -> dict[str, str | float | bool]:
        """Fields as a plain dict, which can be written to h5ad, zarr and JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """From a dict with the fields; other entries are ignored, missing ones take the default."""
        return cls(**{f.name: record[f.name] for f in fields(cls) if f.name in record})


NORMALIZATIONS = {
    "scanpy": Normalization(),
    "paper": Normalization(order="panel", log="10", smooth=True),
    "hest": Normalization(order="none"),
}
"""The normalisation of scanpy (the default), of the authors of Gene-DML, and of HEST-bench, by name."""


def as_normalization(normalization: str | Normalization | Mapping[str, Any], **switches: Any) -> Normalization:
    """Get a normalisation by name, from a record, or as given, with single switches changed.

    Parameters
    ----------
    normalization
        A name of :data:`NORMALIZATIONS`, a :class:`Normalization`, or what its ``to_dict`` gave.
    **switches
        Fields to change; None leaves a field unchanged.

    Returns
    -------
    The normalisation.

    Raises
    ------
    ValueError
        If the name is unknown or a value is not allowed.
    TypeError
        If ``normalization`` is none of the three.
    """
    if isinstance(normalization, str):
        if normalization not in NORMALIZATIONS:
            hint = did_you_mean(normalization, NORMALIZATIONS)
            raise ValueError(f"`normalization` is {normalization!r}. {hint}")
        found = NORMALIZATIONS[normalization]
    elif isinstance(normalization, Normalization):
        found = normalization
    elif isinstance(normalization, Mapping):
        found = Normalization.from_dict(normalization)
    else:
        raise TypeError(f"`normalization` is a {type(normalization).__name__}; give a name or a gdml Normalization.")
    return replace(found, **{name: value for name, value in switches.items() if value is not None})


def _matrix(counts: Counts) -> Any:
    """Convert counts to a CSR matrix if sparse, else to an array."""
    return counts.tocsr() if isinstance(counts, sparse.sparray | sparse.spmatrix) else np.asarray(counts)


def _dense(matrix: Any) -> NDArray[Any]:
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


def find_bad_count(counts: Counts) -> tuple[int, int, float] | None:
    """Find an entry that is not a count: negative, fractional, NaN or infinite.

    Parameters
    ----------
    counts
        Raw counts, spots x genes, dense or sparse.

    Returns
    -------
    Row, column and value of the first such entry, or None.
    """
    matrix = _matrix(counts)
    values = matrix.data if sparse.issparse(matrix) else matrix.ravel()
    if values.dtype.kind in "ub":
        return None
    # NaN fails the comparison with itself floored, so it is found too
    bad = np.flatnonzero((values < 0) | (values != np.floor(values)) | ~np.isfinite(values))
    if not len(bad):
        return None
    first = bad[0]
    if sparse.issparse(matrix):
        row, col = np.searchsorted(matrix.indptr, first, side="right") - 1, matrix.indices[first]
    else:
        row, col = np.unravel_index(first, matrix.shape)
    return int(row), int(col), float(values[first])


def normalize_counts(
    counts: Counts,
    panel: ArrayLike,
    normalization: Normalization,
    neighbors: sparse.sparray | sparse.spmatrix | None = None,
) -> NDArray[np.float32]:
    """Normalised expression of the panel genes.

    Parameters
    ----------
    counts
        Raw counts, spots x genes, dense or sparse.
    panel
        Column of each panel gene in ``counts``, ``-1`` where the gene is absent.
    normalization
        How counts are normalised.
    neighbors
        Row-stochastic matrix, spots x spots, from :func:`grid_smoother`; needed only to smooth.

    Returns
    -------
    float32, spots x panel genes in the order of ``panel``; NaN for absent genes. A spot without counts in the genes
    of its total stays zero, as in :func:`scanpy.pp.normalize_total`.

    Raises
    ------
    ValueError
        If ``normalization.smooth`` is on and ``neighbors`` is missing.
    """
    if normalization.smooth and neighbors is None:
        raise ValueError("`neighbors` is needed to smooth: make it with gdml.expression.grid_smoother.")
    panel = np.asarray(panel, dtype=np.intp)
    matrix = _matrix(counts)
    present = panel >= 0
    values = _dense(matrix[:, panel[present]]).astype(np.float64)

    if normalization.order != "none":
        total = values.sum(1) if normalization.order == "panel" else np.asarray(matrix.sum(1), np.float64).ravel()
        values *= np.divide(normalization.target_sum, total, out=np.zeros_like(total), where=total > 0)[:, None]
    values = _LOGS[normalization.log](values)
    if normalization.smooth:
        values = neighbors @ values

    out = np.full((matrix.shape[0], len(panel)), np.nan, dtype=np.float32)
    out[:, present] = values
    return out


def rank_genes(
    counts: Counts,
    library: ArrayLike,
    names: ArrayLike,
    *,
    min_fraction: float = 0.1,
) -> NDArray[np.intp]:
    """Genes found in enough spots of every slide, the most abundant first.

    The rule of TRIPLEX (Chung et al., CVPR 2024): a gene is kept if it is found in at least ``min_fraction`` of the
    spots of **every** slide; genes are ranked by their total counts over all slides. Genes with the same count in
    every spot are left out. Ties are broken by name, so that the result does not depend on the order of columns.

    Parameters
    ----------
    counts
        Raw counts, spots x genes, dense or sparse.
    library
        Slide of each spot.
    names
        Name of each gene.
    min_fraction
        Smallest fraction of the spots of a slide, 0 to 1.

    Returns
    -------
    Columns of ``counts``, best first.
    """
    matrix = _matrix(counts)
    library, names = np.asarray(library), np.asarray(names, dtype=str)
    keep = np.ones(matrix.shape[1], dtype=bool)
    for one in np.unique(library):
        rows = np.flatnonzero(library == one)
        found = np.asarray((matrix[rows] > 0).sum(0)).ravel()
        keep &= found >= min_fraction * len(rows)
    keep &= (_dense(matrix.max(0)) > _dense(matrix.min(0))).ravel()
    kept = np.flatnonzero(keep)
    total = np.asarray(matrix.sum(0), np.float64).ravel()[kept]
    return kept[np.lexsort((names[kept], -total))]


def __dir__() -> list[str]:
    return sorted(__all__)
