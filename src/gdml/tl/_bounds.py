"""Prediction intervals: what predict was asked for, and both ends of each interval."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gdml._calibration import Target
from gdml._errors import check_number, count, did_you_mean, some
from gdml.conformal import TARGETS, Calibration, ErrorSpread, calibrate_within_slide, interval_width
from gdml.spots.genes import GeneMatch
from gdml.spots.resolve import Spots

from ._measured_spots import MeasuredSpots, measured_spots

if TYPE_CHECKING:
    from gdml.training import TrainedModel

#: Levels that differ by less are the same, as in :mod:`gdml.conformal`.
_ROUNDING = 1e-9
_PIECE = 8192  # spots whose intervals are computed at once, in float64
_PART: Target = "unseen part of a known slide"


@dataclass(frozen=True)
class Asked:
    """Intervals that :func:`gdml.tl.predict` was asked for; they can be made.

    Parameters
    ----------
    level
        Share of spots that an interval is to cover.
    target
        What it is for.
    name
        The same in the words of the model, such as ``"unseen donor"``.
    calibration
        That of the model; None where ``marked`` spots take its place.
    spread
        Predicted size of the errors; None in an older model.
    marked
        Spots of the slides that were measured.
    """

    level: float
    target: Target
    name: str
    calibration: Calibration | None
    spread: ErrorSpread | None
    marked: MeasuredSpots | None = None


@dataclass(frozen=True)
class Bounds:
    """Both ends of each interval, (n_obs, panel) float32, and what is recorded of them."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    record: dict[str, Any]


def ask(
    spots: Spots, trained: "TrainedModel", match: GeneMatch, *, interval: Any, interval_for: Any, calibrate_on: Any
) -> Asked | None:
    """Check what was asked for, before anything is computed or written.

    Parameters
    ----------
    spots, trained, match
        What is predicted, by which model, and the panel genes among those of the spots.
    interval, interval_for, calibrate_on
        As in :func:`gdml.tl.predict`.

    Returns
    -------
    None where no interval was asked for.

    Raises
    ------
    ValueError, TypeError, KeyError
        As :func:`gdml.tl.predict`.
    """
    if calibrate_on is None:
        return ask_model(trained, interval, interval_for)
    if interval is None:
        raise ValueError(
            "`calibrate_on` names spots to calibrate an interval on: pass its level as well, interval=0.9."
        )
    _check_level(interval)
    if interval_for not in (None, _PART):
        raise ValueError(
            f"`interval_for` is {interval_for!r}, but with `calibrate_on` intervals are for the other spots of the same "
            "slides: leave interval_for out."
        )
    marked = measured_spots(spots, trained, match, calibrate_on)
    least = max(2, int(np.ceil(interval / (1 - interval) - _ROUNDING)))
    few = {name: len(rows) for name, rows in marked.rows.items() if len(rows) < least}
    if few:
        lowest = min(few.values())
        name = min(few, key=lambda slide: few[slide])
        possible = f", or interval={_down(lowest / (lowest + 1)):g}" if lowest > 1 else ""
        raise ValueError(
            f"`calibrate_on` marks {count(lowest, 'spot')} of slide {name!r}, and an interval of {interval:g} needs {least}. "
            f"Mark more spots{possible}."
        )
    return Asked(float(interval), _PART, _PART, None, trained.error_spread, marked)


def ask_model(trained: "TrainedModel", interval: Any, interval_for: Any = None) -> Asked | None:
    """Check what was asked of the out-of-fold errors of a model alone; parameters as in :func:`ask`."""
    if interval is None:
        if interval_for is not None:
            raise ValueError("`interval_for` says what an interval is for: pass its level as well, interval=0.9.")
        return None
    _check_level(interval)
    calibration = trained.calibration
    if calibration is None:
        raise ValueError(
            f"`interval` needs errors on spots that the model had not seen, and this {trained.name!r} keeps none: it was "
            "fitted by an earlier gdml, with validation=None, or interrupted. Fit it again, "
            f"gdml.tl.fit(adata, {trained.name!r}), or mark spots of the slide that were measured: calibrate_on=."
        )
    names = _names(trained)
    target = _target(names, calibration, interval_for)
    if interval > calibration.highest_level(target) + _ROUNDING:
        raise ValueError(_too_high(calibration, names, interval, target))
    return Asked(float(interval), target, names[target], calibration, trained.error_spread)


def _check_level(interval: Any) -> None:
    check_number("interval", interval)
    if not 0 < interval < 1:
        raise ValueError(f"`interval` must lie between 0 and 1, found {interval!r}; 0.9 covers nine spots in ten.")


def _population(trained: "TrainedModel") -> str:
    """Word for what the groups of slides are: the column that named them when the model was fitted, else a patient."""
    column = trained.training.get("split", {}).get("groups", "slide")  # "slide": each was its own
    return "patient" if column == "slide" else str(column)


def _names(trained: "TrainedModel") -> dict[Target, str]:
    """Words for each target: a patient may be called otherwise, after ``group_key``."""
    return {target: str(target) for target in TARGETS} | {TARGETS[0]: f"unseen {_population(trained)}"}


