"""Checks of an AnnData, spot centres, and the slide of each spot."""

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import did_you_mean, some

ONE_SLIDE = "slide"  # name of the only slide where the AnnData names none


def check_adata(adata: AnnData, *, copy: bool = False, name: str = "adata") -> None:
    """Refuse an AnnData that cannot be written to, has no spots or has ambiguous names.

    Parameters
    ----------
    adata
        What the user passed.
    copy
        Whether results are written to a copy, so that a view is accepted.
    name
        Name of the argument, for messages.

    Raises
    ------
    TypeError
        If ``adata`` is not an AnnData.
    ValueError
        If it is backed, a view (without ``copy``) or empty, or if names of spots or genes repeat.
    """
    if not isinstance(adata, AnnData):
        hint = '; pass the table: sdata.tables["table"]' if hasattr(adata, "tables") else ""
        raise TypeError(f"`{name}` must be an AnnData, found {type(adata).__name__}{hint}.")
    if adata.isbacked:
        raise ValueError(f"`{name}` is backed: load it with {name} = {name}.to_memory() first.")
    if adata.is_view and not copy:
        raise ValueError(f"`{name}` is a view: call {name} = {name}.copy() first.")
    if adata.n_obs == 0:
        raise ValueError(f"`{name}` has no spots.")
    for names, what, mend in (
        (adata.obs_names, "spot names (obs_names)", "obs_names_make_unique"),
        (adata.var_names, "gene names (var_names)", "var_names_make_unique"),
    ):
        if not names.is_unique:
            repeated = names[names.duplicated()].unique()
            raise ValueError(f"`{name}` has duplicate {what}: {some(repeated)}; call {name}.{mend}().")


def spot_coordinates(adata: AnnData, spatial_key: str = _keys.SPATIAL) -> NDArray[np.float64]:
    """Spot centres (x, y), full-resolution px, (n_obs, 2).

    Raises
    ------
    KeyError
        If ``obsm`` has none.
    ValueError
        If the shape is wrong, or a coordinate is NaN or infinite.
    """
    if spatial_key not in adata.obsm:
        raise KeyError(
            f"obsm[{spatial_key!r}] is missing: spot centres (x, y) in full-resolution pixels are needed. If they are "
            f"elsewhere, call gdml.pp.tile(adata, spatial_key=...) (obsm has: {some(adata.obsm) or 'nothing'})."
        )
    xy = np.asarray(adata.obsm[spatial_key])
    if xy.shape != (adata.n_obs, 2) or xy.dtype.kind not in "fiu":
        raise ValueError(
            f"obsm[{spatial_key!r}] must be numbers of shape ({adata.n_obs}, 2), found {xy.dtype} {xy.shape}; "
            "keep the columns x and y."
        )
    xy = xy.astype(np.float64)
    bad = ~np.isfinite(xy).all(1)
    if bad.any():
        raise ValueError(
            f"obsm[{spatial_key!r}] has NaN or infinite coordinates in {bad.sum()} spots "
            f"({some(adata.obs_names[bad])}); drop them: adata = adata[np.isfinite(adata.obsm[{spatial_key!r}])"
            ".all(1)].copy()."
        )
    return xy


def libraries(
    adata: AnnData, library_key: str = _keys.LIBRARY, *, spatial_key: str = _keys.SPATIAL
) -> dict[str, NDArray[np.intp]]:
    """Rows of each slide, slides in order of appearance, their names as text.

    Without the default column there is one slide: the only one in ``uns[spatial_key]``, or one called "slide".

    Raises
    ------
    KeyError
        If a column other than the default is absent, or the default one is and ``uns`` holds several slides.
    ValueError
        If a spot has no slide.
    """
    if library_key not in adata.obs:
        if library_key != _keys.LIBRARY:
            check_column(adata, "library_key", library_key)
        names = list(adata.uns.get(spatial_key, {}))
        if len(names) > 1:
            raise KeyError(
                f"obs[{library_key!r}] is missing while uns[{spatial_key!r}] holds {len(names)} slides "
                f"({some(names)}): name the column of obs with the slide of each spot, "
                "gdml.pp.tile(adata, library_key=...)."
            )
        return {str(names[0]) if names else ONE_SLIDE: np.arange(adata.n_obs)}
    column = adata.obs[library_key]
    missing = column.isna().to_numpy()
    if missing.any():
        raise ValueError(
            f"obs[{library_key!r}] is missing for {missing.sum()} spots ({some(adata.obs_names[missing])}); "
            "fill it in or drop them."
        )
    codes, names = pd.factorize(column.astype(str).to_numpy(object))
    return {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}


def check_column(adata: AnnData, argument: str, column: str) -> None:
    """Refuse the name of a column that ``obs`` does not have.

    Raises
    ------
    KeyError
        If there is no such column.
    """
    if column not in adata.obs:
        columns = list(map(str, adata.obs.columns))
        hint = did_you_mean(column, columns) if columns else "`adata.obs` has no columns."
        raise KeyError(f"`{argument}` is {column!r}, which is no column of obs. {hint}")
