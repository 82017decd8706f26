"""What every verb asks of an AnnData first: that it can be written to, where its spots lie, and on which slide."""

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import some

ONE_SLIDE = "slide"  # name of the only slide where the AnnData names none


def check_adata(adata: AnnData, *, copy: bool = False, name: str = "adata") -> None:
    """Refuse what the verbs can't write to: a view, a backed object, ambiguous names, no spots.

    Parameters
    ----------
    adata
        What the user gave.
    copy
        Whether a copy is written to, so that a view does no harm.
    name
        Of the argument, for messages.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
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
            twice = names[names.duplicated()].unique()
            raise ValueError(f"`{name}` has duplicate {what}: {some(twice)}; call {name}.{mend}().")


def spot_coordinates(adata: AnnData, spatial_key: str = _keys.SPATIAL) -> NDArray[np.float64]:
    """Spot centres (x, y), full-resolution px, (n_obs, 2).

    Raises
    ------
    KeyError
        If ``obsm`` has none.
    ValueError
        If the shape is another one, or a coordinate is NaN or infinite.
    """
    if spatial_key not in adata.obsm:
        raise KeyError(
            f"obsm[{spatial_key!r}] is missing: spot centres (x, y) in full-resolution pixels are needed; "
            f"name their place with spatial_key= (obsm has: {some(adata.obsm) or 'nothing'})."
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
    """Rows of each slide, slides in order of appearance.

    Without the column there is one slide: the only one in ``uns[spatial_key]``, or one called "slide".

    Raises
    ------
    KeyError
        If the column is absent and ``uns`` holds several slides.
    ValueError
        If a spot has no slide.
    """
    if library_key not in adata.obs:
        names = list(adata.uns.get(spatial_key, {}))
        if len(names) > 1:
            raise KeyError(
                f"obs[{library_key!r}] is missing while uns[{spatial_key!r}] holds {len(names)} slides "
                f"({some(names)}): name the column of obs that tells them apart with library_key=."
            )
        return {names[0] if names else ONE_SLIDE: np.arange(adata.n_obs)}
    codes, names = pd.factorize(adata.obs[library_key].astype(object))
    if (codes < 0).any():
        raise ValueError(
            f"obs[{library_key!r}] is missing for {(codes < 0).sum()} spots ({some(adata.obs_names[codes < 0])}); "
            "fill it in or drop them."
        )
    return {str(name): np.flatnonzero(codes == code) for code, name in enumerate(names)}


def library_of_each_spot(adata: AnnData, library_key: str) -> NDArray[np.str_]:
    """Name of the slide of each spot, length n_obs."""
    library = np.empty(adata.n_obs, dtype=object)
    for name, rows in libraries(adata, library_key).items():
        library[rows] = name
    return library.astype(str)
