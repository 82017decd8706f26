"""Micrometres per pixel of a slide: every source that states it, held against the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import check_number, some
from gdml.slides.geometry import grid_kind, um_per_px_from_grid, um_per_px_from_neighbors

from .images import slide_entry
from .resolve import Spots

PITCH_UM = {"hex": 100.0, "square": 200.0}  # Visium, legacy ST
DIAMETER_UM = {100.0: (55.0, 65.0), 200.0: (100.0, 100.0)}  # by pitch; Space Ranger writes 65 um for Visium's 55
BOUNDS = (0.05, 5.0)
BOUNDS_HIRES = (0.05, 20.0)
_AGREE, _REFUSE = 1.1, 2.0  # factors between sources: beyond the first they disagree, beyond the second one is wrong
_FEWEST = 8  # spots whose nearest neighbours show the pitch
_ABUT = 0.8  # diameter over pitch above which spots are bins without gaps


@dataclass(frozen=True)
class Scale:
    """Micrometres per pixel of a slide.

    Parameters
    ----------
    um_per_px
        NaN where no source states it.
    source
        ``"argument"``, ``"scalefactors"``, ``"image metadata"``, ``"spot pitch"``, ``"spot diameter"`` or
        ``"unknown"``.
    conflict
        Sentence about the sources that disagree; empty where there are none.
    """

    um_per_px: float
    source: str
    conflict: str = ""


@dataclass(frozen=True)
class _Source:
    """What one source states, um per px: a range where it is not exact; assumed where no file or argument states it."""

    name: str
    low: float
    high: float
    assumed: bool = False

    @property
    def exact(self) -> bool:
        """Whether it states one value."""
        return self.low == self.high

    def factor(self, value: float) -> float:
        """Factor between a value and the nearest end of the range, at least 1."""
        return max(self.low / value, value / self.high, 1.0)

    def __str__(self) -> str:
        value = f"{self.low:.4g}" if self.exact else f"{self.low:.4g} to {self.high:.4g}"
        return f"{self.name} {value}" + (" (200 um pitch assumed)" if self.assumed else "")


def slide_scale(
    spots: Spots,
    library: str,
    *,
    given: float | None,
    metadata: float | None,
    pitch_um: float | None,
    bounds: tuple[float, float] = BOUNDS,
    check: bool = True,
) -> Scale:
    """Micrometres per pixel of one slide.

    The first of these that is known: ``given``, ``microns_per_pixel`` of Space Ranger's scale factors, the metadata of
    the image, the spot pitch (of at least 8 spots, or of a grid), the spot diameter where it is one of 100 um or a bin. A square grid without a
    known pitch is taken for legacy ST (200 um) unless its spots touch, as bins do.

    Parameters
    ----------
    spots, library
        The spots, and the slide.
    given
        Value that the user passed, um per px.
    metadata
        Value in the image's metadata, um per px.
    pitch_um
        Spot pitch that the user passed, um; by default that in ``uns``, Space Ranger's ``bin_size_um``, or that of the
        array that the grid belongs to.
    bounds
        Plausible range, um per px.
    check
        Refuse sources that differ by more than a factor of 2.

    Returns
    -------
    The scale, its source, and what disagrees with it by more than 10 %.

    Raises
    ------
    ValueError
        If the scale is out of bounds, if sources differ by more than a factor of 2, or if ``given`` differs by more
        than that from all others.
    """
    sources = _sources(spots, library, given, metadata, pitch_um)
    if not sources or not sources[0].exact:
        return Scale(float("nan"), "unknown")
    first, others = sources[0], sources[1:]
    value = first.low
    if not bounds[0] <= value <= bounds[1]:
        raise ValueError(
            f"um per px of slide {library!r} is {value:.4g} ({first.name}), outside the plausible range "
            f"({bounds[0]} to {bounds[1]}). Pass um_per_px= to gdml.pp.tile, or check the spot pitch and the coordinates "
            "(full-resolution px)."
        )
    wrong = [other for other in others if not other.assumed and other.factor(value) > _REFUSE]
    states = "; ".join(map(str, sources))
    if check and first.name == "argument" and wrong and len(wrong) == sum(not other.assumed for other in others):
        raise ValueError(
            f"`um_per_px` of slide {library!r} differs from every other source by more than a factor of {_REFUSE:g} "
            f"(um per px: {states}). Leave it out, or insist on it with check=False."
        )
    if check and first.name != "argument" and wrong:
        raise ValueError(
            f"The sources of the scale of slide {library!r} differ by more than a factor of {_REFUSE:g} (um per px: "
            f"{states}). Are the coordinates those of the full-resolution image, and is it the image of this slide? "
            f"If so, decide with gdml.pp.tile(adata, um_per_px={{{library!r}: ...}})."
        )
    disagree = any(other.factor(value) > _AGREE for other in others)
    return Scale(value, first.name, f"slide {library!r} ({states}; {first.name} used)" if disagree else "")


def check_scale_arguments(
    names: list[str], um_per_px: float | Mapping[str, float] | None, spot_pitch_um: float | None
) -> dict[str, float]:
    """Check the arguments on scale, and give ``um_per_px`` by slide.

    Parameters
    ----------
    names
        The slides.
    um_per_px, spot_pitch_um
        As in :func:`gdml.pp.tile`.

    Returns
    -------
    Micrometres per px by slide, for the slides that have one.

    Raises
    ------
    KeyError
        If ``um_per_px`` names an unknown slide.
    TypeError, ValueError
        If a value is not a positive number.
    """
    if spot_pitch_um is not None:
        check_number("spot_pitch_um", spot_pitch_um, above=0, hint="give um between neighbouring spots")
    if um_per_px is None:
        return {}
    if not isinstance(um_per_px, Mapping):
        check_number("um_per_px", um_per_px, above=0, hint="give um per px, or a dict of these by slide")
        return dict.fromkeys(names, float(um_per_px))
    unknown = [name for name in um_per_px if str(name) not in names]
    if unknown:
        raise KeyError(f"`um_per_px` names unknown slides: {some(unknown)}; the slides are: {some(names)}.")
    for name, value in um_per_px.items():
        check_number(f"um_per_px[{name!r}]", value, above=0)
    return {str(name): float(value) for name, value in um_per_px.items()}


def _sources(
    spots: Spots, library: str, given: float | None, metadata: float | None, pitch_um: float | None
) -> list[_Source]:
    """List what each source states, the most reliable first."""
    entry = slide_entry(spots.adata, library, spots.spatial_key)
    factors = entry.get("scalefactors", {})
    row_col = _row_col(spots, library)
    laid = spots.record(_keys.TISSUE) is not None  # by gdml.pp.grid, not the array of a technology
    kind = None if row_col is None or laid else grid_kind(*row_col)
    bin_um = _number(factors.get("bin_size_um"))
    stated = (pitch_um, _number(entry.get("metadata", {}).get(_keys.SPOT_PITCH)), bin_um)
    pitch = next((value for value in stated if value is not None), PITCH_UM.get(kind or ""))
    assumed = kind == "square" and not any(stated)

    pitch_px = _pitch_px(spots.xy[spots.slides[library]], row_col) if pitch is not None else None
    diameter_px = _number(factors.get("spot_diameter_fullres"))
    if assumed and pitch_px and diameter_px and diameter_px / pitch_px > _ABUT:
        pitch = None
    exact = {"argument": given, "scalefactors": _number(factors.get("microns_per_pixel")), "image metadata": metadata}
    found = [_Source(name, value, value) for name, value in exact.items() if value is not None]
    diameter_um = (bin_um, bin_um) if bin_um else DIAMETER_UM.get(pitch or 0.0)
    diameter = []
    if diameter_um and diameter_px:
        low, high = (um / diameter_px for um in diameter_um)
        diameter = [_Source("spot diameter", low, high, assumed)]
    # the nearest of a few spots, or of tiles on scattered tissue, need not be its neighbour
    scattered = laid or kind is None and len(spots.slides[library]) < _FEWEST
    if pitch and pitch_px and not (scattered and (found or any(source.exact for source in diameter))):
        found.append(_Source("spot pitch", pitch / pitch_px, pitch / pitch_px, assumed))
    return found + diameter


def _row_col(spots: Spots, library: str) -> tuple[NDArray[Any], NDArray[Any]] | None:
    obs = spots.adata.obs
    if _keys.ARRAY_ROW not in obs or _keys.ARRAY_COL not in obs:
        return None
    row, col = (obs[name].to_numpy()[spots.slides[library]] for name in (_keys.ARRAY_ROW, _keys.ARRAY_COL))
    return (row, col) if row.dtype.kind in "fiu" and col.dtype.kind in "fiu" else None


def _pitch_px(xy: NDArray[np.float64], row_col: tuple[NDArray[Any], NDArray[Any]] | None) -> float | None:
    """Spot pitch in px: of the grid, or of nearest neighbours where the grid does not fit the coordinates."""
    if row_col is not None and grid_kind(*row_col) is not None:
        try:
            return 1 / um_per_px_from_grid(xy, *row_col, 1.0)
        except ValueError:  # not the grid of these coordinates
            pass
    try:
        return 1 / um_per_px_from_neighbors(xy, 1.0)
    except ValueError:  # fewer than two spots
        return None


def _number(value: Any) -> float | None:
    """Value of a scale factor, or None where it is absent or no positive number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None
