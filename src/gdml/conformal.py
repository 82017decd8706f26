"""Prediction intervals that hold: conformal prediction for spots within slides within patients, on plain arrays.

An interval is for the **measured** value of one spot and gene, with its counting noise; it says where a measurement
would lie, not how well the expression of the tissue is known.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._calibration import ROUNDING, TARGETS, Calibration, Target, interval_width
from ._error_spread import ErrorSpread, fit_error_spread
from ._errors import count, did_you_mean

__all__ = [
    "TARGETS",
    "Calibration",
    "ErrorSpread",
    "calibrate",
    "calibrate_within_slide",
    "fit_error_spread",
    "interval_width",
]

#: Quantiles that are kept for each gene; a level is rounded up to the next of them.
_N_LEVELS = 500


def calibrate(
    residuals: ArrayLike,
    slide: ArrayLike,
    *,
    held_out: Target,
    group: ArrayLike | None = None,
    block: ArrayLike | None = None,
    spread: ArrayLike | None = None,
) -> Calibration:
    """Learn from out-of-fold errors how wide intervals must be.

    Spots of a slide are alike, and so are slides of a patient: pooled as if each were drawn by itself, a few patients
    with many spots pass for many observations. Here the unit is what a new observation differs by (a patient, a slide,
    a block of a slide); all units weigh the same, whatever their number of spots.

    Parameters
    ----------
    residuals
        Measured minus predicted expression of spots that the model was not trained on, spots x genes.
    slide
        Slide of each spot, (spots,).
    held_out
        One of :data:`TARGETS`: what was kept from the model that predicted the spots. Intervals for easier targets are
        made as well; they are wider than they need be, as the final model has seen the patient or the slide.
    group
        Patient of each spot, (spots,). None: each slide is its own, and for an unseen slide all slides are of one
        population. Needed for an unseen patient.
    block
        Contiguous block of tissue of each spot, (spots,), within its slide. None: each spot by itself, which is right
        if the spots to be predicted lie scattered among spots that were measured. Spots beside each other have similar
        errors: for a part of a slide without measured spots, give blocks as large as that part.
    spread
        Predicted size of the error, spots x genes, positive, such as of :func:`fit_error_spread`. None: intervals of
        one width per gene.

    Returns
    -------
    The calibration, about 2 kB per gene and target.

    Raises
    ------
    ValueError
        If ``residuals`` are not spots x genes, have no spots, or values that are not finite; ``slide``, ``group``,
        ``block`` or ``spread`` do not fit them; a slide has two groups; the spread is not positive.

    Notes
    -----
    Each of n units (patients, slides, blocks) has the weight 1 / n, shared evenly by its spots (a patient's by its slides
    first). The half width is a quantile of the errors so weighted. With units of one population, such as patients, it is
    that of the share (1 - a) (n + 1) / n, which leaves 1 / (n + 1) for the unit to come, and covers a spot of a new unit
    with probability 1 - a or more: hierarchical conformal prediction :cite:p:`Lee2026`, and, with spots of one slide,
    split conformal prediction :cite:p:`Lei2018`. With units of several populations, such as slides of several patients,
    the share is 1 - a + 1 / n: a new unit may be exchanged with one of its own population, which moves the quantile by
    no more than the weight of one. Coverage is then on average over populations, in proportion to their units. Other
    methods for patients with several spots draw one spot of each at random :cite:p:`Dunn2023`, or have a guarantee for
    many patients alone; this one uses all spots, and is the same whenever it is computed.

    The probability is over patients: coverage is right on average, and for one patient higher or lower. Blocks of a slide
    are exchangeable only roughly, as tissue is not the same everywhere.

    Examples
    --------
    >>> import numpy as np
    >>> from gdml.conformal import calibrate, interval_width
    >>> rng = np.random.default_rng(0)
    >>> patient = np.repeat(np.arange(9), 50)
    >>> errors = rng.normal(size=(450, 2)) + rng.normal(size=(9, 2))[patient]
    >>> found = calibrate(errors, slide=patient, group=patient, held_out="unseen patient")
    >>> found.highest_level()
    0.9
    >>> interval_width(found, 0.8).shape
    (2,)
    """
    if held_out not in TARGETS:
        raise ValueError(f"`held_out` is {held_out!r}. {did_you_mean(str(held_out), TARGETS)}")
    scores = _scores(residuals, spread)
    n = len(scores)
    slides = _labels("slide", slide, n)
    if group is None and held_out == "unseen patient":
        raise ValueError("`group` is needed for an 'unseen patient': pass the patient of each spot.")
    groups = np.zeros(n, np.intp) if group is None else _labels("group", group, n)
    if len(_pairs(slides, groups)) > slides.max() + 1:
        raise ValueError("`group` has two values on one slide: a slide is of one patient.")
    blocks = np.arange(n) if block is None else _labels("block", block, n)
    _, blocks = np.unique(np.stack([slides, blocks]), axis=1, return_inverse=True)  # block 0 of each slide is another

    parts: dict[Target, tuple[NDArray[np.intp], ...]] = {
        "unseen patient": (np.zeros(n, np.intp), groups, slides),
        "unseen slide": (groups, slides),
        "unseen part of a known slide": (slides, blocks.ravel()),
    }
    weights, units = {}, {}
    for target in TARGETS[TARGETS.index(held_out) :]:
        population, unit, *inner = parts[target]
        units[target] = (int(unit.max()) + 1, int(population.max()) + 1)
        weights[target] = _even(unit, *inner)
    return Calibration(_quantiles(scores, weights), units)


def calibrate_within_slide(
    residuals: ArrayLike, *, block: ArrayLike | None = None, spread: ArrayLike | None = None, correct_level: bool = True
) -> tuple[Calibration, NDArray[np.float64]]:
    """Learn how wide intervals must be on one new slide, some spots of which were measured.

    The measured spots show what no other patient's can: how far this slide lies above or below its predictions.

    Parameters
    ----------
    residuals
        Measured minus predicted expression of the measured spots, spots x genes.
    block
        Contiguous block of tissue of each spot, as in :func:`calibrate`.
    spread
        Predicted size of the error, as in :func:`calibrate`.
    correct_level
        Add the mean error of the measured spots to the predictions.

    Returns
    -------
    The calibration, for the other spots of this slide ("unseen part of a known slide"); and what is to be added to the
    predictions, (genes,), 0 without ``correct_level``.

    Raises
    ------
    ValueError
        As :func:`calibrate`; or if there are not two spots (or blocks) at least.

    Notes
    -----
    The error of each spot is taken from the mean of the **other** spots (or blocks), as the error of a new spot will be.
    That is a jackknife: without the correction the intervals hold as those of :func:`calibrate` do; with it they hold
    up to terms of order 1 / n. If spots were measured in one region alone, nothing is promised for the rest.
    """
    r = _scores(residuals, None, absolute=False)
    blocks = np.arange(len(r)) if block is None else _labels("block", block, len(r))
    n_blocks = int(blocks.max()) + 1
    if n_blocks < 2:
        raise ValueError(
            f"`residuals` are of {count(n_blocks, 'spot' if block is None else 'block')}: two are needed at least."
        )
    shift = np.zeros(r.shape[1])
    if correct_level:
        shift = r.mean(0)
        of_block = np.zeros((n_blocks, r.shape[1]))
        np.add.at(of_block, blocks, r)
        n_others = len(r) - np.bincount(blocks)
        r = r - ((r.sum(0) - of_block) / n_others[:, None])[blocks]
    slide = np.zeros(len(r), np.intp)
    return calibrate(r, slide, held_out="unseen part of a known slide", block=blocks, spread=spread), shift


def _scores(residuals: ArrayLike, spread: ArrayLike | None, *, absolute: bool = True) -> NDArray[np.float64]:
    """Check errors, and give them in units of the spread."""
    r = np.asarray(residuals, np.float64)
    if r.ndim != 2 or not r.size:
        raise ValueError(f"`residuals` has shape {r.shape}; it must be spots x genes, with at least one of each.")
    bad = ~np.isfinite(r)
    if bad.any():
        raise ValueError(
            f"`residuals` has NaN or infinite values in {count(int(bad.any(0).sum()), 'gene')} at "
            f"{count(int(bad.any(1).sum()), 'spot')}; leave out genes and spots that were not measured or not predicted."
        )
    if spread is not None:
        s = np.asarray(spread, np.float64)
        if s.shape != r.shape:
            raise ValueError(f"`spread` has shape {s.shape} and `residuals` {r.shape}: they must be the same.")
        if not (np.isfinite(s) & (s > 0)).all():
            raise ValueError(
                "`spread` must be positive and finite everywhere; gdml.conformal.fit_error_spread makes one."
            )
        r = r / s
    return np.abs(r) if absolute else r


def _labels(name: str, values: ArrayLike, n: int) -> NDArray[np.intp]:
    """Labels as numbers from 0."""
    labels = np.asarray(values)
    if labels.shape != (n,):
        raise ValueError(f"`{name}` has shape {labels.shape}; it must have one value for each of {count(n, 'spot')}.")
    return np.unique(labels, return_inverse=True)[1]


def _pairs(a: NDArray[np.intp], b: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.unique(np.stack([a, b], 1), axis=0)


def _even(*layers: NDArray[np.intp]) -> NDArray[np.float64]:
    """Weight of each spot, of sum 1: even over the first layer, then over the next within it, then over spots."""
    weights = np.ones(len(layers[0]))
    for i, layer in enumerate(layers):
        above = np.zeros_like(layer) if i == 0 else layers[i - 1]
        siblings = np.bincount(_pairs(layer, above)[:, 1])
        weights /= siblings[above]
    return weights / np.bincount(layers[-1])[layers[-1]]


def _quantiles(
    scores: NDArray[np.float64], weights: Mapping[Target, NDArray[np.float64]]
) -> dict[Target, NDArray[np.float32]]:
    """Quantiles 1/L, ..., 1 of each column under each of the weights, rounded up to float32."""
    n, genes = scores.shape
    levels = np.arange(1, min(n, _N_LEVELS) + 1) / min(n, _N_LEVELS)
    found = {target: np.empty((len(levels), genes)) for target in weights}
    for gene in range(genes):
        order = np.argsort(scores[:, gene])
        for target, weight in weights.items():
            at = np.searchsorted(np.cumsum(weight[order]), levels - ROUNDING)
            found[target][:, gene] = scores[order[np.minimum(at, n - 1)], gene]
    return {target: _up(values) for target, values in found.items()}


def _up(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Float32 that is not below the value."""
    near = values.astype(np.float32)
    return np.where(near < values, np.nextafter(near, np.float32(np.inf)), near)


def __dir__() -> list[str]:
    return sorted(__all__)
