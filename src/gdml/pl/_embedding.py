"""Map of the shared space of image and expression."""

from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import check_count, check_number, did_you_mean
from gdml.spots.container import table_of

from ._common import BLACK, BLUE, GREY, ORANGE, add_legend, bare, finish, given_axes
from ._spot_colors import SpotColors, spot_colors

_METHODS = ("umap", "pca")
_PAIRS = 100  # lines of pairs=True
_RASTER = 5000  # points from which a vector file would be slow to open
_ROWS = 16  # of a column of the legend


def embedding(
    adata: AnnData,
    *,
    basis: str = _keys.embedding(_keys.KEY),
    color: str | None = None,
    expression: str | Literal[False] | None = None,
    method: Literal["umap", "pca"] = "umap",
    pairs: bool | int = False,
    cmap: str = "viridis",
    size: float | None = None,
    seed: int = 0,
    ax: Axes | None = None,
    show: bool | None = None,
    return_fig: bool | None = None,
) -> Axes | Figure:
    """Plot the shared space of image and expression in two dimensions.

    Images are filled circles, expression profiles are hollow diamonds. Both are mapped together; spots with NaN, such
    as those in no test fold, are left out. The map is computed by scanpy for the plot and not written to
    ``adata``.

    Parameters
    ----------
    adata
        With the embeddings in ``.obsm``, and ``color`` in ``.obs``. A SpatialData with one table works as well.
    basis
        Key in ``adata.obsm`` of the image embeddings, spots x width, as written by :func:`gdml.tl.predict`.
    color
        Column of ``adata.obs``: categories (a group, a cluster) or numbers. Categories have the colours in
        ``adata.uns[f"{color}_colors"]`` if scanpy stored them. By default points are coloured by kind.
    expression
        Key in ``adata.obsm`` of the expression embeddings of the same spots. By default ``f"{basis}_expression"`` if it
        exists; False draws the images alone.
    method
        ``"umap"``: :func:`scanpy.tl.umap` of 15 neighbours by cosine distance. ``"pca"``: the first two principal
        components, :func:`scanpy.pp.pca`; faster, and preserves large distances.
    pairs
        Join image and expression of 100 random spots, or of the given number.
    cmap
        Name of a matplotlib colour map, for numbers.
    size
        Area of a point in square points; by default it decreases with the number of points.
    seed
        Random seed of UMAP, of the pairs, and of the order in which points are drawn.
    ax
        Axes to draw on; a new figure by default.
    show
        Call :func:`matplotlib.pyplot.show`.
    return_fig
        Return the figure instead of the axes.

    Returns
    -------
    The Axes; the Figure if ``return_fig``.

    Raises
    ------
    KeyError
        If ``basis``, ``expression`` or ``color`` is unknown, or ``pairs`` is set without expression.
    ValueError
        If the method is unknown, the embeddings have one column or different widths, or fewer than 4 rows are finite.
    TypeError
        If ``pairs``, ``size`` or ``seed`` is not a number.

    Examples
    --------
    >>> import gdml
    >>> gdml.tl.predict(adata, model)  # doctest: +SKIP
    >>> gdml.pl.embedding(adata, color="patient")  # doctest: +SKIP
    """
    if method not in _METHODS:
        raise ValueError(f"`method` is {method!r}. {did_you_mean(str(method), _METHODS)}")
    if not isinstance(pairs, bool):
        check_count("pairs", pairs)
    if size is not None:
        check_number("size", size, above=0)
    check_count("seed", seed, at_least=0)
    adata = table_of(adata)
    image, profile = _embeddings(adata, basis, expression)
    if pairs and profile is None:
        raise KeyError(
            f"`pairs` joins image and expression, but adata.obsm has no {expression or basis + '_expression'!r}; "
            "embed the profiles with gdml.tl.retrieve, or pass pairs=False."
        )
    of_image = np.flatnonzero(np.isfinite(image).all(1))
    of_profile = np.empty(0, np.intp) if profile is None else np.flatnonzero(np.isfinite(profile).all(1))
    joint = image[of_image] if profile is None else np.concatenate([image[of_image], profile[of_profile]])
    if len(joint) < 4:
        raise ValueError(f"adata.obsm[{basis!r}] has {len(joint)} rows without NaN; a map needs at least 4.")
    colors = None if color is None else spot_colors(adata, color, cmap)
    xy, axis_names = _mapped(joint, method, seed)

    kinds = list(colors.categories) if colors else []
    if ax is None:
        legend_inch = 0.5 + 0.075 * max(map(len, [*kinds, "expression"]))
        width = 4.6 + legend_inch * max(1, np.ceil(len(kinds) / _ROWS))
        ax = plt.subplots(figsize=(width, 4.4), layout="constrained")[1]
    else:
        ax = given_axes(ax, 1)[0]
    rng = np.random.default_rng(seed)
    if pairs:
        both, i, j = np.intersect1d(of_image, of_profile, return_indices=True)
        drawn = rng.permutation(len(both))[: _PAIRS if pairs is True else int(pairs)]
        lines = np.stack([xy[i[drawn]], xy[len(of_image) + j[drawn]]], axis=1)
        ax.add_collection(LineCollection(list(lines), colors=BLACK, linewidths=0.6, alpha=0.4, zorder=3))
    area = float(np.clip(12_000 / len(xy), 2, 24)) if size is None else size
    for rows, points, filled in ((of_image, xy[: len(of_image)], True), (of_profile, xy[len(of_image) :], False)):
        order = rng.permutation(len(rows))  # no category covers the others
        own = (BLUE if filled else ORANGE) if colors is None else colors.rgba[rows[order]]
        look: dict[str, Any] = {"facecolors": own} if filled else {"facecolors": "none", "edgecolors": own}
        ax.scatter(
            points[order, 0], points[order, 1], s=area, marker="o" if filled else "D", linewidths=0 if filled else 0.7,
            alpha=0.8, rasterized=len(xy) > _RASTER, zorder=2,
            **look,
        )  # fmt: skip
    ax.set(xlabel=axis_names[0], ylabel=axis_names[1], xticks=[], yticks=[])
    ax.set_aspect("equal", "datalim")
    bare(ax)
    _explain(ax, colors, color, both=profile is not None)
    return finish(ax, show, return_fig)


