"""Normalised expression of the panel, and the record of how it was made."""

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from gdml import _keys
from gdml._errors import some
from gdml.expression import Normalization, as_normalization, grid_smoother, normalize_counts

from .grid import array_positions
from .panel import choose_panel
from .resolve import Spots


def measured_expression(
    spots: Spots,
    genes: Iterable[str],
    normalization: Normalization,
    *,
    layer: str | None = None,
    columns: NDArray[np.intp] | None = None,
    rows: NDArray[np.intp] | None = None,
) -> pd.DataFrame:
    """Normalised expression of the named genes; nothing is written.

    Parameters
    ----------
    spots
        Spots with raw counts.
    genes
        Columns of the result.
    normalization
        How counts are normalised.
    layer
        Layer with the raw counts; ``X`` by default.
    columns
        Column of each gene in the counts, -1 where absent. By default genes are found by ``var_names``.
    rows
        Spots to normalise, whole slides of them if labels are smoothed; all by default.

    Returns
    -------
    DataFrame, float32, spots x genes; NaN for absent genes.

    Raises
    ------
    ValueError
        If the counts are not raw counts, or a spot is empty.
    KeyError
        If the layer, or, to smooth, the grid position is absent.
    """
    names = pd.Index(genes)
    counts = spots.counts(layer)
    rows = np.arange(len(spots)) if rows is None else rows
    neighbors = grid_neighbors(spots, rows) if normalization.smooth else None
    at = spots.adata.var_names.get_indexer(names) if columns is None else columns
    values = normalize_counts(counts if len(rows) == len(spots) else counts[rows], at, normalization, neighbors)
    return pd.DataFrame(values, index=spots.adata.obs_names[rows], columns=names)


def normalize_spots(
    spots: Spots,
    normalization: str | Normalization = "scanpy",
    *,
    n_genes: int | None = None,
    genes: Iterable[str] | None = None,
    layer: str | None = None,
    stacklevel: int = 3,
) -> pd.DataFrame:
    """Choose the panel where it is missing, normalise its counts and write both, as :func:`gdml.pp.normalize` describes.

    Everything is computed before anything is written.

    Parameters
    ----------
    spots
        Spots with raw counts.
    normalization, n_genes, genes, layer
        As in :func:`gdml.pp.normalize`.
    stacklevel
        Of warnings: 3 where a verb calls this function.

    Returns
    -------
    What was written to ``obsm``.
    """
    adata, in_var = spots.adata, _keys.panel(spots.key)
    norm = as_normalization(normalization)
    if genes is not None or in_var not in adata.var or n_genes not in (None, adata.var[in_var].sum()):
        panel, rule = choose_panel(spots, 250 if n_genes is None else n_genes, genes=genes, layer=layer)
    else:
        panel = adata.var[in_var].to_numpy()
        rule = spots.record("panel") or {"method": "given", "n_genes": int(panel.sum())}
        if panel.dtype != bool or not panel.any():
            raise ValueError(
                f"`adata.var[{in_var!r}]` must be boolean, with at least one gene True; choose the panel again with "
                "gdml.pp.select_genes(adata)."
            )
    measured = measured_expression(spots, adata.var_names[panel], norm, layer=layer)
    constant = measured.columns[np.ptp(measured.to_numpy(), axis=0) == 0]
    if len(constant):
        warnings.warn(
            f"{len(constant)} of {measured.shape[1]} panel genes have the same value in every spot ({some(constant)}): "
            "they carry no information. Choose others with gdml.pp.select_genes.",
            UserWarning,
            stacklevel=stacklevel,
        )
    record: dict[str, Any] = {
        **norm.to_dict(),
        "panel": measured.columns.to_numpy(dtype=object),
        "panel_method": rule["method"],
    }
    if layer is not None:
        record["layer"] = layer
    adata.var[in_var] = panel
    adata.obsm[_keys.measured(spots.key)] = measured
    spots.write_record("panel", rule)
    spots.write_record(_keys.NORMALIZATION, record)
    return measured


def grid_neighbors(spots: Spots, rows: NDArray[np.intp]) -> sparse.csr_array:
    """Smoother over the neighbours of each of these spots on the grid of its slide, for labels that are smoothed.

    Raises
    ------
    KeyError
        If the grid position is absent.
    """
    obs = spots.adata.obs
    absent = [column for column in (_keys.ARRAY_ROW, _keys.ARRAY_COL) if column not in obs]
    if absent:
        raise KeyError(
            f"`smooth` averages neighbours on the array's grid, but `adata.obs` has no {' nor '.join(map(repr, absent))}. "
            "Add the grid position of each spot, or normalise without smoothing: gdml.pp.normalize(adata, smooth=False)."
        )
    row, col = array_positions(spots.adata)[rows].T
    return grid_smoother(row, col, spots.library[rows])
