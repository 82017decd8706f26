"""Share of the measured values that lie within their prediction intervals, and how wide those are."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gdml import _keys
from gdml.spots.resolve import Spots

from ._slide_scores import ALL


@dataclass(frozen=True)
class Coverage:
    """Sums over the spots of each slide, (slides, genes) each.

    Parameters
    ----------
    n
        Spots with an interval.
    inside
        Those whose measured value is within it.
    width
        Sum of the full widths.
    """

    n: NDArray[np.int64]
    inside: NDArray[np.int64]
    width: NDArray[np.float64]

    def table(self, names: list[str]) -> pd.DataFrame:
        """Coverage and width over spots and genes of each slide, and of all."""
        sums = [np.append(one.sum(1), one.sum()).astype(float) for one in (self.n, self.inside, self.width)]
        values = {name: _ratio(one, sums[0]) for name, one in zip(("coverage", "width"), sums[1:], strict=True)}
        return pd.DataFrame(values, index=pd.Index([*names, ALL], name="slide"))

    def by_gene(self) -> NDArray[np.float64]:
        """Coverage of each gene over all spots; NaN where it has no interval."""
        return _ratio(self.inside.sum(0).astype(float), self.n.sum(0).astype(float))


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def score_intervals(
    spots: Spots, measured: NDArray[np.float64], genes: pd.Index, slides: dict[str, NDArray[np.intp]]
) -> Coverage | None:
    """Compare intervals with what was measured; None where the predictions have none.

    Spots that intervals were calibrated on have none.

    Parameters
    ----------
    spots
        With predictions.
    measured
        (n_obs, genes).
    genes
        Genes that are scored.
    slides
        Rows of each slide that are scored.
    """
    ends = [spots.adata.obsm.get(_keys.bound(which, spots.key)) for which in ("low", "high")]
    if "interval" not in (spots.record(_keys.PREDICT) or {}) or not all(isinstance(end, pd.DataFrame) for end in ends):
        return None
    low, high = (end.reindex(columns=genes).to_numpy(np.float64) for end in ends)
    there = np.isfinite(low) & np.isfinite(high) & np.isfinite(measured)
    inside = there & (low <= measured) & (measured <= high)
    width = np.where(there, high - low, 0.0)
    of_slides = lambda values: np.stack([values[rows].sum(0) for rows in slides.values()])
    return Coverage(of_slides(there), of_slides(inside), of_slides(width))
