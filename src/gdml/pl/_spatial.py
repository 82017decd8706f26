"""Maps of measured and predicted expression."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import did_you_mean
from gdml.expression import Normalization
from gdml.metrics import pearson_per_gene
from gdml.pp._validate import libraries

from ._common import finish, given_axes
from ._figure import new_axes
from ._spots import SpotLayout, draw_spots, scale_bar, spot_layout

_SCALES = {"minmax": (0, 100), "robust": (2, 98)}  # percentiles that become 0 and 1


class _Panel(NamedTuple):
    kind: str
    values: NDArray[np.float64]


class _Group(NamedTuple):
    """One gene on one slide: measured, predicted, or both."""

    gene: str
    library: str
    panels: list[_Panel]
    pcc: float | None


def spatial_pred(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    library_id: str | Sequence[str] | None = None,
    library_key: str | None = None,
    key: str = _keys.KEY,
    img: bool = False,
    shape: Literal["hex", "square", "circle"] | None = None,
    size: float = 1.0,
    scale: Literal["minmax", "robust"] | None = "minmax",
    cmap: str = "viridis",
    ncols: int | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool | None = None,
) -> NDArray[Any] | Figure:
    """Draw measured beside predicted expression on the tissue.

    Where there is no measurement (a slide with H&E alone, a gene that was not measured), the prediction is drawn
    alone; where there is no prediction, the measurement. The correlation over the spots of the slide stands in
    the title.

    Parameters
    ----------
    adata
        Predictions of :func:`gdml.tl.predict`; measured expression as :func:`gdml.tl.evaluate` (or
        :func:`gdml.pp.normalize`) writes it.
    genes
        One gene or several.
    library_id
        One slide or several; all by default.
    library_key
        Column of ``adata.obs`` with the slide of each spot. By default the one that :func:`gdml.pp.tile`
        recorded, else ``'library_id'``.
    key
        Name under which the predictions are stored.
    img
        Draw the spots over the H&E image (``hires`` of ``adata.uns['spatial']``).
    shape
        ``"circle"``: the spot itself, at its true diameter. ``"hex"``, ``"square"``: tiles as wide as the pitch, which
        leave no gaps. By default hexagons on Visium's grid, circles elsewhere.
    size
        Factor on the true size.
    scale
        ``"minmax"``: each panel from its lowest to its highest value, as in figure 3 of :cite:t:`Song2026`; shows
        where a gene is high, not how high. ``"robust"``: the same from the 2nd to the 98th percentile, so that single
        spots do not set the scale. None: normalised expression, measured and predicted on one scale.
    cmap
        Name of a matplotlib colour map.
    ncols
        Genes in a row of the figure, each with its measured and its predicted panel. By default all genes where there
        are several slides (a row each), else two.
    ax
        Axes to draw on, one a panel; a new figure by default.
    show
        Call :func:`matplotlib.pyplot.show`.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    Array of the Axes that were drawn on, panel after panel; or the Figure.

    Raises
    ------
    KeyError
        If a gene or a slide is unknown, or an image is asked for and absent.
    ValueError
        If a parameter has a value that does not exist, or ``ax`` has too many or too few axes.

    Warns
    -----
    UserWarning
        If measured and predicted expression are on different scales.

    Examples
    --------
    >>> import gdml
    >>> gdml.tl.evaluate(adata)  # doctest: +SKIP
    >>> gdml.pl.spatial_pred(adata, ["FASN", "GNAS"])  # doctest: +SKIP
    """
    if scale not in (*_SCALES, None):
        raise ValueError(f"`scale` is {scale!r}; it must be 'minmax', 'robust' or None.")
    if library_key is None:
        library_key = str(adata.uns.get(key, {}).get(_keys.TILES, {}).get("library_key", _keys.LIBRARY))
    slides = _slides(adata, library_key, library_id)
    genes = [genes] if isinstance(genes, str) else list(genes)
    groups = _groups(adata, genes, slides, key)
    layouts = {
        name: spot_layout(adata, name, rows, shape=shape, size=size, img=img, key=key) for name, rows in slides.items()
    }
    if ncols is None:
        ncols = len(genes) if len(slides) > 1 else min(2, len(genes))

    several = len(slides) > 1
    if ax is None:
        counts = [len(group.panels) for group in groups]
        axes = new_axes([layouts[group.library] for group in groups], counts, ncols=ncols, row_label=several)
    else:
        axes = given_axes(ax, sum(len(group.panels) for group in groups))
    unit = _unit(adata, key)
    remaining = iter(axes)
    for i, group in enumerate(groups):
        own = [next(remaining) for _ in group.panels]
        named = several and (ax is not None or i % ncols == 0)
        _draw_group(own, group, layouts[group.library], scale, cmap, unit, row_label=named)
    return finish(np.array(axes, dtype=object), show, return_fig)


def _slides(adata: AnnData, library_key: str, library_id: str | Sequence[str] | None) -> dict[str, NDArray[np.intp]]:
    slides = libraries(adata, library_key)
    if library_id is None:
        return slides
    wanted = [library_id] if isinstance(library_id, str) else [str(name) for name in library_id]
    unknown = [name for name in wanted if name not in slides]
    if unknown:
        raise KeyError(f"`library_id` names the unknown slide {unknown[0]!r}. {did_you_mean(unknown[0], slides)}")
    return {name: slides[name] for name in wanted}


def _groups(adata: AnnData, genes: list[str], slides: dict[str, NDArray[np.intp]], key: str) -> list[_Group]:
    """List what is to be drawn: slides one after the other, each with all genes."""
    tables = {"measured": adata.obsm.get(_keys.measured(key)), "predicted": adata.obsm.get(key)}
    tables = {kind: table for kind, table in tables.items() if isinstance(table, pd.DataFrame)}
    if not tables:
        raise KeyError(
            f"`adata.obsm` holds neither predictions ({key!r}) nor measured expression ({_keys.measured(key)!r}); run "
            "gdml.tl.predict(adata), and gdml.tl.evaluate(adata) where there are counts."
        )
    if not genes:
        raise ValueError("`genes` is empty; name one gene at least.")
    known = pd.Index([]).append([table.columns for table in tables.values()]).unique()
    for gene in genes:
        if gene not in known:
            raise KeyError(f"`genes` names {gene!r}, which is not in the panel. {did_you_mean(gene, known)}")
    if len(tables) == 2:
        _warn_of_two_scales(adata, key)

    groups = []
    for library, rows in slides.items():
        for gene in genes:
            values = {kind: table[gene].to_numpy(np.float64)[rows] for kind, table in tables.items() if gene in table}
            panels = [_Panel(kind, value) for kind, value in values.items() if not np.isnan(value).all()]
            if not panels:
                raise KeyError(f"{gene!r} is neither measured nor predicted on slide {library!r}.")
            pcc = None
            if len(panels) == 2:
                pcc = float(pearson_per_gene(*(panel.values[:, None] for panel in panels))[0])
            groups.append(_Group(gene, library, panels, pcc))
    return groups


def _warn_of_two_scales(adata: AnnData, key: str) -> None:
    stored = adata.uns.get(key, {})
    records = [stored.get(_keys.NORMALIZATION), stored.get(_keys.PREDICT, {}).get(_keys.NORMALIZATION)]
    measured, predicted = (Normalization.from_dict(record) if record else None for record in records)
    if measured and predicted and measured != predicted:
        warnings.warn(
            f"Measured ({measured}) and predicted expression ({predicted}) are on different scales; "
            "run gdml.tl.evaluate(adata), which brings the counts to the scale of the model.",
            UserWarning,
            stacklevel=4,
        )


def _draw_group(
    axes: list[Axes], group: _Group, spots: SpotLayout, scale: str | None, cmap: str, unit: str, row_label: bool
) -> None:
    shown = [panel.values for panel in group.panels]
    if scale is None:
        norm, ticks = Normalize(min(map(np.nanmin, shown)), max(map(np.nanmax, shown))), None
    else:
        shown = [_scaled(values, *_SCALES[scale]) for values in shown]
        norm, ticks, unit = Normalize(0, 1), [0, 1], "scaled expression"
    for ax, panel, values in zip(axes, group.panels, shown, strict=True):
        drawn = draw_spots(ax, spots, values, cmap=cmap, norm=norm)
        score = "" if group.pcc is None or panel.kind == "measured" else f", PCC {_two_digits(group.pcc)}"
        ax.set_title(panel.kind + score, loc="right", fontsize="medium")
    axes[0].set_title(group.gene, loc="left", fontsize="medium", fontstyle="italic")
    if row_label:
        axes[0].set_ylabel(group.library)
    scale_bar(axes[0], spots)
    width = axes[-1].get_window_extent().width / axes[-1].figure.dpi
    bar = axes[-1].inset_axes((1 + 0.08 / width, 0.1, 0.09 / width, 0.8))
    axes[-1].figure.colorbar(drawn, cax=bar, ticks=ticks)
    bar.set_ylabel(unit, fontsize="small", labelpad=3 if scale is None else -4)
    bar.tick_params(labelsize="small", length=2)
    bar.spines[:].set_visible(False)


def _two_digits(pcc: float) -> str:
    return "undefined" if np.isnan(pcc) else f"{round(pcc, 2) + 0:.2f}".replace("-", "\N{MINUS SIGN}")


def _scaled(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Values as fractions of the way from one percentile to another."""
    low = np.nanpercentile(values, low, method="higher")
    high = np.nanpercentile(values, high, method="lower")
    return np.clip((values - low) / (high - low or 1), 0, 1)


def _unit(adata: AnnData, key: str) -> str:
    """Name the values, for the colour bar."""
    stored = adata.uns.get(key, {})
    record = stored.get(_keys.PREDICT, {}).get(_keys.NORMALIZATION) or stored.get(_keys.NORMALIZATION)
    if not record:
        return "expression"
    norm = Normalization.from_dict(record)
    per = f"counts per {norm.target_sum:,.0f}"
    return {"e": f"ln({per} + 1)", "2": f"log2({per} + 1)", "10": f"log10({per} + 1)", "none": per}[norm.log]
