"""The group (patient) of each slide."""

from typing import Any

from anndata import AnnData

from gdml import _keys
from gdml._errors import some

from .coordinates import libraries


def slide_groups(adata: AnnData, groups: str | None, *, key: str) -> dict[str, str] | None:
    """Group of each slide from a column of ``obs``, or None.

    Raises
    ------
    KeyError
        If there is no such column.
    ValueError
        If a slide has spots of two groups, or of none.
    """
    if groups is None:
        return None
    if groups not in adata.obs:
        raise KeyError(f"`groups` is {groups!r}, which is no column of obs (it has: {some(adata.obs.columns, 10)}).")
    tiles: Any = adata.uns[key][_keys.TILES]
    column = adata.obs[groups]
    found = {}
    for name, rows in libraries(adata, tiles["library_key"], spatial_key=tiles["spatial_key"]).items():
        values = column.iloc[rows]
        if values.isna().any():
            raise ValueError(f"obs[{groups!r}] is missing for {int(values.isna().sum())} spots of slide {name!r}.")
        if values.nunique() > 1:
            raise ValueError(
                f"Slide {name!r} has spots of several groups in obs[{groups!r}] ({some(values.unique())}): "
                "a slide must belong to one group."
            )
        found[name] = str(values.iloc[0])
    return found
