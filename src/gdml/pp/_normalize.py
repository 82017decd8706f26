"""Normalised expression of the panel, and the record of how it was made."""

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from gdml import _keys
from gdml._errors import some
from gdml.expression import Normalization, as_normalization, grid_smoother, normalize_counts

from ._counts import library_of_each_spot, raw_counts
from ._select_genes import choose_panel
from ._validate import check_adata


def normalize(
    adata: AnnData,
    *,
    n_genes: int | None = None,
    genes: Iterable[str] | None = None,
    normalization: str | Normalization = "scanpy",
    order: Literal["all", "panel"] | None = None,
    target_sum: float | None = None,
    log: Literal["e", "2", "10", "none"] | None = None,
    smooth: bool | None = None,
    layer: str | None = None,
    library_key: str = _keys.LIBRARY,
    key_added: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Normalise the counts of the panel genes, and record how.

    ``adata.X`` stays as it is. The record travels with a model that is trained on these values: its predictions
    are on this scale, and :func:`gdml.tl.evaluate` brings the measured counts of a new slide to it.

    Parameters
    ----------
    adata
        Raw counts of one or several slides.
    n_genes
        Size of the panel, chosen by :func:`gdml.pp.select_genes` with its defaults. By default the panel in
        ``adata.var['gdml_panel']`` where there is one, else 250 genes.
    genes
        The panel itself, instead of a rule.
    normalization
        ``"scanpy"``: counts of a spot scaled to 1e4 over all genes, natural ``log1p``, no smoothing.
        ``"paper"``: scaled to 1e4 over the panel alone, ``log10(x + 1)``, averaged over the 3x3 grid neighbours,
        the recipe of the authors of Gene-DML :cite:p:`Song2026`. Or a :class:`gdml.expression.Normalization`.
    order, target_sum, log, smooth
        Single switches that take precedence over ``normalization``; see :class:`gdml.expression.Normalization`.
        Smoothing reads the grid from ``adata.obs['array_row']`` and ``['array_col']``. Scores on smoothed
        labels are higher and do not compare with scores on others.
    layer
        Layer with the raw counts; ``adata.X`` by default.
    library_key
        Column of ``adata.obs`` with the slide of each spot.
    key_added
        Name under which results are stored.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy. Writes:

    ``.obsm['gdml_measured']`` : DataFrame, float32, spots x panel genes
        Normalised expression; the columns are in the order of ``adata.var_names``.
    ``.uns['gdml']['normalization']`` : dict
        Every switch, the panel, the rule that chose it, and the layer where one was named.
    ``.var['gdml_panel']`` : bool
        The panel, where it was chosen here.

    Raises
    ------
    ValueError
        If the counts are not raw counts, a spot is empty, fewer genes pass the rule than asked for, or a switch
        has a value that does not exist.
    KeyError
        If the layer, a gene of ``genes``, or, to smooth, the grid position is absent.

    Warns
    -----
    UserWarning
        If panel genes have the same value in every spot.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.datasets.her2st(["C2", "C3"])  # doctest: +SKIP
    >>> gdml.pp.normalize(adata, n_genes=250)  # doctest: +SKIP
    >>> gdml.pp.normalize(adata, normalization="paper", smooth=False)  # doctest: +SKIP
    """
    from scanpy import logging as logg

    check_adata(adata, copy=copy)
    adata = adata.copy() if copy else adata
    norm = as_normalization(normalization, order=order, target_sum=target_sum, log=log, smooth=smooth)
    in_var = _keys.panel(key_added)
    # everything is computed before anything is written, so that an error leaves `adata` as it was
    if genes is not None or in_var not in adata.var or n_genes not in (None, adata.var[in_var].sum()):
        panel, rule = choose_panel(
            adata, 250 if n_genes is None else n_genes, genes=genes, layer=layer, library_key=library_key
        )
    else:
        panel = adata.var[in_var].to_numpy()
        rule = adata.uns.get(key_added, {}).get("panel", {"method": "given", "n_genes": int(panel.sum())})
        if panel.dtype != bool or not panel.any():
            raise ValueError(
                f"`adata.var[{in_var!r}]` must be boolean and True for one gene at least; choose the panel "
                "again with gdml.pp.select_genes(adata)."
            )
    names = adata.var_names[panel]
    measured = measured_expression(adata, names, norm, layer=layer, library_key=library_key)

    flat = names[np.ptp(measured.to_numpy(), axis=0) == 0]
    if len(flat):
        warnings.warn(
            f"{len(flat)} of {len(names)} panel genes have the same value in every spot ({some(flat)}): there is "
            "nothing to learn of them. Choose others with gdml.pp.select_genes.",
            UserWarning,
            stacklevel=2,
        )
    adata.var[in_var] = panel
    adata.uns.setdefault(key_added, {})["panel"] = rule
    record_measured(adata, measured, norm, layer=layer, key_added=key_added)
    logg.info(f"normalised expression of {len(names)} panel genes, in .obsm[{_keys.measured(key_added)!r}]")
    return adata if copy else None


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
