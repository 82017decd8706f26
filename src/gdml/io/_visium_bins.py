"""Larger bins of Visium HD, put together from those that Space Ranger wrote."""

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from gdml import _keys

from ._visium_tables import IN_TISSUE

N_BINS = "n_bins"  # obs: how many of the smaller bins were put together


def aggregate_bins(adata: ad.AnnData, factor: int, bin_um: int) -> ad.AnnData:
    """Sum the counts of squares of ``factor`` x ``factor`` bins.

    Bin (row, column) goes into the larger bin (row // factor, column // factor), which is how Space Ranger's own sizes
    are nested. Its centre follows from the steps of the array, wherever in it the bins lie that are present: at the
    edge of the tissue their mean would be off it.

    Parameters
    ----------
    adata
        Bins, with ``array_row``, ``array_col`` and ``in_tissue`` in ``obs`` and centres in ``obsm["spatial"]``.
    factor
        Bins along the side of a larger one.
    bin_um
        Side of the larger bins, um, for their names.

    Returns
    -------
    AnnData of the larger bins in the order of the array, named as Space Ranger does, with ``n_bins`` in ``obs``;
    ``in_tissue`` is 1 where one of the bins is.

    Raises
    ------
    ValueError
        If the bins lie in one line, or their positions are not those of a regular array.
    """
    row, col = (adata.obs[name].to_numpy(np.int64) for name in (_keys.ARRAY_ROW, _keys.ARRAY_COL))
    places = np.column_stack([row // factor, col // factor])
    width = int(places[:, 1].max()) + 1
    codes, group = np.unique(places[:, 0] * width + places[:, 1], return_inverse=True)
    rows, cols = codes // width, codes % width
    n_bins = np.bincount(group)

    middle = (factor - 1) / 2
    to_centre = np.column_stack([rows, cols])[group] * factor + middle - np.column_stack([row, col])
    centres = adata.obsm[_keys.SPATIAL] + to_centre @ _steps(adata)
    xy = np.column_stack([np.bincount(group, along) for along in centres.T]) / n_bins[:, None]

    sums = sparse.csr_matrix((np.ones(len(group), np.float32), (group, np.arange(len(group))))) @ adata.X
    sums.sort_indices()
    obs = pd.DataFrame(
        {
            IN_TISSUE: (np.bincount(group, adata.obs[IN_TISSUE].to_numpy()) > 0).astype(np.int64),
            _keys.ARRAY_ROW: rows,
            _keys.ARRAY_COL: cols,
            N_BINS: n_bins.astype(np.int64),
        },
        index=[f"s_{bin_um:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(rows.tolist(), cols.tolist(), strict=True)],
    )
    return ad.AnnData(X=sums, obs=obs, var=adata.var, obsm={_keys.SPATIAL: xy})


def _steps(adata: ad.AnnData) -> np.ndarray:
    """Step of a row and of a column of the array, (2, 2), px."""
    grid = adata.obs[[_keys.ARRAY_ROW, _keys.ARRAY_COL]].to_numpy(np.float64)
    grid -= grid.mean(0)
    xy = adata.obsm[_keys.SPATIAL] - adata.obsm[_keys.SPATIAL].mean(0)
    steps, _, rank, _ = np.linalg.lstsq(grid, xy, rcond=None)
    if rank < 2:
        raise ValueError(
            f"The {adata.n_obs} bins lie in one line of the array, so that the centres of larger ones are unknown; "
            "read them at the size in the folder."
        )
    off = np.sqrt(((xy - grid @ steps) ** 2).sum(1).mean())
    side = np.sqrt(abs(np.linalg.det(steps)))
    # the microscope's image may be registered with some perspective, which shows over the whole array
    if not off < side + 0.01 * np.sqrt((xy**2).sum(1).mean()):
        raise ValueError(
            f"Rows and columns of the bins don't fit their positions in px (off by {off:.3g} px on average, bins have "
            f"{side:.3g} px); are the positions of this run?"
        )
    return steps
