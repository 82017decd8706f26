"""Scores of each gene on each slide, and the table of their means."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gdml import metrics
from gdml.expression import Normalization
from gdml.spots.measured import grid_neighbors
from gdml.spots.resolve import Spots

ALL = "all"


@dataclass(frozen=True)
class SlideScores:
    """Scores, slides x genes; NaN where a gene is not predicted on a slide, or has no such score there.

    Parameters
    ----------
    n_spots
        Spots of each slide that were scored.
    missing, constant
        Whether a gene is not predicted on a slide, or measured as constant there.
    pcc, attainable, spread
        Correlation, the attainable one, and predicted over measured standard deviation.
    level, pattern
        The two parts of the squared error.
    mae
        Absolute error.
    """

    n_spots: NDArray[np.int64]
    missing: NDArray[np.bool_]
    constant: NDArray[np.bool_]
    pcc: NDArray[np.float64]
    attainable: NDArray[np.float64]
    spread: NDArray[np.float64]
    level: NDArray[np.float64]
    pattern: NDArray[np.float64]
    mae: NDArray[np.float64]

    def by_gene(self) -> dict[str, NDArray[np.float64]]:
        """Scores of each gene: errors over all spots, the others averaged over slides."""
        return {
            "pcc": metrics.nan_mean(self.pcc, 0),
            "attainable": metrics.nan_mean(self.attainable, 0),
            "spread": metrics.nan_mean(self.spread, 0),
            "mse": self._over_spots(self.level + self.pattern),
            "mae": self._over_spots(self.mae),
        }

    def table(self, names: list[str], high: NDArray[np.intp], best: NDArray[np.intp]) -> pd.DataFrame:
        """One row for each slide, and one for all; ``high`` and ``best`` are the genes of the two PCC(H)."""
        parts = [slice(i, i + 1) for i in range(len(names))]
        rows = [self._row(these, high, best) for these in [*parts, slice(None)]]
        return pd.DataFrame(rows, index=pd.Index([*names, ALL], name="slide"))

    def _row(self, these: slice, high: NDArray[np.intp], best: NDArray[np.intp]) -> dict[str, float]:
        missing, constant, pcc = self.missing[these], self.constant[these], self.pcc[these]
        flat = np.isnan(pcc) & ~constant & ~missing
        pcc_a = metrics.pcc_a(pcc)
        attainable = metrics.pcc_a(np.where(np.isnan(pcc), np.nan, self.attainable[these]))
        level = float(metrics.nan_mean(self._over_spots(self.level, these)))
        pattern = float(metrics.nan_mean(self._over_spots(self.pattern, these)))
        medians = [np.median(one[~np.isnan(one)]) for one in self.spread[these] if not np.isnan(one).all()]
        return {
            "n_spots": int(self.n_spots[these].sum()),
            "n_genes": int((~missing).any(0).sum()),
            "n_constant": int((constant & ~missing).any(0).sum()),
            "n_flat": int(flat.any(0).sum()),
            "pcc_a": pcc_a,
            "pcc_attainable": attainable,
            "pcc_reached": pcc_a / attainable if attainable > 0 else np.nan,
            "pcc_h": metrics.pcc_h(pcc, high),
            "pcc_h_best": metrics.pcc_h(pcc, best),
            "mse": level + pattern,
            "mse_level": level,
            "mse_pattern": pattern,
            "mae": float(metrics.nan_mean(self._over_spots(self.mae, these))),
            "spread": float(np.mean(medians)) if medians else np.nan,
        }

    def _over_spots(self, values: NDArray[np.float64], these: slice = slice(None)) -> NDArray[np.float64]:
        """Mean over all spots of what was averaged over the spots of each slide, length genes."""
        values, weight = values[these], np.where(np.isnan(values[these]), 0, self.n_spots[these, None])
        total, n = (weight * np.nan_to_num(values)).sum(0), weight.sum(0)
        return np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)


def score_slides(
    spots: Spots,
    measured: NDArray[np.float64],
    predicted: NDArray[np.float64],
    slides: dict[str, NDArray[np.intp]],
    *,
    normalization: Normalization,
    layer: str | None,
    columns: NDArray[np.intp],
) -> SlideScores:
    """Score predictions slide by slide.

    Parameters
    ----------
    spots
        With raw counts.
    measured, predicted
        Expression, all spots x genes; of a slide, a gene is predicted for all of its rows or for none.
    slides
        Rows of each slide that are scored.
    normalization, layer
        How the measured values were made, and from which counts.
    columns
        Column of each gene in the counts.
    """
    counts = spots.counts(layer)
    scores = []
    for rows in slides.values():
        y, p = measured[rows], predicted[rows]
        missing = np.isnan(p).all(0)
        level, pattern = metrics.mse_parts_per_gene(y, p)
        neighbors = grid_neighbors(spots, rows) if normalization.smooth else None
        attainable = metrics.attainable_pcc(counts[rows], columns, normalization, neighbors=neighbors)
        scores.append(
            {
                "n_spots": len(rows),
                "missing": missing,
                "constant": np.isnan(metrics.pearson_per_gene(y, y)),
                "pcc": metrics.pearson_per_gene(y, p),
                "attainable": np.where(missing, np.nan, attainable),
                "spread": metrics.spread_per_gene(y, p),
                "level": level,
                "pattern": pattern,
                "mae": metrics.mae_per_gene(y, p),
            }
        )
    return SlideScores(**{name: np.stack([one[name] for one in scores]) for name in scores[0]})
