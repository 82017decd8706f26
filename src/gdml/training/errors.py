"""Errors of out-of-fold predictions, kept with a model so that intervals of any level can be made later."""

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from gdml._calibration import Target
from gdml.conformal import Calibration, ErrorSpread, calibrate, fit_error_spread

from .data import SpotData
from .out_of_fold import OutOfFold
from .warrant import held_out_parts

_SPREAD = "spread_"  # before the names of the arrays of the error spread


def held_out_errors(found: OutOfFold, data: SpotData, group_key: str | None) -> tuple[Calibration, ErrorSpread]:
    """Learn from out-of-fold predictions how wide intervals must be.

    What was held out decides what intervals can be for. Whole groups that ``group_key`` names stand for an unseen patient.
    Whole slides stand for an unseen slide, even where their groups are known: the model of a fold had seen other slides of
    the same group. Their groups are then the populations that slides are drawn from; without ``group_key`` all slides are
    one population. Parts of slides stand for an unseen part of a known slide.

    Parameters
    ----------
    found
        Out-of-fold predictions.
    data
        The training spots, with expression.
    group_key
        Column that the groups come from; None where each slide is its own group.

    Returns
    -------
    Quantiles of the errors in units of their predicted size, and that size.
    """
    rows = found.rows
    slide = data.slide[rows].numpy()
    predicted = found.predicted.numpy().astype(np.float64)
    residuals = data.expression[rows].numpy() - predicted  # type: ignore[index]
    spread = fit_error_spread(predicted, residuals)
    group = None if group_key is None else np.unique(np.array(data.groups)[slide], return_inverse=True)[1]
    calibration = calibrate(
        residuals,
        slide,
        held_out=_target(found.by, group_key),
        group=group,
        block=held_out_parts(data, slide, rows.numpy(), found.part.numpy()),
        spread=spread(predicted),
    )
    return calibration, spread


def _target(by: str, group_key: str | None) -> Target:
    if by == "block":
        return "unseen part of a known slide"
    return "unseen patient" if by == "group" and group_key is not None else "unseen slide"


def pack(calibration: Calibration, spread: ErrorSpread) -> bytes:
    """Give both as a safetensors file."""
    arrays: dict[str, NDArray[np.generic]] = {_SPREAD + name: values for name, values in spread.to_arrays().items()}
    return save({name: np.ascontiguousarray(values) for name, values in (calibration.to_arrays() | arrays).items()})


def unpack(raw: bytes) -> tuple[Calibration, ErrorSpread]:
    """Read what :func:`pack` gave.

    Raises
    ------
    ValueError
        If it is something else.
    """
    arrays = load(raw)
    spread = {name.removeprefix(_SPREAD): values for name, values in arrays.items() if name.startswith(_SPREAD)}
    calibration = {name: values for name, values in arrays.items() if not name.startswith(_SPREAD)}
    found = Calibration.from_arrays(calibration), ErrorSpread.from_arrays(spread)
    if found[0].n_genes != found[1].knots.shape[1]:
        raise ValueError(f"The calibration is of {found[0].n_genes} genes, the spread of {found[1].knots.shape[1]}.")
    return found
