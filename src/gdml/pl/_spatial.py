"""Maps of measured and predicted expression."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import check_count, did_you_mean
from gdml.spots.container import is_spatialdata, table_of
from gdml.spots.coordinates import libraries
from gdml.spots.resolve import Spots

from ._common import finish, given_axes, model_names
from ._expression_colors import find_cmap
from ._spatial_draw import SCALES, draw_pairs
from ._spatial_grid import draw_models
from ._spatial_groups import find_groups, home_of, unit_of
from ._spots import check_style, spot_layout

_HIRES_PX = 2000  # of the image of a SpatialData, under the spots


def spatial_pred(
    adata: AnnData,
    genes: str | Sequence[str],
    *,
    library_id: str | Sequence[str] | None = None,
    library_key: str | None = None,
    key: str | Sequence[str] = _keys.KEY,
    labels: Mapping[str, str] | None = None,
    img: bool | float = False,
    shape: Literal["hex", "square", "circle"] | None = None,
    size: float | Literal["true", "touch"] | None = None,
    scale: Literal["shared", "each"] = "shared",
    spread: Literal["measured"] | None = None,
    cmap: str | Colormap | None = None,
    letters: bool | None = None,
    ncols: int | None = None,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
    show: bool | None = None,
    return_fig: bool | None = None,
) -> NDArray[Any] | Figure:
    """Plot measured and predicted expression side by side on the tissue.

    Both are in the unit of normalised expression, on one colour scale for each gene and slide. If only one of the two
    exists (a slide with an H&E image alone, a gene that was not measured), it is plotted alone. The title gives the
    slide, the model, the number of spots and the Pearson correlation over them; where nothing was measured, what the
    prediction is worth, if the model knows it (``uns["gdml"]["predict"]["genes"]``).

    Several models are compared in columns, as in figure 3 of :cite:t:`Song2026`: measured expression, then a column per
    model, with a row per gene and slide. The map of a gene that a model did not predict is empty, and spots without a
    value, such as those in no test fold, are left out.

    The correlation is labelled optimistic if the model was selected on the spots that it predicts (protocol ``"paper"``
    of :func:`gdml.tl.cross_validate`).

    Figures are made for print: one gene on one slide is 85 mm wide, a column of a journal, and other figures 180 mm, its
    page, with type of 6 to 8 pt. More genes take more rows.

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
        Names of the models by key; by default the name of the model that predicted, or with several models the key without
        ``gdml_``.
    img
        Draw the spots over the faded H&E image (``hires`` in ``adata.uns['spatial']``). A number is its opacity, above 0
        and at most 1; True is 0.5.
    shape
        ``"circle"``, ``"hex"`` or ``"square"``. By default circles for spots of legacy ST, of unknown grids and over the
        image, hexagons for spots of Visium that touch, and squares for the tiles of :func:`gdml.pp.grid` and the bins of
        Visium HD. The image shows through tiles and bins.
    size
        ``"true"``: spots as large as they are, 55 um on Visium, 100 um on legacy ST, so that the tissue is seen between
        them. ``"touch"``: as wide as the pitch, so that neighbours touch and the pattern is easy to see. By default true
        over the image of up to 1,000 spots, which are dots too small to be read beyond that, and else touching. Tiles and
        bins, which touch, have their true size. A number is a factor on the true size.
    scale
        ``"shared"``: measured and predicted expression have one colour scale, so that equal colours are equal values.
        ``"each"``: each map has a scale and colour bar of its own, and a note says so; this shows where a gene is high, not
        how high. Scales span the 1st to the 99th percentile; values beyond them are shown by pointed ends of the colour
        bar.
    spread
        ``"measured"``: predictions are drawn with the standard deviation of the measured values of the gene on the slide,
        around their own mean, and the title says by how much they were stretched. Predictions vary less than what they
        predict, and so does a map of them; this is for seeing their pattern and changes neither values nor scores. By
        default they are drawn as they are.
    cmap
        Name of a matplotlib colour map, or one itself. The default runs from yellow over green to a dark blue green, which
        stand off H&E, also for readers without red or green cones.
    letters
        Letter the genes and slides, a, b, c. By default if there are several and no ``ax`` is given.
    ncols
        Genes per row of the figure, each with its measured and predicted map. By default two, or three if there is one map
        of each; one with several models. With several genes, each slide begins a row.
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
        If ``scale``, ``spread``, ``shape``, ``size``, ``img``, ``cmap`` or ``ncols`` has an invalid value, ``ax`` has another
        number of axes, or ``spread`` is ``"measured"`` and a gene was not measured on a slide.
    TypeError
        If ``size``, ``img`` or ``ncols`` has another type.

    Warns
    -----
    UserWarning
        If measured and predicted expression are on different scales.

    Examples
    --------
    >>> import gdml
    >>> gdml.tl.evaluate(adata)  # doctest: +SKIP
    >>> gdml.pl.spatial_pred(adata, ["FASN", "GNAS"])  # doctest: +SKIP
    >>> gdml.pl.spatial_pred(adata, "FASN", img=True, spread="measured")  # doctest: +SKIP
    >>> gdml.pl.spatial_pred(adata, "FASN", key=["gdml_ridge", "gdml_triplex"])  # doctest: +SKIP
    """
    if scale not in SCALES:
        raise ValueError(f"`scale` is {scale!r}; it must be 'shared' (one scale for both maps) or 'each' (one each).")
    if spread not in (None, "measured"):
        raise ValueError(f"`spread` is {spread!r}; it must be 'measured' or None.")
    check_style(shape, size, img)
    colors = find_cmap(cmap)
    data, adata = adata, table_of(adata)
    keys = [key] if isinstance(key, str) else list(dict.fromkeys(key))
    if not keys:
        raise ValueError("`key` is empty; name at least one model.")
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
    groups = find_groups(adata, genes, slides, keys, stretch=spread is not None)
    entries = _entries(data, home, library_key, slides, bool(img))
    layouts = {
        name: spot_layout(adata, name, rows, shape=shape, size=size, img=img, key=home, entry=entries.get(name))
        for name, rows in slides.items()
    }
    spots = [layouts[group.library] for group in groups]
    if letters is None:
        letters = ax is None and len(groups) > 1
    style: dict[str, Any] = {"each": scale == "each", "cmap": colors, "unit": unit_of(adata, keys)}
    axes = None if ax is None else given_axes(ax, sum(len(group.panels) for group in groups))
    marks = [_letter(i) if letters else "" for i in range(len(groups))]
    if compare:
        axes = draw_models(axes, groups, spots, names, letters=marks, **style)
    else:
        if labels is None:
            names = {key: str(adata.uns.get(key, {}).get(_keys.PREDICT, {}).get("name", "")) for key in keys}
        axes = draw_pairs(axes, groups, spots, names, ncols=ncols, by_slide=len(genes) > 1, letters=marks, **style)
    return finish(np.array(axes, dtype=object), show, return_fig)


def _letter(i: int) -> str:
    """Letter of a panel: a to z, then aa, ab and so on."""
    before, i = divmod(i, 26)
    return (_letter(before - 1) if before else "") + "abcdefghijklmnopqrstuvwxyz"[i]


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
