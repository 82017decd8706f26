"""What held-out spots say about each gene: how far its predictions can be trusted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

from gdml import metrics

from .data import SpotData
from .out_of_fold import OutOfFold
from .split import cut_across

#: Least lower bound of the PCC, and least share of the attainable PCC, of a gene that is carried by the image.
LEAST_PCC = 0.2
LEAST_SHARE = 0.5
#: Confidence of the interval of the PCC.
CONFIDENCE = 0.9
CARRIED, PARTLY, NOT_SHOWN = "carried by the image", "partly", "not shown"
#: Parts of the held-out spots that are left out in turn, about.
_N_PARTS = 10
_NUMBERS = ["pcc_expected", "pcc_low", "pcc_high", "pcc_attainable", "pcc_reached"]


@dataclass(frozen=True)
class Warrant:
    """How well each gene was predicted on spots that the model had not seen.

    Parameters
    ----------
    unseen
        What was held out: ``"unseen patient"`` (or the name of another ``group_key``), ``"unseen slide"`` or ``"unseen part
        of a known slide"``.
    n_units
        Patients or slides that were held out, or slides of which parts were.
    n_spots
        Spots that were held out.
    genes
        A row for each panel gene, with the columns

        ``warrant``
            ``"carried by the image"`` where ``pcc_low`` is at least 0.2 and the PCC at least half of the attainable one;
            ``"partly"`` where ``pcc_low`` is above 0; else ``"not shown"``.
        ``pcc_expected``
            PCC of out-of-fold predictions over the spots of a slide, averaged over slides.
        ``pcc_low``, ``pcc_high``
            90 % interval of it: a jackknife over held-out patients, slides or parts, with Student's t.
        ``pcc_attainable``
            PCC of a perfect prediction (:func:`gdml.metrics.attainable_pcc`), averaged over the training slides; NaN where
            whole counts are not at hand.
        ``pcc_reached``
            Share of it that ``pcc_expected`` is.
    """

    unseen: str
    n_units: int
    n_spots: int
    genes: pd.DataFrame

    @classmethod
    def make(
        cls,
        found: OutOfFold,
        data: SpotData,
        panel: pd.Index,
        attainable: NDArray[np.float64],
        group_key: str | None,
    ) -> Self:
        """Compare out-of-fold predictions with the expression of ``data``; ``attainable`` (M,) is NaN where unknown.

        Predictions are NaN where they were not made, see ``expected_pcc``.
        """
        rows = found.rows
        slide = data.slide[rows].numpy()
        measured, predicted = data.expression[rows].numpy(), found.predicted.numpy()  # type: ignore[index]
        if found.by == "block":
            unit = held_out_parts(data, slide, rows.numpy(), found.part.numpy())
        else:
            of = data.groups if found.by == "group" else data.names
            unit = np.unique(np.array(of)[slide], return_inverse=True)[1]
        expected, low, high = expected_pcc(measured, predicted, slide, unit)
        reached = np.divide(expected, attainable, out=np.full(len(panel), np.nan), where=attainable > 0)
        genes = pd.DataFrame(
            {
                "warrant": judge(expected, low, attainable),
                "pcc_expected": expected,
                "pcc_low": low,
                "pcc_high": high,
                "pcc_attainable": attainable,
                "pcc_reached": reached,
            },
            index=pd.Index(panel, name="gene"),
        )
        names = {"group": f"unseen {group_key or 'slide'}", "slide": "unseen slide"}
        n_units = len(np.unique(slide if found.by == "block" else unit))
        return cls(names.get(found.by, "unseen part of a known slide"), n_units, len(rows), genes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; NaN as None."""
        columns: dict[str, Any] = {name: [_plain(x) for x in self.genes[name]] for name in _NUMBERS}
        columns |= {"gene": list(map(str, self.genes.index)), "warrant": list(self.genes["warrant"])}
        return {"unseen": self.unseen, "n_units": self.n_units, "n_spots": self.n_spots, "genes": columns}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` gave."""
        columns = record["genes"]
        numbers = {name: [np.nan if x is None else float(x) for x in columns[name]] for name in _NUMBERS}
        genes = pd.DataFrame({"warrant": columns["warrant"], **numbers}, index=pd.Index(columns["gene"], name="gene"))
        return cls(str(record["unseen"]), int(record["n_units"]), int(record["n_spots"]), genes)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def held_out_parts(
    data: SpotData, slide: NDArray[np.int64], rows: NDArray[np.int64], part: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Cut the held-out parts of slides across their shorter axis, so that there are about ten in all.

    Parameters
    ----------
    data
        The spots.
    slide, rows, part
        (n,) number of the slide, row, and number of the split, of each spot that was held out.

    Returns
    -------
    (n,) number of the part of each spot; a part lies on one slide.
    """
    unit = np.unique(np.stack([slide, part], 1), axis=0, return_inverse=True)[1].reshape(-1)
    n = max(1, -(-_N_PARTS // (unit.max() + 1)))
    found = np.zeros(len(rows), np.int64)
    for one in np.unique(unit):
        here = unit == one
        number = int(slide[here][0])
        xy = data.slides[number].xy[rows[here] - int(data.rows_of(number)[0])]
        found[here] = one * n + cut_across(xy, n, axis=1)
    return found


def judge(
    expected: NDArray[np.float64], low: NDArray[np.float64], attainable: NDArray[np.float64]
) -> NDArray[np.object_]:
    """Put the warrant of each gene in words; see :class:`Warrant` for the rule."""
    carried = (low >= LEAST_PCC) & ~(expected < LEAST_SHARE * attainable)
    return np.where(carried, CARRIED, np.where(low > 0, PARTLY, NOT_SHOWN)).astype(object)


def expected_pcc(
    measured: NDArray[np.floating],
    predicted: NDArray[np.floating],
    slide: NDArray[np.int64],
    unit: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """PCC of each gene over the spots of a slide, averaged over slides, with its interval.

    The interval is that of a delete-one-unit jackknife :cite:p:`Efron1981`: spots near each other are not independent, so
    that units are patients, slides, or parts of slides, and as many decide on the degrees of freedom.

    Parameters
    ----------
    measured, predicted
        (n, M). A prediction that is NaN was not made, as of a gene that is in the panel of some folds alone: the units of a
        gene are those with predictions.
    slide, unit
        (n,) number of the slide, and of the unit, of each spot. A unit can have spots of several slides, and a slide those
        of several units.

    Returns
    -------
    PCC, lower and upper bound, (M,) each. A gene that is constant in all slides has none (NaN) and the bounds -1 and 1,
    as has every gene that one unit has predictions of.
    """
    made = ~np.isnan(predicted)
    patterns, of = np.unique(np.packbits(made, axis=0), axis=1, return_inverse=True)
    found = np.empty((3, predicted.shape[1]))
    for number in range(patterns.shape[1]):
        genes = np.flatnonzero(of.reshape(-1) == number)
        rows = np.flatnonzero(made[:, genes[0]])
        found[:, genes] = (
            _jackknife(measured[np.ix_(rows, genes)], predicted[np.ix_(rows, genes)], slide[rows], unit[rows])
            if len(rows)
            else np.array([[np.nan], [-1], [1]])
        )
    expected, low, high = found
    return expected, low, high


def _jackknife(
    measured: NDArray[np.floating],
    predicted: NDArray[np.floating],
    slide: NDArray[np.int64],
    unit: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """PCC and interval of genes that all of the spots have predictions of; as :func:`expected_pcc`."""
    pairs, of = np.unique(np.stack([slide, unit], 1), axis=0, return_inverse=True)
    sums = _Sums.over(measured, predicted, of.reshape(-1), len(pairs))
    slides, units = np.unique(slide), np.unique(unit)
    inside = pairs[:, 0] == slides[:, None]  # (slides, pairs)
    expected = metrics.nan_mean(sums.of(inside).pcc(), 0)
    low, high = np.full_like(expected, -1), np.full_like(expected, 1)
    if len(units) < 2:
        return expected, low, high
    without = np.stack([metrics.nan_mean(sums.of(inside & (pairs[:, 1] != u)).pcc(), 0) for u in units])
    n = (~np.isnan(without)).sum(0)
    around = np.square(without - metrics.nan_mean(without, 0))
    error = np.sqrt(metrics.nan_mean(around, 0) * (n - 1))
    known = np.isfinite(error) & (n > 1)
    reach = student.ppf((1 + CONFIDENCE) / 2, np.maximum(n - 1, 1)) * error
    low[known] = np.maximum(expected - reach, -1)[known]
    high[known] = np.minimum(expected + reach, 1)[known]
    return expected, low, high


@dataclass(frozen=True)
class _Sums:
    """Sums over spots of measured (y) and predicted (p) values, (parts, M) each; n is (parts, 1)."""

    n: NDArray[np.float64]
    y: NDArray[np.float64]
    p: NDArray[np.float64]
    yy: NDArray[np.float64]
    pp: NDArray[np.float64]
    yp: NDArray[np.float64]

    @classmethod
    def over(cls, measured: NDArray[Any], predicted: NDArray[Any], part: NDArray[np.int64], n_parts: int) -> Self:
        """Sum over the spots of each part; values are taken from the mean first, which loses no digits."""
        y = measured.astype(np.float64) - measured.mean(0, dtype=np.float64)
        p = predicted.astype(np.float64) - predicted.mean(0, dtype=np.float64)
        inside = (part == np.arange(n_parts)[:, None]).astype(np.float64)
        values = (np.ones((len(y), 1)), y, p, y * y, p * p, y * p)
        return cls(*(inside @ value for value in values))

    def of(self, inside: NDArray[np.bool_]) -> Self:
        """Add parts up: ``inside`` (rows, parts) says which."""
        chosen = inside.astype(np.float64)
        return type(self)(*(chosen @ value for value in (self.n, self.y, self.p, self.yy, self.pp, self.yp)))

    def pcc(self) -> NDArray[np.float64]:
        """Correlation of each row and gene; NaN where one of both is constant."""
        n = np.maximum(self.n, 1)
        y, p = self.yy - self.y**2 / n, self.pp - self.p**2 / n
        constant = ~((y > 1e-10 * self.yy) & (p > 1e-10 * self.pp))
        with np.errstate(invalid="ignore", divide="ignore"):
            found = (self.yp - self.y * self.p / n) / np.sqrt(y * p)
        return np.where(constant, np.nan, np.clip(found, -1, 1))