def _embeddings(
    adata: AnnData, basis: str, expression: str | Literal[False] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Embeddings of images, and of expression or None."""
    if basis not in adata.obsm:
        raise KeyError(
            f"`basis` is {basis!r}, but adata.obsm has no such key; gdml.tl.predict(adata) writes the embeddings of "
            f"models that have a shared space. {did_you_mean(basis, adata.obsm)}"
        )
    image = np.asarray(adata.obsm[basis], np.float32)
    if image.ndim != 2 or image.shape[1] < 2:
        raise ValueError(f"adata.obsm[{basis!r}] has shape {image.shape}; a map needs spots x width, at least 2 wide.")
    if expression is None:
        expression = f"{basis}_expression" if f"{basis}_expression" in adata.obsm else False
    if expression is False:
        return image, None
    if expression not in adata.obsm:
        raise KeyError(
            f"`expression` is {expression!r}, but adata.obsm has no such key. {did_you_mean(expression, adata.obsm)}"
        )
    profile = np.asarray(adata.obsm[expression], np.float32)
    if profile.shape[1] != image.shape[1]:
        raise ValueError(
            f"adata.obsm[{basis!r}] has {image.shape[1]} columns and adata.obsm[{expression!r}] {profile.shape[1]}: "
            "`expression` must come from the same model as `basis`."
        )
    return image, profile


def _mapped(points: NDArray[np.float32], method: str, seed: int) -> tuple[NDArray[np.float64], list[str]]:
    """Compute the map with scanpy; return it, n x 2, and the names of its axes."""
    import scanpy as sc

    space = AnnData(points.astype(np.float64))
    if method == "pca":
        sc.pp.pca(space, n_comps=2, svd_solver="full")
        ratio = space.uns["pca"]["variance_ratio"]
        return space.obsm["X_pca"], [f"PC{i + 1} ({100 * part:.0f} %)" for i, part in enumerate(ratio)]
    sc.pp.neighbors(space, min(15, len(points) - 1), use_rep="X", metric="cosine", random_state=seed)
    # the spectral start needs more points than this
    sc.tl.umap(space, init_pos="spectral" if len(points) > 20 else "random", random_state=seed)
    return np.asarray(space.obsm["X_umap"], np.float64), ["UMAP1", "UMAP2"]


def _explain(ax: Axes, colors: SpotColors | None, title: str | None, *, both: bool) -> None:
    """Add the legends of markers and colours, right of the map."""
    plain = colors is None
    kinds = [
        Line2D([], [], lw=0, marker="o", ms=5, mew=0, color=BLUE if plain else GREY, label="image"),
        Line2D([], [], lw=0, marker="D", ms=4.5, mfc="none", color=ORANGE if plain else GREY, label="expression"),
    ][: 1 + both]
    dots = [
        Line2D([], [], lw=0, marker="o", ms=5, mew=0, color=color, label=name)
        for name, color in (colors.categories if colors else {}).items()
    ]
    style: dict[str, Any] = {"fontsize": "small", "alignment": "left", "borderaxespad": 0}
    if both or plain:
        add_legend(ax, kinds, at=(1.02, 1), **style)
    if dots:
        columns = int(np.ceil(len(dots) / _ROWS))
        add_legend(
            ax, dots, at=(1.02, 0.85 if both else 1), title=title, title_fontsize="small", ncols=columns, **style
        )
    if colors is not None and colors.scale is not None:
        bar = ax.inset_axes((1.05, 0.1, 0.03, 0.6))
        ax.figure.colorbar(colors.scale, cax=bar)
        bar.set_ylabel(str(title), fontsize="small")
        bar.tick_params(labelsize="small", length=2)
        bar.spines[:].set_visible(False)
