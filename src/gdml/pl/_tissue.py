"""What is tissue on a slide, drawn over it."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from gdml.slides.tissue import CLASSES

from ._common import BLACK, GREEN, GREY, ORANGE, SKY, add_legend, finish, given_axes
from ._scale_bar import scale_bar
from ._tissue_panel import TissuePanel, of_adata, of_slide

_NAMES = {"glass": "glass", "tissue": "tissue", "pen": "pen or ink", "fold": "fold", "blurred": "out of focus"}
_TINTS = {"pen": ORANGE, "fold": SKY, "blurred": GREEN}
_OPACITY = 0.75
_MOST_PX = 2048  # of the labels that are drawn
_PANEL_INCH, _LEGEND_INCH, _TITLE_INCH, _FOOT_INCH, _GAP_INCH = 3.6, 1.45, 0.3, 0.3, 0.1


def tissue(
    data: Any,
    *,
    library_id: str | Sequence[str] | None = None,
    um_per_px: float | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool | None = None,
) -> NDArray[Any] | Figure:
    """Plot what was found to be tissue on a slide, to check it before anything is predicted.

    The tissue is outlined on the H&E image. Pen, folds and what is out of focus are tinted; the legend gives the share
    of each in the image. The tiles of :func:`gdml.pp.grid` are drawn too.

    Parameters
    ----------
    data
        AnnData of :func:`gdml.pp.grid`, or a slide as :func:`gdml.slides.open_slide` takes it, on which tissue is then
        detected as :func:`gdml.pp.grid` does.
    library_id
        One or several slides of the AnnData; all by default.
    um_per_px
        Micrometres per full-resolution px of a slide; by default from its metadata.
    ax
        Axes to draw on, one per slide; a new figure by default.
    show
        Call :func:`matplotlib.pyplot.show`.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    Array of the Axes, slide after slide; the Figure if ``return_fig``.

    Raises
    ------
    KeyError
        If the AnnData has no tissue map or no image of a slide.
    ValueError
        If the image cannot be read, or ``ax`` has another number of axes.
    TypeError
        If ``library_id`` or ``um_per_px`` is given where it has no meaning.

    Examples
    --------
    >>> import gdml
    >>> gdml.pl.tissue("biopsy.svs")  # doctest: +SKIP
    """
    if isinstance(data, AnnData):
        if um_per_px is not None:
            raise TypeError("`um_per_px` is of slides; the scale of an AnnData was given to gdml.pp.grid.")
        panels = of_adata(data, library_id)
    else:
        if library_id is not None:
            raise TypeError(f"`library_id` is {library_id!r}, but the data is not an AnnData; leave it out.")
        panels = [of_slide(data, um_per_px)]
    axes = _new_axes(panels) if ax is None else given_axes(ax, len(panels))
    for one, panel in zip(axes, panels, strict=True):
        _draw(one, panel)
    return finish(np.array(axes, dtype=object), show, return_fig)


def _new_axes(panels: list[TissuePanel]) -> list[Axes]:
    """Create a figure with a row of axes in proportion to the slides, each with a legend at its right."""
    longest = [max(panel.size) for panel in panels]
    sizes = [np.array(panel.size) / most * _PANEL_INCH for panel, most in zip(panels, longest, strict=True)]
    title = _TITLE_INCH if any(panel.title for panel in panels) else _GAP_INCH
    width = sum(size[0] + _LEGEND_INCH + _GAP_INCH for size in sizes) + _GAP_INCH
    total = np.array([width, title + max(size[1] for size in sizes) + _FOOT_INCH])
    figure = plt.figure(figsize=total)
    axes, left = [], _GAP_INCH
    for size in sizes:
        axes.append(figure.add_axes((*np.array([left, total[1] - title - size[1]]) / total, *(size / total))))
        left += size[0] + _LEGEND_INCH + _GAP_INCH
    return axes


def _draw(ax: Axes, panel: TissuePanel) -> None:
    (x0, y0), (width, height) = panel.origin, panel.size
    extent = (x0, x0 + width, y0 + height, y0)
    ax.imshow(panel.image, extent=extent, interpolation="antialiased", zorder=0)
    step = max(1, -(-max(panel.labels.shape) // _MOST_PX))
    labels = panel.labels[::step, ::step]
    tint = np.zeros((len(CLASSES), 4), np.float32)
    for name, color in _TINTS.items():
        tint[CLASSES.index(name)] = to_rgba(color, _OPACITY)
    ax.imshow(tint[labels], extent=extent, interpolation="nearest", zorder=1)
    shares = np.bincount(panel.labels.ravel(), minlength=len(CLASSES)) / panel.labels.size
    handles = [_outline(ax, labels, panel), _square("0.92", GREY)]
    entries = [("tissue", handles[0]), ("glass", handles[1])]
    entries += [(name, _square(to_rgba(color, _OPACITY), "none")) for name, color in _TINTS.items()]
    drawn = []
    for name, handle in entries:
        share = shares[CLASSES.index(name)]
        if share > 0 or name == "tissue":
            handle.set_label(f"{_NAMES[name]} {_percent(share)}")
            drawn.append(handle)
    if panel.tiles is not None and len(panel.tiles):
        ax.add_collection(
            PolyCollection(list(panel.tiles), facecolors="none", edgecolors=BLACK, linewidths=0.25, zorder=2),
            autolim=False,
        )
        drawn.append(_square("none", BLACK, width=0.5, label=f"{len(panel.tiles):,} tiles"))
    ax.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
    ax.set_title(panel.title, loc="left", fontsize="medium")
    ax.spines[:].set_visible(False)
    add_legend(ax, drawn, at=(1.0, 1.0), fontsize="small", handlelength=1.2, borderaxespad=0.2)
    scale_bar(ax, panel.um_per_px)


def _outline(ax: Axes, labels: NDArray[np.uint8], panel: TissuePanel) -> Line2D:
    """Draw the outline of the tissue, black on a white border, which shows on every stain."""
    inside = np.pad(labels == CLASSES.index("tissue"), 1).astype(np.float32)
    (x0, y0), (width, height) = panel.origin, panel.size
    x = x0 + (np.arange(inside.shape[1]) - 0.5) * width / labels.shape[1]
    y = y0 + (np.arange(inside.shape[0]) - 0.5) * height / labels.shape[0]
    if inside.any():
        lines = ax.contour(x, y, inside, levels=[0.5], colors=BLACK, linewidths=0.7, zorder=3)
        lines.set_path_effects([patheffects.withStroke(linewidth=1.7, foreground="white")])
    return Line2D([], [], color=BLACK, lw=1.0)


def _square(face: Any, edge: str, *, width: float = 0.7, label: str = "") -> Line2D:
    return Line2D(
        [], [], ls="", marker="s", ms=7, markerfacecolor=face, markeredgecolor=edge, markeredgewidth=width, label=label
    )


def _percent(share: float) -> str:
    return "below 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"
