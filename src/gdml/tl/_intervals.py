"""Means of scores over slides or spots, and their bootstrap intervals over groups, slides or blocks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: Scores of which the lower is the better; their means are over spots, those of others over slides.
ERRORS = ("mse", "mae")
#: Groups that an interval over groups needs at least: fewer say next to nothing about the next patient.
MIN_GROUPS = 5
#: What is held out where slides are cut into blocks.
PART = "unseen part of a known slide"
_UNITS = {"groups": ["group"], "slides": ["slide"], "blocks": ["fold", "slide"]}


def over_what(slides: pd.DataFrame, group_key: str | None, *, blocks: bool = False) -> dict[str, Any]:
    """Decide what an interval is over, and count groups and slides.

    Parameters
    ----------
    slides
        A row for each fold and slide.
    group_key
        Column that the groups come from; None where each slide is its own group.
    blocks
        Whether parts of slides were held out; an interval over them says nothing about another slide.
    """
    n_groups, n_slides = slides["group"].nunique(), slides["slide"].nunique()
    if group_key is not None and n_groups >= MIN_GROUPS:
        over = "groups"
    elif blocks and n_slides < MIN_GROUPS:
        over = "blocks" if len(slides) > 1 else ""
    else:
        over = "slides" if n_slides > 1 else ""
    return {"interval_over": over, "n_groups": n_groups, "n_slides": n_slides}


def weights(part: pd.DataFrame, metric: str) -> NDArray[np.float64]:
    """Weight of each row: its spots for errors, else one; none without a score."""
    weight = part["n_spots"].to_numpy(np.float64) if metric in ERRORS else np.ones(len(part))
    return np.where(part[metric].isna(), 0.0, weight)


def weighted_mean(part: pd.DataFrame, metric: str) -> float:
    """Mean of a score; NaN where no row has one."""
    weight, value = weights(part, metric), np.nan_to_num(part[metric].to_numpy(np.float64))
    return float(weight @ value / weight.sum()) if weight.sum() else np.nan


def interval(
    slides: pd.DataFrame,
    metric: str,
    group_key: str | None,
    level: float,
    n: int,
    seed: int,
    *,
    blocks: bool = False,
) -> dict[str, Any]:
    """Percentiles of the mean over groups, slides or blocks that are drawn with replacement.

    Blocks of several repeats overlap: of them, as many are drawn as there are in one repeat.

    Parameters
    ----------
    slides
        A row for each fold and slide, all with a score.
    metric, level, n, seed
        As in :meth:`gdml.tl.Comparison.intervals`.
    group_key, blocks
        As in :func:`over_what`.

    Returns
    -------
    ``low`` and ``high``, NaN where there is nothing to draw, and what :func:`over_what` gives.
    """
    over = over_what(slides, group_key, blocks=blocks)
    low = high = np.nan
    if over["interval_over"]:
        unit = slides.groupby(_UNITS[over["interval_over"]], sort=False).ngroup().to_numpy()
        weight = weights(slides, metric)
        total = np.bincount(unit, weight)
        value = np.bincount(unit, weight * slides[metric].to_numpy(np.float64))
        repeats = slides["repeat"].nunique() if over["interval_over"] == "blocks" and "repeat" in slides else 1
        drawn = np.random.default_rng(seed).integers(len(total), size=(n, max(len(total) // repeats, 1)))
        low, high = np.quantile(value[drawn].sum(1) / total[drawn].sum(1), [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(low), "high": float(high), **over}


def deviation(values: Sequence[Any]) -> float:
    """Give the standard deviation of several values; NaN of one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
