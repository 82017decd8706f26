"""From resolved spots to the data of a run."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from gdml import _keys
from gdml._provenance import provenance_key, spots_digest
from gdml.features import read_head
from gdml.training.data import SlideSpots, SpotData

from .counts import raw_counts
from .features import bank_rows
from .resolve import Spots


def spot_data(
    spots: Spots,
    *,
    expression: NDArray[np.float32] | None = None,
    counts: NDArray[np.float32] | None = None,
    group_key: str | None = None,
    all_counts: Any = None,
) -> tuple[SpotData, NDArray[np.intp]]:
    """Index the features, geometry and expression of all spots; features stay on disk.

    Parameters
    ----------
    spots
        Tiled and embedded.
    expression, counts
        (n_obs, n_genes) float32 targets and raw counts of the panel genes, rows as in the AnnData.
    group_key
        Column with the group of each slide; None: each slide is its own.
    all_counts
        Raw counts of all genes, n_obs x n_vars, which the keys of the slides then depend on.

    Returns
    -------
    data : SpotData
        The spots of a slide next to each other.
    order : (n_obs,) int
        Row of the AnnData that each spot comes from.
    """
    tiles = spots.record(_keys.TILES) or {}
    groups = spots.groups(group_key)
    order = np.concatenate(list(spots.slides.values()))
    slides = []
    for name, rows in spots.slides.items():
        bank = bank_rows(spots, name)
        side = float(tiles["slides"][name]["side_px"])
        xy = (spots.xy[rows] / side).astype(np.float32)
        grid = spots.grid(name)
        key = slide_key(spots, name, grid, None if all_counts is None else all_counts[rows])
        slides.append(SlideSpots(name, groups[name], *bank, grid, xy, key))
    as_tensor = lambda part: None if part is None else torch.from_numpy(part[order])
    return SpotData(slides, as_tensor(expression), as_tensor(counts)), order


def slide_key(spots: Spots, slide: str, grid: NDArray[np.int64], counts: Any = None) -> str:
    """Provenance key of a slide: whatever its features, positions or counts depend on.

    Parameters
    ----------
    spots
        Tiled and embedded.
    slide
        Name of the slide.
    grid
        (n, 2) position of its spots on the grid.
    counts
        Raw counts of its spots, n x n_vars; None where they play no part.
    """
    tiles, features = spots.record(_keys.TILES) or {}, spots.record(_keys.FEATURES) or {}
    of_slide = tiles["slides"][slide]
    return provenance_key(
        {
            "image": _image(of_slide, features, slide),
            "geometry": {
                **{name: str(of_slide.get(name)) for name in ("um_per_px", "side_px")},
                **{name: str(tiles[name]) for name in ("tile_px", "n_side")},
                "neighbors": str(features.get("neighbors")),
            },
            "encoder": {name: str(features.get(name)) for name in ("identity", "precision", "tokens")},
            "grid": hashlib.blake2b(grid.astype("<i8").tobytes(), digest_size=16).hexdigest(),
            "spots": spots_digest(spots.xy[spots.slides[slide]], counts),
        }
    )


def _image(of_slide: dict[str, Any], features: dict[str, Any], slide: str) -> str:
    """Fingerprint of the image of a slide, as recorded, or as its feature store has it."""
    if "fingerprint" in of_slide:
        return str(of_slide["fingerprint"])
    return str(read_head(Path(str(features["stores"]["own"][slide])))["spec"]["image"])


def panel_counts(adata: AnnData, panel: pd.Index, layer: str | None) -> NDArray[np.float32]:
    """Raw counts of the panel genes, (n_obs, n_panel) float32; zero for genes that ``adata`` lacks."""
    at = adata.var_names.get_indexer(panel)
    found = raw_counts(adata, layer)[:, at[at >= 0]]
    counts = np.zeros((adata.n_obs, len(at)), np.float32)
    counts[:, at >= 0] = found.toarray() if sparse.issparse(found) else found
    return counts
