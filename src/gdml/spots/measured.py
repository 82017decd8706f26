"""Measured expression on a scale, and the record of how it was made."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from gdml import _keys
from gdml.expression import Normalization, grid_smoother, normalize_counts

from .coordinates import library_of_each_spot
from .counts import raw_counts


def measured_expression(
    adata: AnnData,
    genes: Iterable[str],
    normalization: Normalization,
    *,
    layer: str | None = None,
    library_key: str = _keys.LIBRARY,
    columns: NDArray[np.intp] | None = None,
) -> pd.DataFrame:
    """Normalised expression of the named genes; nothing is written.

    Parameters
    ----------
    adata
        Raw counts.
    genes
        Names of the result's columns.
    normalization
        The scale.
    layer, library_key
        As in :func:`normalize`.
    columns
        Column of each gene, -1 where absent. By default genes are found by ``var_names``.

    Returns
    -------
    DataFrame, float32, spots x genes; NaN for genes that ``adata`` lacks.

    Raises
    ------
    ValueError
        If the counts are not raw counts, or a spot is empty.
    KeyError
        If the layer, or, to smooth, the grid position is absent.
    """
    names = pd.Index(genes)
    counts = raw_counts(adata, layer)
    neighbors = _neighbors(adata, library_key) if normalization.smooth else None
    at = adata.var_names.get_indexer(names) if columns is None else columns
    values = normalize_counts(counts, at, normalization, neighbors)
    return pd.DataFrame(values, index=adata.obs_names, columns=names)


def record_measured(
    adata: AnnData, measured: pd.DataFrame, normalization: Normalization, *, layer: str | None, key_added: str
) -> None:
    """Write measured expression and the record of its scale."""
    record: dict[str, Any] = normalization.to_dict()
    record["panel"] = measured.columns.to_numpy(dtype=object)
    rule = adata.uns.get(key_added, {}).get("panel")
    if rule:
        record["panel_method"] = rule["method"]
    if layer is not None:
        record["layer"] = layer
    adata.obsm[_keys.measured(key_added)] = measured
    adata.uns.setdefault(key_added, {})[_keys.NORMALIZATION] = record


def _neighbors(adata: AnnData, library_key: str) -> sparse.csr_array:
    absent = [column for column in (_keys.ARRAY_ROW, _keys.ARRAY_COL) if column not in adata.obs]
    if absent:
        raise KeyError(
            f"`smooth` averages neighbours on the array's grid, but `adata.obs` has no {' nor '.join(map(repr, absent))}. "
            "Add the grid position of each spot, or pass smooth=False."
        )
    row, col = adata.obs[_keys.ARRAY_ROW], adata.obs[_keys.ARRAY_COL]
    return grid_smoother(row, col, library_of_each_spot(adata, library_key))
