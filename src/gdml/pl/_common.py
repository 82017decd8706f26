"""Helpers of all plots: axes, return values, labels that do not overlap."""

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from gdml import _keys
from gdml._errors import did_you_mean

# the colour-blind safe palette of Okabe and Ito
BLACK, ORANGE, SKY, GREEN, BLUE, RED, GREY = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#8C8C8C"
PINK = "#CC79A7"
COLORS = (BLUE, ORANGE, GREEN, SKY, RED, PINK)  # of categories, in this order; without yellow, too pale on white


def given_axes(ax: Any, n: int) -> list[Axes]:
    """Flatten the argument ``ax``; raise ValueError if it does not hold ``n`` axes."""
    axes = list(np.ravel(np.asarray(ax, dtype=object)))
    if len(axes) != n or not all(isinstance(one, Axes) for one in axes):
        raise ValueError(f"`ax` holds {len(axes)} axes, but {n} panels are drawn; pass {n}, or leave `ax` out.")
    return axes


def model_names(keys: Iterable[str], labels: Mapping[str, str] | None) -> dict[str, str]:
    """Name of each model in a plot: from ``labels``, else its key without ``gdml_``.

    Raises
    ------
    KeyError
        If ``labels`` has a key that is not a model.
    """
    labels = {} if labels is None else labels
    names = {key: labels.get(key, key.removeprefix(f"{_keys.KEY}_")) for key in keys}
    for key in labels:
        if key not in names:
            raise KeyError(f"`labels` names {key!r}, which is not among the models. {did_you_mean(key, names)}")
    return names


def finish(axes: Any, show: bool | None, return_fig: bool | None) -> Any:
    """Show the figure if requested; return the axes or the figure."""
    figure: Figure = np.ravel(np.asarray(axes, dtype=object))[0].figure
    if show:
        plt.show()
    return figure if return_fig else axes


def two_digits(score: float) -> str:
    """Format a score with a typographic minus sign, and without one before zero."""
    return "undefined" if np.isnan(score) else f"{round(score, 2) + 0:.2f}".replace("-", "\N{MINUS SIGN}")


def bare(ax: Axes) -> None:
    """Hide the top and right spines."""
    ax.spines[["top", "right"]].set_visible(False)


def add_legend(ax: Axes, handles: list[Line2D], *, at: tuple[float, float], **options: Any) -> None:
    """Add a legend with its upper left corner ``at`` this position in axes coordinates.

    An axes can have several, unlike with Axes.legend, and the legend is not clipped, unlike with Axes.add_artist.
    """
    names = [str(handle.get_label()) for handle in handles]
    legend = Legend(ax, handles, names, loc="upper left", bbox_to_anchor=at, frameon=False, **options)
    ax.add_artist(legend)
    legend.set_clip_on(False)


def spread(values: ArrayLike, gap: float, low: float = -np.inf, high: float = np.inf) -> NDArray[np.float64]:
    """Move positions at least ``gap`` apart, in the same order and as little as possible.

    Parameters
    ----------
    values
        Preferred positions, in any order.
    gap
        Smallest distance between neighbours.
    low, high
        Limits; exceeded upwards if the positions do not fit between them.

    Returns
    -------
    float64, the length of ``values``.
    """
    values = np.asarray(values, np.float64)
    order = np.argsort(values, kind="stable")
    steps = gap * np.arange(len(values))
    # least squares under the gaps: isotonic regression of the values minus their steps
    pooled = isotonic_regression(values[order] - steps).x if len(values) else values
    top = high - (steps[-1] if len(steps) else 0)
    out = np.empty_like(values)
    out[order] = np.clip(pooled, low, max(low, top)) + steps
    return out
