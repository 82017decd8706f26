"""Names beside points that overlap neither each other nor, where it can be helped, the points."""

from collections.abc import Mapping
from itertools import product

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from numpy.typing import NDArray

from ._common import GREY
from ._page import LINE, MM_PER_PT, figure_of, text_mm

_NEAR_PT, _STEP_PT, _RINGS, _ANGLES = 5.0, 5.0, 24, 16
_POINT_COST, _OUTSIDE = 12.0, 1e6  # pt of distance that a covered point is worth; a name over another or outside


def name_points(
    ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], names: Mapping[int, str], *, pt: float
) -> None:
    """Write the names of some points, with a line to each.

    Names are placed one after the other, each at the nearest position around its point that is inside the axes and
    covers no name, no legend and as few points as possible.

    Parameters
    ----------
    ax
        Axes with their final size and limits.
    x, y
        All points.
    names
        Name by index of the point.
    pt
        Size of type.
    """
    dpi = figure_of(ax).dpi
    points = ax.transData.transform(np.column_stack([x, y])) / dpi * 72
    frame = np.array(ax.get_window_extent().extents) / dpi * 72
    taken = [np.array(one.get_window_extent().extents) / dpi * 72 for one in ax.findobj(Legend)]
    rings = [
        (_NEAR_PT + _STEP_PT * ring, 2 * np.pi * turn / _ANGLES)
        for ring, turn in product(range(_RINGS), range(_ANGLES))
    ]
    for i, name in names.items():
        size = np.array([text_mm(name, pt) / MM_PER_PT + 1, pt * LINE])
        best: tuple[float, NDArray[np.float64]] | None = None
        for radius, angle in rings:
            if best is not None and best[0] <= radius:
                break
            way = np.array([np.cos(angle), np.sin(angle)])
            centre = points[i] + way * (radius + size / 2)
            box = np.r_[centre - size / 2, centre + size / 2]
            inside = (box[:2] >= frame[:2]).all() and (box[2:] <= frame[2:]).all()
            clash = any(_overlap(box, other) for other in taken)
            covered = ((points >= box[:2]) & (points <= box[2:])).all(axis=1).sum()
            cost = radius + _POINT_COST * float(covered) + (0 if inside and not clash else _OUTSIDE)
            if best is None or cost < best[0]:
                best = cost, box
        if best is None:
            continue
        box = best[1]
        taken.append(box)
        ax.annotate(
            name, (x[i], y[i]), xytext=(box[:2] + box[2:]) / 2 - points[i], textcoords="offset points", ha="center",
            va="center", fontsize=pt, fontstyle="italic",
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0, "shrinkB": 1.5},
            path_effects=[patheffects.withStroke(linewidth=1.5, foreground="white")],
        )  # fmt: skip


def _overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    """Whether two boxes (left, bottom, right, top) overlap."""
    return bool((one[:2] < other[2:]).all() and (other[:2] < one[2:]).all())
