"""Colours of spots by a column of ``adata.obs``."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex, to_rgba, to_rgba_array
from numpy.typing import NDArray

from gdml._errors import did_you_mean

from ._common import COLORS

_ABSENT = "#D3D3D3"  # scanpy's lightgray


@dataclass(frozen=True)
class SpotColors:
    """Colour of each spot, and the key to the colours."""

    rgba: NDArray[np.float64]  # spots x 4
    categories: dict[str, str]  # empty for numbers
    scale: ScalarMappable | None  # of numbers


def spot_colors(adata: AnnData, color: str, cmap: str) -> SpotColors:
    """Colour the spots by a column of ``adata.obs``: numbers by ``cmap``, other types by category, NaN light grey.

    Raises
    ------
    KeyError
        If the column does not exist.
    ValueError
        If the colour map is unknown.
    """
    if color not in adata.obs:
        raise KeyError(f"`color` is {color!r}, which is no column of adata.obs. {did_you_mean(str(color), adata.obs)}")
    values = adata.obs[color]
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        if cmap not in colormaps:
            raise ValueError(f"`cmap` is {cmap!r}. {did_you_mean(str(cmap), colormaps)}")
        numbers = np.ma.masked_invalid(values.to_numpy(np.float64))
        scale = ScalarMappable(Normalize(numbers.min(), numbers.max()), colormaps[cmap].with_extremes(bad=_ABSENT))
        return SpotColors(scale.to_rgba(numbers), {}, scale)
    kinds = values.astype("category").cat
    names = [str(name) for name in kinds.categories]
    palette = to_rgba_array(_palette(adata, color, len(names)))
    codes = kinds.codes.to_numpy()
    table = dict(zip(names, map(to_hex, palette), strict=True))
    if (codes < 0).any():
        table["NA"] = _ABSENT
    return SpotColors(
        np.concatenate([palette, [to_rgba(_ABSENT)]])[np.where(codes < 0, len(palette), codes)], table, None
    )


def _palette(adata: AnnData, color: str, n: int) -> list[str]:
    """Colours of ``n`` categories: those stored by scanpy, else a colour-blind safe palette, else scanpy's."""
    stored = list(adata.uns.get(f"{color}_colors", []))
    if len(stored) >= n:
        return stored[:n]
    if n <= len(COLORS):
        return list(COLORS[:n])
    from scanpy.plotting import palettes

    for known in (palettes.default_20, palettes.default_28, palettes.default_102):
        if n <= len(known):
            return list(known[:n])
    return [known[i % len(known)] for i in range(n)]
