"""The panel: which genes are modelled."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml._errors import check_count, check_number, did_you_mean, some
from gdml.expression import NORMALIZATIONS, normalize_counts, rank_genes

from .resolve import Spots

_METHODS = ("counts", "hvg", "hest")


def choose_panel(
    spots: Spots,
    n_genes: int = 250,
    *,
    method: Literal["counts", "hvg", "hest"] = "counts",
    genes: Iterable[str] | None = None,
    min_fraction: float = 0.1,
    layer: str | None = None,
    rows: NDArray[np.intp] | None = None,
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """Choose genes as :func:`gdml.pp.select_genes` does, without writing anything.

    Parameters
    ----------
    spots
        Spots with raw counts.
    n_genes, method, genes, min_fraction, layer
        As in :func:`gdml.pp.select_genes`.
    rows
        Spots that the choice is based on, such as the training spots of a fold; all by default.

    Returns
    -------
    The panel, bool, (n_vars,), and the record of the rule.
    """
    adata = spots.adata
    panel = np.zeros(adata.n_vars, dtype=bool)
    if genes is not None:
        panel[_columns(adata, genes)] = True
        return panel, {"method": "given", "n_genes": int(panel.sum())}
    if method not in _METHODS:
        raise ValueError(f"`method` is {method!r}. {did_you_mean(str(method), _METHODS)}")
    check_count("n_genes", n_genes)
    check_number("min_fraction", min_fraction)
    if not 0 <= min_fraction <= 1:
        raise ValueError(f"`min_fraction` is {min_fraction!r}; it must lie between 0 and 1.")

    rows = np.arange(len(spots)) if rows is None else np.asarray(rows)
    counts, library = spots.counts(layer), spots.library
    if len(rows) < len(spots):
        counts, library = counts[rows], library[rows]
    candidates = rank_genes(counts, library, adata.var_names, min_fraction=min_fraction)
    if len(candidates) < n_genes:
        raise ValueError(
            f"`n_genes` is {n_genes}, but only {len(candidates)} of {adata.n_vars} genes vary and are found in at least "
            f"{min_fraction:.0%} of the spots of every slide (slides: {len(set(library))}). Ask for fewer, "
            f"gdml.pp.normalize(adata, n_genes={len(candidates)}), or lower `min_fraction` of gdml.pp.select_genes."
        )
    if method != "counts":
        norm = NORMALIZATIONS["hest" if method == "hest" else "scanpy"]
        values = normalize_counts(counts, candidates, norm)
        pooled = np.zeros(len(library)) if method == "hest" else library
        candidates = candidates[_variability_order(values, adata.var_names[candidates], pooled, n_genes)]
    panel[candidates[:n_genes]] = True
    return panel, {"method": method, "n_genes": int(n_genes), "min_fraction": float(min_fraction)}


def _columns(adata: AnnData, genes: Iterable[str]) -> NDArray[np.intp]:
    """Columns of the genes that the user named."""
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
    values: NDArray[np.float32], names: pd.Index, library: NDArray[Any], n_genes: int
) -> NDArray[np.intp]:
    """Order of genes by variability within slides, the most variable first."""
    import scanpy as sc

    lognorm = AnnData(
        values,
        obs=pd.DataFrame({"library": pd.Categorical(library)}, index=np.arange(len(library)).astype(str)),
        var=pd.DataFrame(index=names),
    )
    batch_key = "library" if len(set(library)) > 1 else None
    found = sc.pp.highly_variable_genes(lognorm, n_top_genes=n_genes, batch_key=batch_key, inplace=False)
    spread = -found["dispersions_norm"].fillna(-np.inf).to_numpy()
    slides = -found.get("highly_variable_nbatches", pd.Series(0, index=found.index)).to_numpy()
    return np.lexsort((np.asarray(names, dtype=str), spread, slides))
