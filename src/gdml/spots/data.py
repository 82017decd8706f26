"""From the rows of an AnnData to the tensors of a run."""

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from gdml import _keys
from gdml.training import SpotData

from .coordinates import libraries, spot_coordinates
from .counts import raw_counts
from .features import load_features
from .grid import grid_positions


def spot_data(
    adata: AnnData,
    *,
    key: str,
    expression: NDArray[np.float32] | None = None,
    counts: NDArray[np.float32] | None = None,
    groups: dict[str, str] | None = None,
) -> tuple[SpotData, NDArray[np.intp]]:
    """Gather features, geometry and expression of all spots.

    Parameters
    ----------
    adata
        Tiled and embedded spots.
    key
        Name under which they were.
    expression
        (n_obs, n_genes), rows as in ``adata``.
    counts
        (n_obs, n_genes) raw counts.
    groups
        Group of each slide; by default each slide is its own.

    Returns
    -------
    The spots, those of a slide next to each other, and the row of ``adata`` that each came from.
    """
    tiles = adata.uns[key][_keys.TILES]
    xy = spot_coordinates(adata, tiles["spatial_key"])
    by_slide = libraries(adata, tiles["library_key"], spatial_key=tiles["spatial_key"])
    features = load_features(adata, key=key)
    names = list(by_slide)
    order = np.concatenate([by_slide[name] for name in names])
    side = np.concatenate([np.full(len(by_slide[n]), float(tiles["slides"][n]["side_px"])) for n in names])
    stack = lambda part: torch.from_numpy(np.concatenate([getattr(features[name], part) for name in names]))
    data = SpotData(
        tokens=stack("tokens"),
        pooled=stack("pooled"),
        neighbors=stack("neighbors"),
        neighbor_mask=stack("neighbor_mask"),
        grid=torch.from_numpy(np.concatenate([grid_positions(adata, by_slide[n], xy[by_slide[n]], n) for n in names])),
        xy=torch.from_numpy((xy[order] / side[:, None]).astype(np.float32)),
        slide=torch.from_numpy(np.repeat(np.arange(len(names)), [len(by_slide[n]) for n in names])),
        names=names,
        groups=[groups[name] if groups else name for name in names],
        expression=None if expression is None else torch.from_numpy(expression[order]),
        counts=None if counts is None else torch.from_numpy(counts[order]),
    )
    return data, order


def panel_counts(adata: AnnData, panel: pd.Index, layer: str | None) -> NDArray[np.float32]:
    """Raw counts of the panel genes, (n_obs, n_panel) float32; zero for genes that ``adata`` lacks."""
    at = adata.var_names.get_indexer(panel)
    found = raw_counts(adata, layer)[:, at[at >= 0]]
    counts = np.zeros((adata.n_obs, len(at)), np.float32)
    counts[:, at >= 0] = found.toarray() if sparse.issparse(found) else found
    return counts
