"""Raw counts of an AnnData."""

from typing import Any

import numpy as np
from anndata import AnnData

from gdml._errors import did_you_mean, some
from gdml.expression import find_bad_count


def raw_counts(adata: AnnData, layer: str | None) -> Any:
    """Matrix of raw counts, spots x genes, dense or sparse: ``adata.X`` or the named layer.

    Raises
    ------
    KeyError
        If there is no such layer.
    ValueError
        If there is no matrix, if an entry is negative, fractional or NaN, or if a spot has no count at all.
    """
    if layer is not None and layer not in adata.layers:
        named = _named_layers(adata)
        hint = did_you_mean(layer, named) if named else "`adata.layers` is empty."
        raise KeyError(f"`layer` is {layer!r}, which is not in `adata.layers`. {hint}")
    where = "`adata.X`" if layer is None else f"`adata.layers[{layer!r}]`"
    counts = adata.X if layer is None else adata.layers[layer]
    if counts is None or 0 in adata.shape:
        raise ValueError(f"{where} holds no counts: `adata` has {adata.n_obs} spots and {adata.n_vars} genes.")

    bad = find_bad_count(counts)
    if bad:
        row, col, value = bad
        raise ValueError(
            f"{where} holds {value:g} (spot {adata.obs_names[row]!r}, gene {adata.var_names[col]!r}), which is no raw "
            "count. Name the layer with whole, non-negative counts, for example layer='counts'"
            + (f" (there are: {some(_named_layers(adata))})." if _named_layers(adata) else ".")
        )
    empty = np.flatnonzero(np.asarray(counts.sum(1)).ravel() == 0)
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {adata.n_obs} spots have no counts in {where} ({some(adata.obs_names[empty])}). "
            "Remove them: sc.pp.filter_cells(adata, min_counts=1)."
        )
    return counts


def _named_layers(adata: AnnData) -> list[str]:
    """Names of the layers; AnnData 0.13 lists X among them, under None."""
    return [name for name in adata.layers if name is not None]
