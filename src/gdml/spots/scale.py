"""Micrometres per pixel of a slide: given, from the metadata of its image, or from the spot pitch."""

import warnings
from collections.abc import Mapping

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import some
from gdml.slides import grid_kind, um_per_px_from_grid, um_per_px_from_neighbors

PITCH_UM = {"hex": 100.0, "square": 200.0}  # Visium, legacy ST
BOUNDS = (0.05, 5.0)
BOUNDS_HIRES = (0.05, 20.0)
_AGREE = 0.1  # relative


def slide_scale(
    adata: AnnData,
    library: str,
    rows: NDArray[np.intp],
    xy: NDArray[np.float64],
    *,
    given: float | Mapping[str, float] | None,
    metadata: float | None,
    pitch_um: float | None,
    spatial_key: str,
    bounds: tuple[float, float] = BOUNDS,
) -> tuple[float, str]:
    """Micrometres per pixel of one slide, and where they come from.

    Parameters
    ----------
    adata, library, rows, xy
        The spots; the slide, its rows and their centres, px, (n, 2).
    given
        What the user says, for all slides or by slide; wins.
    metadata
        What the image says; comes next.
    pitch_um
        Spot pitch, um; None looks in ``uns``, then at the grid.
    spatial_key
        Where ``uns`` has the slides.
    bounds
        What is believed, um per px.

    Returns
    -------
    NaN and "unknown" where nothing is known.

    Raises
    ------
    ValueError
        If the scale is not finite or out of bounds.
    """
    given = given.get(library) if isinstance(given, Mapping) else given
    if pitch_um is None:
        pitch_um = adata.uns.get(spatial_key, {}).get(library, {}).get("metadata", {}).get(_keys.SPOT_PITCH)
    from_pitch = _from_pitch(adata, rows, xy, None if pitch_um is None else float(pitch_um))
    known = ((given, "argument"), (metadata, "image metadata"), (from_pitch, "spot pitch"))
    value, source = next(((float(v), s) for v, s in known if v is not None), (float("nan"), "unknown"))
    if source == "unknown":
        return value, source
    if not bounds[0] <= value <= bounds[1]:
        raise ValueError(
            f"um per px of slide {library!r} is {value:.4g} ({source}), which no slide has: {bounds[0]} to {bounds[1]} "
            "is believed. Pass um_per_px=, or check spot_pitch_um= and obsm coordinates (full-resolution px)."
        )
    if from_pitch is not None and abs(value / from_pitch - 1) > _AGREE:
        warnings.warn(
            f"Slide {library!r}: the {source} says {value:.4g} um per px, the spot pitch {from_pitch:.4g}. "
            f"The {source} is used; pass um_per_px= to decide.",
            UserWarning,
            stacklevel=3,
        )
    return value, source


def check_scale_arguments(
    names: list[str], um_per_px: float | Mapping[str, float] | None, spot_pitch_um: float | None
) -> None:
    """Refuse scales that are not positive numbers, and slides that don't exist.

    Raises
    ------
    KeyError
        If ``um_per_px`` names an unknown slide.
    ValueError
        If a value is not positive and finite.
    """
    if isinstance(um_per_px, Mapping) and not set(um_per_px) <= set(names):
        unknown = [name for name in um_per_px if name not in names]
        raise KeyError(f"`um_per_px` names unknown slides: {some(unknown)}; the slides are: {some(names)}.")
    values = {f"um_per_px[{k!r}]": v for k, v in um_per_px.items()} if isinstance(um_per_px, Mapping) else {}
    if um_per_px is not None and not isinstance(um_per_px, Mapping):
        values["um_per_px"] = um_per_px
    if spot_pitch_um is not None:
        values["spot_pitch_um"] = spot_pitch_um
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"`{name}` must be positive, found {value}; leave it out to derive it.")


def _from_pitch(
    adata: AnnData, rows: NDArray[np.intp], xy: NDArray[np.float64], pitch_um: float | None
) -> float | None:
    """From the grid where there is one, else from the nearest neighbours; None where the pitch is unknown."""
    if _keys.ARRAY_ROW in adata.obs and _keys.ARRAY_COL in adata.obs:
        row, col = (adata.obs[name].to_numpy()[rows] for name in (_keys.ARRAY_ROW, _keys.ARRAY_COL))
        kind = grid_kind(row, col) if row.dtype.kind in "fiu" and col.dtype.kind in "fiu" else None
        if kind is not None:
            try:
                return um_per_px_from_grid(xy, row, col, PITCH_UM[kind] if pitch_um is None else pitch_um)
            except ValueError:  # the grid is not that of these coordinates
                pass
    if pitch_um is None:
        return None
    try:
        return um_per_px_from_neighbors(xy, pitch_um)
    except ValueError:  # too few spots to have a pitch
        return None