def _target(names: dict[Target, str], calibration: Calibration, asked: Any) -> Target:
    if asked is None:
        return calibration.held_out
    known = {name: target for target, name in names.items()} | {str(target): target for target in TARGETS}
    if asked not in known:
        raise ValueError(f"`interval_for` is {asked!r}. {did_you_mean(str(asked), names.values())}")
    target = known[asked]
    if target not in calibration.units:
        group = names[TARGETS[0]].removeprefix("unseen ")
        whole = "three slides or more" if target == TARGETS[1] else f"slides of three {group}s or more, with group_key="
        raise ValueError(
            f"`interval_for` is {asked!r}, but the errors that the model keeps are those of an "
            f"{names[calibration.held_out]}: they say nothing about an {names[target]}. Leave interval_for out, or fit a "
            f"model on {whole}."
        )
    return target


def _too_high(calibration: Calibration, names: dict[Target, str], level: float, target: Target) -> str:
    """Say which level is possible, and for which easier target this one is."""
    n, populations = calibration.units[target]
    group = names[TARGETS[0]].removeprefix("unseen ")
    unit = {TARGETS[0]: group, TARGETS[1]: "slide", TARGETS[2]: "part"}[target]
    highest = calibration.highest_level(target)
    of = {TARGETS[1]: group, TARGETS[2]: "slide"}
    known = f" of {count(populations, of[target])}" if populations > 1 else ""
    how = f"{n - 1} / {n}" if populations > 1 else f"{n} / {n + 1}"
    text = (
        f"`interval` is {level:g}, but the model was calibrated on {count(n, unit)}{known}, which allow no finite interval "
        f"for an {names[target]} above {_down(highest):g} ({how})."
    )
    ways = [f"interval={_down(highest):g}"] if highest > 0 else []
    for easier in TARGETS[TARGETS.index(target) + 1 :]:
        if level <= calibration.highest_level(easier) + _ROUNDING:
            ways.append(f"interval_for={names[easier]!r}, which promises less")
            break
    return f"{text} Pass {', or '.join(ways)}; or mark spots of the slide that were measured: calibrate_on=."


def _down(level: float) -> float:
    """Three decimals that are not above the level."""
    return float(np.floor(level * 1000 + _ROUNDING) / 1000)


def make_bounds(asked: Asked, predicted: NDArray[np.float32], spots: Spots, *, clip: bool) -> Bounds:
    """Make the intervals.

    Parameters
    ----------
    asked
        What was asked for.
    predicted
        (n_obs, panel), as the model gave them: errors were those of values that are not clipped.
    spots
        The spots.
    clip
        Whether both ends are at least 0.
    """
    low, high = np.full_like(predicted, np.nan), np.full_like(predicted, np.nan)
    shifts = np.zeros((len(spots.slides), predicted.shape[1]), np.float32)
    for number, (slide, rows) in enumerate(spots.slides.items()):
        width, shift = _of_slide(asked, slide, predicted)
        shifts[number] = shift
        left = rows if asked.marked is None else np.setdiff1d(rows, asked.marked.rows[slide])
        for piece in np.array_split(left, -(-len(left) // _PIECE)):
            center = predicted[piece].astype(np.float64)
            reach = width * (1.0 if asked.spread is None else asked.spread(center))
            ends = center + shift - reach, center + shift + reach
            below, above = (end.clip(min=0) for end in ends) if clip else ends
            low[piece], high[piece] = _outward(below, -np.inf), _outward(above, np.inf)
    record: dict[str, Any] = {"level": asked.level, "for": asked.name, "width": _median_width(low, high)}
    if asked.marked is not None:
        n = np.array([len(rows) for rows in asked.marked.rows.values()])
        least = int(n.min())
        record |= {"n_units": least, "highest_level": least / (least + 1), "calibrated_on": n, "shift": shifts}
        record["libraries"] = np.array(list(spots.slides), dtype=object)
    elif asked.calibration is not None:
        record["n_units"] = asked.calibration.units[asked.target][0]
        record["highest_level"] = asked.calibration.highest_level(asked.target)
    return Bounds(low, high, record)


def _of_slide(
    asked: Asked, slide: str, predicted: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Half width of each gene in units of the spread, and what is added to its predictions; NaN where not measured."""
    if asked.marked is None:
        width = interval_width(asked.calibration, asked.level, target=asked.target)  # type: ignore[arg-type]
        return width, np.zeros(predicted.shape[1])
    measured, center = asked.marked.values[slide], predicted[asked.marked.rows[slide]].astype(np.float64)
    genes = np.isfinite(measured).all(0)
    spread = None if asked.spread is None else asked.spread(center)[:, genes]
    found, level = calibrate_within_slide((measured - center)[:, genes], spread=spread)
    width, shift = np.full((2, predicted.shape[1]), np.nan)
    width[genes], shift[genes] = interval_width(found, asked.level), level
    return width, shift


def _outward(ends: NDArray[np.float64], towards: float) -> NDArray[np.float32]:
    """Round to float32 so that the interval gets no smaller."""
    near = ends.astype(np.float32)
    inside = near > ends if towards < 0 else near < ends
    return np.where(inside, np.nextafter(near, np.float32(towards)), near)


def _median_width(low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float32]:
    """Median full width of the intervals of each gene; NaN where it has none."""
    there = np.isfinite(low).any(1)
    return np.median((high - low)[there], axis=0) if there.any() else np.full(low.shape[1], np.nan, np.float32)


def say(asked: Asked | None) -> str:
    """Clause about the intervals; empty without any."""
    if asked is None:
        return ""
    on = (
        ""
        if asked.marked is None
        else f", calibrated on {some([len(rows) for rows in asked.marked.rows.values()])} spots"
    )
    return f"; intervals of {asked.level:.4g} for an {asked.name}{on}"
