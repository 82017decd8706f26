"""The size of a prediction's error, predicted from the predicted value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Bins of predicted values, and the fewest spots of each.
_BINS, _LEAST_SPOTS = 10, 20
#: Spots by which the mean of a bin is shrunk towards the mean of the gene.
_PRIOR_SPOTS = 10
#: A bin is within these multiples of the mean of the gene.
_LOWEST, _HIGHEST = 0.2, 5.0


@dataclass(frozen=True)
class ErrorSpread:
    """Mean absolute error of each gene as a function of the predicted value; :func:`fit_error_spread` makes it.

    Parameters
    ----------
    knots
        Predicted values, (bins, genes) float32, never decreasing along the bins.
    values
        Mean absolute error there, (bins, genes) float32, positive.
    """

    knots: NDArray[np.float32]
    values: NDArray[np.float32]

    def __call__(self, predicted: ArrayLike) -> NDArray[np.float64]:
        """Give the spread at each prediction, linear between the knots and constant outside.

        Parameters
        ----------
        predicted
            Expression, spots x genes.

        Returns
        -------
        Spots x genes, positive, in units of the expression.

        Raises
        ------
        ValueError
            If the genes are not as many, or a prediction is NaN.
        """
        p = np.asarray(predicted, np.float64)
        genes = self.knots.shape[1]
        if p.ndim != 2 or p.shape[1] != genes:
            raise ValueError(f"`predicted` has shape {p.shape}; it must be spots x {genes} genes.")
        if np.isnan(p).any():
            raise ValueError("`predicted` has NaN; predict those spots again, or leave them out.")
        found = np.empty_like(p)
        for gene in range(genes):
            found[:, gene] = np.interp(p[:, gene], self.knots[:, gene], self.values[:, gene])
        return found

    def to_arrays(self) -> dict[str, NDArray[np.float32]]:
        """Give the arrays by name, for a model file."""
        return {"knots": self.knots, "values": self.values}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> Self:
        """Make it from what :meth:`to_arrays` gave.

        Raises
        ------
        ValueError
            If an array is missing, or they are not what :meth:`to_arrays` gives.
        """
        if not {"knots", "values"} <= arrays.keys():
            raise ValueError(f"An error spread has the arrays 'knots' and 'values', found {sorted(arrays)}.")
        knots, values = (np.asarray(arrays[name], np.float32) for name in ("knots", "values"))
        if knots.ndim != 2 or knots.shape != values.shape or not len(knots):
            raise ValueError(f"'knots' has shape {knots.shape} and 'values' {values.shape}: both must be bins x genes.")
        if (
            not np.isfinite(knots).all()
            or not (np.isfinite(values) & (values > 0)).all()
            or (np.diff(knots, axis=0) < 0).any()
        ):
            raise ValueError("'knots' must be finite and never decrease, and 'values' finite and positive.")
        return cls(knots, values)


def fit_error_spread(predicted: ArrayLike, residuals: ArrayLike) -> ErrorSpread:
    """Fit the mean absolute error of each gene as a function of the predicted value.

    The noise of log counts depends on the level: it is small where hardly any molecule is expected. Intervals of one
    width are then too wide for one part of a slide, and too narrow for another. The predictions of each gene are cut
    into ten bins with the same number of spots (fewer where a bin would have fewer than 20), whose mean absolute errors
    are shrunk by ten spots towards the mean over all, and kept between a fifth of it and five times it.

    Parameters
    ----------
    predicted
        Predictions of spots that the model was not trained on, spots x genes.
    residuals
        Measured minus predicted, spots x genes.

    Returns
    -------
    The spread; 1 for a gene without any error.

    Raises
    ------
    ValueError
        If the two are not spots x genes of the same shape, with at least one spot, or have values that are not finite.

    Notes
    -----
    Intervals in units of a predicted spread are the locally weighted ones of :cite:t:`Lei2018`. They hold whatever the
    spread, if it is fitted on other spots; a better one makes them narrower. Ten numbers per gene that are fitted on the
    calibration spots themselves change coverage by less than half a percent where there are hundreds of them.

    Examples
    --------
    >>> import numpy as np
    >>> from gdml.conformal import fit_error_spread
    >>> level = np.repeat([0.0, 1.0], 1000)[:, None]
    >>> spread = fit_error_spread(level, np.where(level > 0, 0.5, 0.1))
    >>> spread([[0.0], [1.0]]).round(1)
    array([[0.1],
           [0.5]])
    """
    p, error = np.asarray(predicted, np.float64), np.abs(np.asarray(residuals, np.float64))
    if p.ndim != 2 or p.shape != error.shape or not len(p):
        raise ValueError(
            f"`predicted` has shape {p.shape} and `residuals` {error.shape}: both must be spots x genes, of the same "
            "shape, with at least one spot."
        )
    if not (np.isfinite(p).all() and np.isfinite(error).all()):
        raise ValueError(
            "`predicted` and `residuals` must be finite; leave out spots and genes that were not measured."
        )
    for gene in range(p.shape[1]):
        # spots with one prediction, such as 0, have one error, so that the order of the rows does not matter
        _, tie, n = np.unique(p[:, gene], return_inverse=True, return_counts=True)
        error[:, gene] = (np.bincount(tie, error[:, gene]) / n)[tie]
    order = np.argsort(p, axis=0)
    p, error = np.take_along_axis(p, order, 0), np.take_along_axis(error, order, 0)
    bins = np.array_split(np.arange(len(p)), np.clip(len(p) // _LEAST_SPOTS, 1, _BINS))
    mean = error.mean(0)
    knots = np.stack([p[rows].mean(0) for rows in bins]).astype(np.float32)
    values = np.stack([(error[rows].sum(0) + _PRIOR_SPOTS * mean) / (len(rows) + _PRIOR_SPOTS) for rows in bins])
    values = np.where(mean > 0, np.clip(values, _LOWEST * mean, _HIGHEST * mean), 1.0)
    return ErrorSpread(np.maximum.accumulate(knots, 0), values.astype(np.float32))
