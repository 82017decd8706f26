"""From resolved spots to the data of a run."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import sparse

from gdml import _keys
from gdml.training.data import SlideSpots, SpotData

from .features import bank_rows
from .resolve import Spots


def spot_data(
    spots: Spots,
    *,
    expression: NDArray[np.float32] | None = None,
    counts: NDArray[np.float32] | None = None,
    depth: NDArray[np.float32] | None = None,
    group_key: str | None = None,
) -> tuple[SpotData, NDArray[np.intp]]:
    """Index the features, geometry and expression of all spots; features stay on disk.

    Parameters
    ----------
    spots
        Tiled and embedded.
    expression, counts
        (n_obs, n_genes) float32 targets and raw counts of the panel genes, rows as in the AnnData.
    depth
        (n_obs,) float32 total count of each spot, see :func:`total_counts`.
    group_key
        Column with the group of each slide; None: each slide is its own.

    Returns
    -------
    data : SpotData
        The spots of a slide next to each other.
    order : (n_obs,) int
        Row of the AnnData that each spot comes from.
    """
    tiles = spots.record(_keys.TILES) or {}
    groups = spots.groups(group_key)
    slides = []
    for name, rows in spots.slides.items():
        bank = bank_rows(spots, name)
        side = float(tiles["slides"][name]["side_px"])
        slides.append(
            SlideSpots(name, groups[name], *bank, spots.grid(name), (spots.xy[rows] / side).astype(np.float32))
        )
    order = np.concatenate(list(spots.slides.values()))
    # spots whose slides lie side by side need no copy of their targets
    in_order = np.array_equal(order, np.arange(len(order)))
    as_tensor = lambda part: None if part is None else torch.from_numpy(part if in_order else part[order])
    return SpotData(slides, as_tensor(expression), as_tensor(counts), depth=as_tensor(depth)), order


def panel_counts(spots: Spots, panel: pd.Index, layer: str | None, rows: Any = slice(None)) -> NDArray[np.float32]:
    """Raw counts of the panel genes at some spots, (n, n_panel) float32; zero for absent genes."""
    at = spots.adata.var_names.get_indexer(panel)
    found = spots.counts(layer)[rows][:, at[at >= 0]]
    counts = np.zeros((found.shape[0], len(at)), np.float32)
    counts[:, at >= 0] = found.toarray() if sparse.issparse(found) else found
    return counts


def total_counts(spots: Spots, layer: str | None) -> NDArray[np.float32]:
    """Total count of each spot over all genes, (n_obs,) float32."""
    return np.asarray(spots.counts(layer).sum(1), np.float32).reshape(-1)
