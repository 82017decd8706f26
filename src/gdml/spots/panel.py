"""The panel: which genes are modelled."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import did_you_mean, some
from gdml.expression import Normalization, normalize_counts, rank_genes

from .coordinates import library_of_each_spot
from .counts import raw_counts

_METHODS = ("counts", "hvg")


def choose_panel(
    adata: AnnData,
    n_genes: int = 250,
    *,
    method: Literal["counts", "hvg"] = "counts",
    genes: Iterable[str] | None = None,
    min_fraction: float = 0.1,
    layer: str | None = None,
    library_key: str = _keys.LIBRARY,
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """Choose as :func:`gdml.pp.select_genes` does, but write nothing: the panel on ``var_names``, and the rule's record."""
    panel = np.zeros(adata.n_vars, dtype=bool)
    if genes is not None:
        panel[_columns(adata, genes)] = True
        return panel, {"method": "given", "n_genes": int(panel.sum())}
    if method not in _METHODS:
        raise ValueError(f"`method` is {method!r}. {did_you_mean(str(method), _METHODS)}")
    if int(n_genes) != n_genes or n_genes < 1:
        raise ValueError(f"`n_genes` is {n_genes!r}; it must be a whole number of one or more.")
    if not 0 <= min_fraction <= 1:
        raise ValueError(f"`min_fraction` is {min_fraction!r}; it must lie between 0 and 1.")

    counts = raw_counts(adata, layer)
    library = library_of_each_spot(adata, library_key)
    candidates = rank_genes(counts, library, adata.var_names, min_fraction=min_fraction)
    if len(candidates) < n_genes:
        raise ValueError(
            f"`n_genes` is {n_genes}, but only {len(candidates)} of {adata.n_vars} genes vary and are found in at least "
            f"{min_fraction:.0%} of the spots of every slide (slides: {len(set(library))}). Ask for fewer, "
            f"n_genes={len(candidates)}, or lower `min_fraction`."
        )
    if method == "hvg":
        candidates = candidates[_variability_order(adata, counts, candidates, library, n_genes)]
    panel[candidates[:n_genes]] = True
    return panel, {"method": method, "n_genes": int(n_genes), "min_fraction": float(min_fraction)}


def _columns(adata: AnnData, genes: Iterable[str]) -> NDArray[np.intp]:
    """Columns of the genes that the user lists."""
    if isinstance(genes, str):
        raise TypeError(f"`genes` is the string {genes!r}; give a list of gene names.")
    wanted = list(dict.fromkeys(str(gene) for gene in genes))
    if not wanted:
        raise ValueError("`genes` is empty; name the genes of the panel, or leave `genes` out to have them chosen.")
    columns = adata.var_names.get_indexer(wanted)
    absent = [gene for gene, column in zip(wanted, columns, strict=True) if column < 0]
    if absent:
        raise KeyError(
            f"{len(absent)} of the {len(wanted)} `genes` are not in `adata.var_names`: {some(absent)}. Leave them out: "
            "genes=[gene for gene in genes if gene in adata.var_names]."
        )
    return columns


def _variability_order(
    adata: AnnData, counts: Any, candidates: NDArray[np.intp], library: NDArray[Any], n_genes: int
) -> NDArray[np.intp]:
    """Places in ``candidates``, the most variable gene first."""
    import pandas as pd
    import scanpy as sc

    lognorm = AnnData(
        normalize_counts(counts, candidates, Normalization()),
        obs=pd.DataFrame({"library": pd.Categorical(library)}, index=adata.obs_names),
        var=pd.DataFrame(index=adata.var_names[candidates]),
    )
    batch_key = "library" if len(set(library)) > 1 else None
    found = sc.pp.highly_variable_genes(lognorm, n_top_genes=n_genes, batch_key=batch_key, inplace=False)
    spread = -found["dispersions_norm"].fillna(-np.inf).to_numpy()
    slides = -found.get("highly_variable_nbatches", pd.Series(0, index=found.index)).to_numpy()
    return np.lexsort((np.asarray(lognorm.var_names, dtype=str), spread, slides))
