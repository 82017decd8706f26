"""What is kept of out-of-fold errors, so that prediction intervals of any level can be made later."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._errors import check_number, count, did_you_mean

Target = Literal["unseen patient", "unseen slide", "unseen part of a known slide"]

#: What an interval can be for, the hardest first.
TARGETS: tuple[Target, ...] = ("unseen patient", "unseen slide", "unseen part of a known slide")

#: Units that are drawn anew for each target, and what they are drawn from.
_UNITS = {TARGETS[0]: ("patient", ""), TARGETS[1]: ("slide", "patient"), TARGETS[2]: ("part", "slide")}
#: Levels that differ by less are the same.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Calibration:
    """Quantiles of out-of-fold errors, from which intervals of any level are made; :func:`calibrate` makes it.

    Parameters
    ----------
    quantiles
        For each of :data:`TARGETS` that the errors allow, the quantiles 1/L, 2/L, ..., 1 of the absolute errors in units
        of the predicted spread, (L, genes) float32.
    units
        For each of them, the number of units that were held out (patients, slides, or blocks or spots of slides), and of
        the populations that they were drawn from: 1 for patients, the patients for slides, the slides for blocks.
    """

    quantiles: dict[Target, NDArray[np.float32]]
    units: dict[Target, tuple[int, int]]

    @property
    def held_out(self) -> Target:
        """What was held out when the errors were made, the hardest target."""
        return next(target for target in TARGETS if target in self.units)

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.quantiles[self.held_out].shape[1]

    def highest_level(self, target: Target | None = None) -> float:
        """Highest level at which the interval is finite.

        Parameters
        ----------
        target
            One of :data:`TARGETS`. By default :attr:`held_out`.

        Returns
        -------
        n / (n + 1) for n units of one population, such as patients; (n - 1) / n for slides of several patients, or blocks
        of several slides.

        Raises
        ------
        ValueError
            If ``target`` is unknown, or harder than what was held out.
        """
        n, populations = self.units[self._known(target)]
        return n / (n + 1) if populations == 1 else (n - 1) / n

    def _known(self, target: Target | None) -> Target:
        if target is None:
            return self.held_out
        if target not in TARGETS:
            raise ValueError(f"`target` is {target!r}. {did_you_mean(str(target), TARGETS)}")
        if target not in self.units:
            raise ValueError(
                f"`target` is {target!r}, but the errors are of an {self.held_out}: they say nothing about an {target}. "
                f"Ask for target={self.held_out!r}, or calibrate on predictions of whole held-out {_UNITS[target][0]}s."
            )
        return target

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Give the arrays by name, for a model file: float32 quantiles and int64 numbers of units."""
        arrays: dict[str, NDArray[Any]] = {}
        for target, quantiles in self.quantiles.items():
            arrays[f"{_slug(target)}_quantiles"] = quantiles
            arrays[f"{_slug(target)}_units"] = np.array(self.units[target], np.int64)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> Self:
        """Make it from what :meth:`to_arrays` gave.

        Raises
        ------
        ValueError
            If arrays are missing, or are not what :meth:`to_arrays` gives.
        """
        quantiles: dict[Target, NDArray[np.float32]] = {}
        units: dict[Target, tuple[int, int]] = {}
        for target in TARGETS:
            names = [f"{_slug(target)}_{part}" for part in ("quantiles", "units")]
            if not any(name in arrays for name in names):
                continue
            if not all(name in arrays for name in names):
                raise ValueError(f"A calibration with one of {names} needs the other, found {sorted(arrays)}.")
            q, n = np.asarray(arrays[names[0]], np.float32), np.asarray(arrays[names[1]])
            if q.ndim != 2 or not len(q) or n.shape != (2,) or not (n >= 1).all():
                raise ValueError(
                    f"{names[0]!r} must be quantiles x genes and {names[1]!r} two counts, found {q.shape}, {n}."
                )
            if not np.isfinite(q).all() or (q < 0).any() or (np.diff(q, axis=0) < 0).any():
                raise ValueError(f"{names[0]!r} must be finite, never below 0, and never decrease.")
            quantiles[target], units[target] = q, (int(n[0]), int(n[1]))
        if len({q.shape[1] for q in quantiles.values()}) != 1:
            raise ValueError(f"These arrays are no calibration, or of different genes: {sorted(arrays)}.")
        return cls(quantiles, units)


def _slug(target: Target) -> str:
    return target.replace(" ", "_")


def interval_width(calibration: Calibration, level: float, *, target: Target | None = None) -> NDArray[np.float64]:
    """Half width of the interval of each gene at a level, in units of the predicted spread.

    The interval of a spot is its prediction plus and minus the half width, times the spread if the calibration was made
    with one.

    Parameters
    ----------
    calibration
        Made by :func:`calibrate` or :func:`calibrate_within_slide`.
    level
        Share of spots that the interval is to cover, such as 0.9.
    target
        What the interval is for, one of :data:`TARGETS`. By default what was held out.

    Returns
    -------
    Length genes; 0 for a gene without any error.

    Raises
    ------
    ValueError
        If ``level`` is not between 0 and 1, or no finite interval of that level exists (K patients allow no more than
        K / (K + 1)); if the target is harder than what was held out.
    TypeError
        If ``level`` is no number.

    Examples
    --------
    >>> import numpy as np
    >>> from gdml.conformal import calibrate, interval_width
    >>> found = calibrate(np.arange(9.0)[:, None], np.zeros(9), held_out="unseen part of a known slide")
    >>> interval_width(found, 0.5), interval_width(found, 0.9)
    (array([4.]), array([8.]))
    """
    check_number("level", level)
    if not 0 < level < 1:
        raise ValueError(f"`level` must be between 0 and 1, found {level!r}; 0.9 covers nine spots in ten.")
    target = calibration._known(target)
    if level > calibration.highest_level(target) + ROUNDING:
        raise ValueError(_too_high(calibration, level, target))
    n, populations = calibration.units[target]
    share = level * (n + 1) / n if populations == 1 else level + 1 / n
    quantiles = calibration.quantiles[target]
    row = int(np.ceil((share - ROUNDING) * len(quantiles))) - 1
    return quantiles[np.clip(row, 0, len(quantiles) - 1)].astype(np.float64)


def _too_high(calibration: Calibration, level: float, target: Target) -> str:
    """Say which level is possible, and for which easier target this one is."""
    n, populations = calibration.units[target]
    unit, population = _UNITS[target]
    known, highest = ("", f"{n} / {n + 1}")
    if populations > 1:
        known, highest = f" of {count(populations, population)}", f"{n - 1} / {n}"
    text = (
        f"`level` is {level:g}, but {count(n, unit)}{known} allow no finite interval for an {target} above "
        f"{_down(calibration.highest_level(target)):g} ({highest}). Ask for no more than that"
    )
    for easier in TARGETS[TARGETS.index(target) + 1 :]:
        if level <= calibration.highest_level(easier):
            return f"{text}, or for the interval for an {easier}: target={easier!r}."
    return f"{text}, or calibrate on more {unit}s."


def _down(level: float) -> float:
    """Three decimals that are not above the level."""
    return float(np.floor(level * 1000 + ROUNDING) / 1000)
