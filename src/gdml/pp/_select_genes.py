"""The panel: which genes are modelled."""

from collections.abc import Iterable
from typing import Literal

from anndata import AnnData

from gdml import _keys
from gdml.spots.coordinates import check_adata
from gdml.spots.panel import choose_panel


def select_genes(
    adata: AnnData,
    n_genes: int = 250,
    *,
    method: Literal["counts", "hvg"] = "counts",
    genes: Iterable[str] | None = None,
    min_fraction: float = 0.1,
    layer: str | None = None,
    library_key: str = _keys.LIBRARY,
    key_added: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Choose the genes to model.

    Run it on the training slides alone: a panel chosen with the help of the slides that are scored later makes
    the score optimistic.

    Parameters
    ----------
    adata
        Raw counts of one or several slides.
    n_genes
        Number of genes; left aside where ``genes`` is given.
    method
        How genes found in at least ``min_fraction`` of the spots of **every** slide are ranked. ``"counts"``:
        by total counts, the rule of TRIPLEX :cite:p:`Chung2024`. ``"hvg"``: by variability, as
        :func:`scanpy.pp.highly_variable_genes` finds it slide by slide on log-normalised counts.
        Ties are broken by name.
    genes
        The panel itself, instead of a rule.
    min_fraction
        Smallest fraction of the spots of each slide that a gene must be found in.
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

    ``.var['gdml_panel']`` : bool
        True for the genes of the panel.
    ``.uns['gdml']['panel']`` : dict
        The rule and its parameters.

    Raises
    ------
    ValueError
        If the counts are not raw counts, a spot is empty, or fewer genes pass the rule than asked for.
    KeyError
        If the layer, or a gene of ``genes``, is absent.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.datasets.her2st(["C2", "C3"])  # doctest: +SKIP
    >>> gdml.pp.select_genes(adata, n_genes=250)  # doctest: +SKIP
    """
    from scanpy import logging as logg

    check_adata(adata, copy=copy)
    adata = adata.copy() if copy else adata
    panel, record = choose_panel(
        adata, n_genes, method=method, genes=genes, min_fraction=min_fraction, layer=layer, library_key=library_key
    )
    adata.var[_keys.panel(key_added)] = panel
    adata.uns.setdefault(key_added, {})["panel"] = record
    logg.info(f"panel of {panel.sum()} genes (rule: {record['method']}), in .var[{_keys.panel(key_added)!r}]")
    return adata if copy else None
