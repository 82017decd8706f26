"""Training history."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from gdml import _keys
from gdml.spots.container import table_of

from ._common import BLACK, BLUE, GREEN, GREY, ORANGE, RED, bare, finish, given_axes, spread

_LOSSES = {
    "loss": ("total", BLACK),
    "loss_pred": ("prediction", BLUE),
    "loss_instance": ("instance", ORANGE),
    "loss_group": ("group", GREEN),
}
_SCORES = {"val_pcc": "validation PCC(A)", "val_mse": "validation MSE"}


def history(
    model: AnnData | Mapping[str, Any] | Any,
    *,
    key: str = _keys.KEY,
    ax: Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool | None = None,
) -> NDArray[Any] | Figure:
    """Plot losses and validation scores over epochs.

    The dashed line marks the selected epoch. Curves that were not recorded are left out.

    Parameters
    ----------
    model
        A trained model, or the AnnData it was trained on (``adata.uns[key]['fit']``).
    key
        Key in ``adata.uns`` under which :func:`gdml.tl.fit` stored the history.
    ax
        Axes to draw on: one for the losses and one per recorded validation score; a new figure by default.
    show
        Call :func:`matplotlib.pyplot.show`.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    Array of the Axes (losses, validation PCC, validation MSE); the Figure if ``return_fig``.

    Raises
    ------
    KeyError
        If no history is found.
    ValueError
        If ``ax`` has another number of axes.

    Examples
    --------
    >>> import gdml
    >>> model = gdml.tl.fit(adata)  # doctest: +SKIP
    >>> gdml.pl.history(adata)  # doctest: +SKIP
    """
    record, best = _history(model, key)
    losses = [name for name in _LOSSES if name in record]
    scores = [name for name in _SCORES if name in record]
    n = bool(losses) + len(scores)
    epoch = record.get("epoch", np.arange(1.0, len(next(iter(record.values()))) + 1))
    if ax is None:
        axes = list(plt.subplots(1, n, figsize=(2.9 * n, 2.6), layout="constrained", squeeze=False)[1][0])
    else:
        axes = given_axes(ax, n)

    if losses:
        _draw_losses(axes[0], epoch, {name: record[name] for name in losses})
    for one, name in zip(axes[bool(losses) :], scores, strict=True):
        one.plot(epoch, record[name], color=BLUE, lw=1.5, marker="o" if len(epoch) < 3 else "", ms=3)
        one.set_ylabel(_SCORES[name])
        if best is not None and (at := np.flatnonzero(epoch == best)).size:
            one.plot(best, record[name][at[0]], "o", color=RED, ms=4)
            one.set_title(f"{record[name][at[0]]:.3f} at epoch {best:g}", fontsize="small", color=RED, loc="right")
    for one in axes:
        if best is not None:
            one.axvline(best, color=GREY, lw=0.8, ls="--", zorder=0)
        one.set_xlabel("epoch")
        one.xaxis.get_major_locator().set_params(integer=True)
        bare(one)
    return finish(np.array(axes, dtype=object), show, return_fig)


def _history(model: Any, key: str) -> tuple[dict[str, NDArray[np.float64]], float | None]:
    """Curves with values, and the selected epoch."""
    model = table_of(model, "model")
    if isinstance(model, AnnData):
        fit = model.uns.get(key, {}).get(_keys.FIT, {})
        record, best, where = fit.get("history"), fit.get("best_epoch"), f"adata.uns[{key!r}]['fit']"
    elif isinstance(model, Mapping):
        record, best, where = model.get("history", model), model.get("best_epoch"), "`model`"
    else:
        record, best = getattr(model, "history", None), getattr(model, "best_epoch", None)
        where = f"this {type(model).__name__}"
    curves = {name: np.asarray(values, np.float64) for name, values in (record or {}).items() if np.ndim(values) == 1}
    curves = {name: values for name, values in curves.items() if np.isfinite(values).any()}
    if not curves.keys() & (_LOSSES.keys() | _SCORES.keys()):
        raise KeyError(f"{where} holds no training history; train with gdml.tl.fit.")
    return curves, None if best is None else float(best)


def _draw_losses(ax: Axes, epoch: NDArray[np.float64], losses: dict[str, NDArray[np.float64]]) -> None:
    """Draw the losses, labelled at their ends; on a logarithmic scale if they differ by an order of magnitude."""
    for name, values in losses.items():
        ax.plot(epoch, values, color=_LOSSES[name][1], lw=1.5, marker="o" if len(epoch) < 3 else "", ms=3)
    finite = np.concatenate([values[np.isfinite(values)] for values in losses.values()])
    if finite.min() > 0 and finite.max() > 20 * finite.min():
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("training loss")
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = [values[np.isfinite(values)][-1] for values in losses.values()]
    wanted = [to_axes.transform((epoch[-1], end))[1] for end in ends]
    line = 11 / (ax.get_window_extent().height / ax.figure.dpi * 72)
    for name, y in zip(losses, spread(wanted, line, 0, 1), strict=True):
        label, color = _LOSSES[name]
        ax.annotate(label, (1, y), xycoords="axes fraction", xytext=(2, 0), textcoords="offset points",
                    color=color, va="center", fontsize="small")  # fmt: skip
