"""Normalised expression of the panel, and the record of how it was made."""

from collections.abc import Iterable
from typing import Literal

from anndata import AnnData

from gdml import _keys
from gdml._progress import tell
from gdml.expression import Normalization, as_normalization
from gdml.spots.measured import normalize_spots
from gdml.spots.resolve import Spots


def normalize(
    adata: AnnData,
    *,
    n_genes: int | None = None,
    genes: Iterable[str] | None = None,
    normalization: str | Normalization = "scanpy",
    order: Literal["all", "panel", "none"] | None = None,
    target_sum: float | None = None,
    log: Literal["e", "2", "10", "none"] | None = None,
    smooth: bool | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    key_added: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Normalise the counts of the panel genes, and record how.

    ``adata.X`` is left unchanged. The record is stored with a model that is trained on these values: its predictions
    are on this scale, and :func:`gdml.tl.evaluate` brings the measured counts of a new slide to it.

    Parameters
    ----------
    adata
        Raw counts of one or several slides. A SpatialData with one table works as well.
    n_genes
        Size of the panel, chosen as in :func:`gdml.pp.select_genes` with its defaults. By default the panel in
        ``adata.var['gdml_panel']`` if present, else 250 genes.
    genes
        Names of the panel genes, instead of a rule.
    normalization
        ``"scanpy"``: counts of a spot scaled to 1e4 over all genes, natural ``log1p``, no smoothing.
        ``"paper"``: scaled to 1e4 over the panel alone, ``log10(x + 1)``, averaged over the 3x3 grid neighbours,
        the recipe of the authors of Gene-DML :cite:p:`Song2026`. ``"hest"``: natural ``log1p`` of raw counts, as in
        HEST-bench :cite:p:`Jaume2024`. Or a :class:`gdml.expression.Normalization`.
    order, target_sum, log, smooth
        Single switches that take precedence over ``normalization``; see :class:`gdml.expression.Normalization`.
        Smoothing reads the grid from ``adata.obs['array_row']`` and ``['array_col']``. Scores on smoothed
        labels are higher and not comparable with others.
    layer
        Layer with the raw counts; ``adata.X`` by default.
    library_key
        Column of ``adata.obs`` with the slide of each spot. By default the one that :func:`gdml.pp.tile` recorded,
        else ``'library_id'``.
    key_added
        Name under which results are stored.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy. Writes:

    ``.obsm['gdml_measured']`` : DataFrame, float32, spots x panel genes
        Normalised expression; columns in the order of ``adata.var_names``.
    ``.uns['gdml']['normalization']`` : dict
        Every switch, the panel, the rule that chose it, and the layer if one was named.
    ``.var['gdml_panel']`` : bool
        The panel.

    Raises
    ------
    ValueError
        If the counts are not raw counts, a spot is empty, fewer genes pass the rule than asked for, or a switch
        has an unknown value.
    TypeError
        If a number is expected and something else was passed.
    KeyError
        If the layer, the column of slides, a gene of ``genes``, or, to smooth, the grid position is absent.

    Warns
    -----
    UserWarning
        If panel genes have the same value in every spot.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.datasets.her2st(["C2", "C3"])  # doctest: +SKIP
    >>> gdml.pp.normalize(adata, n_genes=250)  # doctest: +SKIP
    >>> gdml.pp.normalize(adata, normalization="paper", smooth=False)  # doctest: +SKIP
    """
    spots = Spots.resolve(adata, key=key_added, library_key=library_key, coordinates=False, copy=copy)
    norm = as_normalization(normalization, order=order, target_sum=target_sum, log=log, smooth=smooth)
    measured = normalize_spots(spots, norm, n_genes=n_genes, genes=genes, layer=layer)
    rule = spots.adata.uns[key_added]["panel"]["method"]
    tell(
        f"normalize: {measured.shape[1]} panel genes (rule: {rule}), {norm.unit}, in obsm[{_keys.measured(key_added)!r}]"
    )
    return spots.adata if copy else None
