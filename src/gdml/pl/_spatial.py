"""Maps of measured and predicted expression."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import check_count, check_number, did_you_mean
from gdml.spots.container import is_spatialdata, table_of
from gdml.spots.coordinates import libraries
from gdml.spots.resolve import Spots

from ._common import finish, given_axes, model_names
from ._figure import new_axes, new_grid
from ._spatial_draw import SCALES, draw_group, draw_rows
from ._spatial_groups import find_groups, home_of, unit_of
from ._spots import spot_layout

_HIRES_PX = 2000  # of the image of a SpatialData, under the spots


def spatial_pred(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    library_id: str | Sequence[str] | None = None,
    library_key: str | None = None,
    key: str | Sequence[str] = _keys.KEY,
    labels: Mapping[str, str] | None = None,
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
    """Plot measured and predicted expression side by side on the tissue.

    If only one of the two exists (a slide with an H&E image alone, a gene that was not measured), it is plotted alone.
    The title gives the Pearson correlation over the spots of the slide.

    Several models are compared in columns, as in figure 3 of :cite:t:`Song2026`: measured expression, then a column per
    model, with a row per gene and slide. The map of a gene that a model did not predict is empty, and spots without a
    value, such as those in no test fold, are left out.

    The correlation is labelled optimistic if the model was selected on the spots that it predicts (protocol ``"paper"``
    of :func:`gdml.tl.cross_validate`).

    Parameters
    ----------
    adata
        With predictions of :func:`gdml.tl.predict`, and measured expression of :func:`gdml.tl.evaluate` or
        :func:`gdml.pp.normalize`. A SpatialData with one table works as well.
    genes
        One or several genes.
    library_id
        One or several slides; all by default.
    library_key
        Column of ``adata.obs`` with the slide of each spot. By default the one that :func:`gdml.pp.tile`
        recorded, else ``'library_id'``.
    key
        Key of the predictions in ``adata.obsm``; several keys compare several models, in this order. Measured
        expression is the first of ``adata.obsm[f"{key}_evaluated"]`` and ``adata.obsm[f"{key}_measured"]`` that exists,
        under these keys or ``"gdml"``.
    labels
        Headings of the columns by key; by default the key without ``gdml_``. With several models only.
    img
        Draw the spots over the H&E image (``hires`` in ``adata.uns['spatial']``).
    shape
        ``"circle"``: spots at their true diameter. ``"hex"``, ``"square"``: tiles as wide as the pitch, without gaps.
        By default hexagons on the grid of Visium, squares at their true size for the tiles of :func:`gdml.pp.grid` and
        the bins of Visium HD, else circles. The image shows through tiles and bins.
    size
        Factor on the true size.
    scale
        ``"minmax"``: each panel from its lowest to its highest value, as in figure 3 of :cite:t:`Song2026`; shows
        where a gene is high, not how high. ``"robust"``: from the 2nd to the 98th percentile, so that single spots do
        not determine the scale. None: normalised expression, measured and predicted on one scale.
    cmap
        Name of a matplotlib colour map.
    ncols
        Genes per row of the figure, each with its measured and predicted panel. By default all genes if there are
        several slides (a row per slide), else two. Always one with several models.
    ax
        Axes to draw on, one per panel; a new figure by default.
    show
        Call :func:`matplotlib.pyplot.show`.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    Array of the Axes, panel after panel; the Figure if ``return_fig``.

    Raises
    ------
    KeyError
        If a gene, a slide or predictions are unknown, or ``img`` is set and a slide has no image.
    ValueError
        If ``scale``, ``shape``, ``size`` or ``ncols`` has an invalid value, or ``ax`` has another number of axes.
    TypeError
        If ``size`` or ``ncols`` is not a number.

    Warns
    -----
    UserWarning
        If measured and predicted expression are on different scales.

    Examples
    --------
    >>> import gdml
    >>> gdml.tl.evaluate(adata)  # doctest: +SKIP
    >>> gdml.pl.spatial_pred(adata, ["FASN", "GNAS"])  # doctest: +SKIP
    >>> gdml.pl.spatial_pred(adata, "FASN", key=["gdml_ridge", "gdml_triplex"])  # doctest: +SKIP
    """
    if scale not in (*SCALES, None):
        raise ValueError(f"`scale` is {scale!r}; it must be 'minmax', 'robust' or None.")
    data, adata = adata, table_of(adata)
    keys = [key] if isinstance(key, str) else list(dict.fromkeys(key))
    if not keys:
        raise ValueError("`key` is empty; name at least one model.")
    check_number("size", size, above=0, hint="1 is the true size")
    if ncols is not None:
        check_count("ncols", ncols)
    compare = len(keys) > 1
    if compare and ncols not in (None, 1):
        raise ValueError(f"`ncols` is {ncols!r}, but several models take a row for each gene; leave it out.")
    names = model_names(keys, labels)
    home = home_of(adata, keys)
    if library_key is None:
        library_key = str(adata.uns.get(home, {}).get(_keys.TILES, {}).get("library_key", _keys.LIBRARY))
    slides = _slides(adata, library_key, library_id)
    genes = [genes] if isinstance(genes, str) else list(genes)
    groups = find_groups(adata, genes, slides, keys)
    entries = _entries(data, home, library_key, slides, img)
    layouts = {
        name: spot_layout(adata, name, rows, shape=shape, size=size, img=img, key=home, entry=entries.get(name))
        for name, rows in slides.items()
    }
    unit = unit_of(adata, keys)
    several = len(slides) > 1
    spots = [layouts[group.library] for group in groups]
    if ax is not None:
        axes = given_axes(ax, sum(len(group.panels) for group in groups))

    if compare:
        if ax is None:
            warn = any(panel.optimistic for panel in groups[0].panels)
            rows = [group.library for group in groups]
            axes = new_grid(spots, rows, len(groups[0].panels), names=names.values(), warn=warn)
        draw_rows(axes, groups, spots, names, scale, cmap, unit, name_slides=several)
        return finish(np.array(axes, dtype=object), show, return_fig)
    if ncols is None:
        ncols = len(genes) if several else min(2, len(genes))
    if ax is None:
        axes = new_axes(spots, [len(group.panels) for group in groups], ncols=ncols, row_label=several)
    remaining = iter(axes)
    for i, (group, layout) in enumerate(zip(groups, spots, strict=True)):
        own = [next(remaining) for _ in group.panels]
        named = several and (ax is not None or i % ncols == 0)
        draw_group(own, group, layout, scale, cmap, unit, row_label=named)
    return finish(np.array(axes, dtype=object), show, return_fig)


def _entries(data: Any, key: str, library_key: str, slides: Iterable[str], img: bool) -> dict[str, Mapping[str, Any]]:
    """Size of the spots and thumbnail of each slide of a SpatialData; empty of an AnnData, which has them in ``uns``."""
    if not is_spatialdata(data):
        return {}
    spots = Spots.resolve(data, key=key, library_key=library_key)
    return {name: spots.entry(name, {"hires": _HIRES_PX} if img else None) for name in slides}


def _slides(adata: AnnData, library_key: str, library_id: str | Sequence[str] | None) -> dict[str, NDArray[np.intp]]:
    slides = libraries(adata, library_key)
    if library_id is None:
        return slides
    wanted = np.ravel(np.asarray(library_id, dtype=object)).astype(str).tolist()  # slides may be named by numbers
    unknown = [name for name in wanted if name not in slides]
    if unknown:
        raise KeyError(f"`library_id` names the unknown slide {unknown[0]!r}. {did_you_mean(unknown[0], slides)}")
    return {name: slides[name] for name in wanted}
