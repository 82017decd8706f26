"""The panel: which genes are modelled."""

from collections.abc import Iterable
from typing import Literal

from anndata import AnnData

from gdml import _keys
from gdml._progress import tell
from gdml.spots.panel import choose_panel
from gdml.spots.resolve import Spots


def select_genes(
    adata: AnnData,
    n_genes: int = 250,
    *,
    method: Literal["counts", "hvg", "hest"] = "counts",
    genes: Iterable[str] | None = None,
    min_fraction: float = 0.1,
    layer: str | None = None,
    library_key: str | None = None,
    key_added: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Choose the genes to model.

    Use the training slides alone: a panel chosen with the help of slides that are scored later makes the score
    optimistic.

    Parameters
    ----------
    adata
        Raw counts of one or several slides. A SpatialData with one table works as well.
    n_genes
        Number of genes; ignored if ``genes`` is given.
    method
        How genes found in at least ``min_fraction`` of the spots of **every** slide are ranked. ``"counts"``:
        by total counts, the rule of TRIPLEX :cite:p:`Chung2024`. ``"hvg"``: by variability, as
        :func:`scanpy.pp.highly_variable_genes` finds it slide by slide on log-normalised counts. ``"hest"``: the same
        on ``log1p`` of raw counts with all slides pooled, the rule of HEST-bench :cite:p:`Jaume2024`.
        Ties are broken by name.
    genes
        Names of the panel genes, instead of a rule.
    min_fraction
        Smallest fraction of the spots of each slide that a gene must be found in.
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

    ``.var['gdml_panel']`` : bool
        True for the genes of the panel.
    ``.uns['gdml']['panel']`` : dict
        The rule and its parameters.

    Raises
    ------
    ValueError
        If the counts are not raw counts, a spot is empty, or fewer genes pass the rule than asked for.
    KeyError
        If the layer, the column of slides or a gene of ``genes`` is absent.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.datasets.her2st(["C2", "C3"])  # doctest: +SKIP
    >>> gdml.pp.select_genes(adata, n_genes=250)  # doctest: +SKIP
    """
    spots = Spots.resolve(adata, key=key_added, library_key=library_key, coordinates=False, copy=copy)
    panel, rule = choose_panel(spots, n_genes, method=method, genes=genes, min_fraction=min_fraction, layer=layer)
    spots.adata.var[_keys.panel(key_added)] = panel
    spots.write_record("panel", rule)
    tell(f"select_genes: {panel.sum()} genes (rule: {rule['method']}), in var[{_keys.panel(key_added)!r}]")
    return spots.adata if copy else None
