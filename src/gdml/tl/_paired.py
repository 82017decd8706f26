"""A paired test of two models over groups."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import permutation_test

from ._intervals import weights

#: Groups of which all sign flips are counted; of more, as many flips are drawn as these have.
MOST_EXACT = 16


def sign_flip_test(totals: ArrayLike, *, seed: int = 0) -> float:
    """Test whether paired differences of groups are as likely to be negative as positive.

    If two models are equally good, which of them is ahead in a group is a toss of a coin. The sum of the differences is
    compared with that for every choice of their signs, ``2 ** K`` for K groups (Fisher 1935, The Design of Experiments,
    section 21); for more than 16 groups with as many signs as 16 groups have, drawn at random.

    Parameters
    ----------
    totals
        (K,) difference of each group, weighted as in the mean.
    seed
        Of the draws.

    Returns
    -------
    Two-sided p-value; NaN for fewer than two groups.
    """
    values = np.asarray(totals, np.float64)
    if len(values) < 2:
        return np.nan
    found = permutation_test(
        (values,),
        lambda x, axis: np.sum(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**MOST_EXACT,
        random_state=seed,
    )
    return float(found.pvalue)


def least_p(n_groups: int) -> float:
    """Smallest two-sided p-value that the sign flips of so many groups can give."""
    return 2.0 / (2 ** min(n_groups, MOST_EXACT)) if n_groups > 1 else 1.0


def group_totals(slides: pd.DataFrame, metric: str) -> NDArray[np.float64]:
    """Add up the differences of each group, weighted as in their mean: (K,)."""
    weighted = weights(slides, metric) * slides[metric].to_numpy(np.float64)
    return pd.Series(weighted).groupby(slides["group"].to_numpy(), sort=False).sum().to_numpy()
