"""Normalised expression of the panel, and the record of how it was made."""

import warnings
from collections.abc import Iterable
from typing import Literal

import numpy as np
from anndata import AnnData

from gdml import _keys
from gdml._errors import some
from gdml.expression import Normalization, as_normalization
from gdml.spots.coordinates import check_adata
from gdml.spots.measured import measured_expression, record_measured
from gdml.spots.panel import choose_panel


def normalize(
    adata: AnnData,
    *,
    n_genes: int | None = None,
    genes: Iterable[str] | None = None,
    normalization: str | Normalization = "scanpy",
    order: Literal["all", "panel"] | None = None,
    target_sum: float | None = None,
    log: Literal["e", "2", "10", "none"] | None = None,
    smooth: bool | None = None,
    layer: str | None = None,
    library_key: str = _keys.LIBRARY,
    key_added: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Normalise the counts of the panel genes, and record how.

    ``adata.X`` stays as it is. The record travels with a model that is trained on these values: its predictions
    are on this scale, and :func:`gdml.tl.evaluate` brings the measured counts of a new slide to it.

    Parameters
    ----------
    adata
        Raw counts of one or several slides.
    n_genes
        Size of the panel, chosen by :func:`gdml.pp.select_genes` with its defaults. By default the panel in
        ``adata.var['gdml_panel']`` where there is one, else 250 genes.
    genes
        The panel itself, instead of a rule.
    normalization
        ``"scanpy"``: counts of a spot scaled to 1e4 over all genes, natural ``log1p``, no smoothing.
        ``"paper"``: scaled to 1e4 over the panel alone, ``log10(x + 1)``, averaged over the 3x3 grid neighbours,
        the recipe of the authors of Gene-DML :cite:p:`Song2026`. Or a :class:`gdml.expression.Normalization`.
    order, target_sum, log, smooth
        Single switches that take precedence over ``normalization``; see :class:`gdml.expression.Normalization`.
        Smoothing reads the grid from ``adata.obs['array_row']`` and ``['array_col']``. Scores on smoothed
        labels are higher and do not compare with scores on others.
    layer
        Layer with the raw counts; ``adata.X`` by default.
    library_key
        Column of ``adata.obs`` with the slide of each spot.
    key_added
        Name under which results are stored.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or the copy. Writes:

    ``.obsm['gdml_measured']`` : DataFrame, float32, spots x panel genes
        Normalised expression; the columns are in the order of ``adata.var_names``.
    ``.uns['gdml']['normalization']`` : dict
        Every switch, the panel, the rule that chose it, and the layer where one was named.
    ``.var['gdml_panel']`` : bool
        The panel, where it was chosen here.

    Raises
    ------
    ValueError
        If the counts are not raw counts, a spot is empty, fewer genes pass the rule than asked for, or a switch
        has a value that does not exist.
    KeyError
        If the layer, a gene of ``genes``, or, to smooth, the grid position is absent.

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
    from scanpy import logging as logg

    check_adata(adata, copy=copy)
    adata = adata.copy() if copy else adata
    norm = as_normalization(normalization, order=order, target_sum=target_sum, log=log, smooth=smooth)
    in_var = _keys.panel(key_added)
    # everything is computed before anything is written, so that an error leaves `adata` as it was
    if genes is not None or in_var not in adata.var or n_genes not in (None, adata.var[in_var].sum()):
        panel, rule = choose_panel(
            adata, 250 if n_genes is None else n_genes, genes=genes, layer=layer, library_key=library_key
        )
    else:
        panel = adata.var[in_var].to_numpy()
        rule = adata.uns.get(key_added, {}).get("panel", {"method": "given", "n_genes": int(panel.sum())})
        if panel.dtype != bool or not panel.any():
            raise ValueError(
                f"`adata.var[{in_var!r}]` must be boolean and True for one gene at least; choose the panel "
                "again with gdml.pp.select_genes(adata)."
            )
    names = adata.var_names[panel]
    measured = measured_expression(adata, names, norm, layer=layer, library_key=library_key)

    flat = names[np.ptp(measured.to_numpy(), axis=0) == 0]
    if len(flat):
        warnings.warn(
            f"{len(flat)} of {len(names)} panel genes have the same value in every spot ({some(flat)}): there is "
            "nothing to learn of them. Choose others with gdml.pp.select_genes.",
            UserWarning,
            stacklevel=2,
        )
    adata.var[in_var] = panel
    adata.uns.setdefault(key_added, {})["panel"] = rule
    record_measured(adata, measured, norm, layer=layer, key_added=key_added)
    logg.info(f"normalised expression of {len(names)} panel genes, in .obsm[{_keys.measured(key_added)!r}]")
    return adata if copy else None
