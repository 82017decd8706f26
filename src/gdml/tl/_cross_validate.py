"""Compare models on folds of a data set."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from anndata import AnnData

from gdml import _keys

from ._comparison import Comparison
from ._folds import Splits

if TYPE_CHECKING:
    import torch

    from gdml.encoders.device import Precision


def cross_validate(
    adata: AnnData,
    model: str | Sequence[str] | Mapping[str, Any] = ("gene-dml", "triplex", "ridge"),
    *,
    groups: str | None = None,
    folds: int | Splits | None = None,
    protocol: Literal["nested", "paper", "hest-bench"] = "nested",
    seeds: int | Sequence[int] = 1,
    normalize: Mapping[str, Any] | None = None,
    validation: Literal["auto", "group", "block"] | None = "auto",
    validation_fraction: float = 0.2,
    max_epochs: int | None = None,
    allow_shared_groups: bool = False,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    save_to: str | os.PathLike[str] | None = None,
    key: str = _keys.KEY,
) -> Comparison:
    """Train and score models on the same folds, features, panels and labels.

    Everything that is learnt, the panel, normalisation constants, exemplars and reference banks included, is learnt
    on the training slides of each fold. Each finished run is kept on disk: a call that was stopped, called again,
    does the runs that are missing. A run that fails is reported in ``runs``, and the others go on.

    Parameters
    ----------
    adata
        Spots of all slides, with raw counts. Tiles and features are made with their defaults where they are missing.
    model
        A name of :func:`gdml.models.list_models`, several, or a mapping from labels of your choice to a name or to
        the options of :func:`gdml.tl.fit` (``model``, ``preset``, ``config``, ``training``, ``max_epochs``):
        ``{"ridge": "ridge", "wide": {"model": "gene-dml", "config": {"width": 512}}}``.
    groups
        Column of ``adata.obs`` with the group (patient) of each slide, which is never split. None: each slide is its
        own group.
    folds
        None: leave one group out. A number: so many folds, groups dealt at random with the first of ``seeds``. Or the
        splits: ``{"to C6": (["C2", "C3"], ["C6"])}``, slides to learn from and slides to score by name.
    protocol
        ``"nested"``: the epoch is chosen on a validation split of the training slides, as in :func:`gdml.tl.fit`.
        ``"paper"``: the practice of Gene-DML's and TRIPLEX's public code, panel-wise ``log10`` labels smoothed over
        neighbours, and the epoch chosen on the **test fold** itself: optimistic, and labelled so.
        ``"hest-bench"``: 50 highly variable genes, correlations over all test spots of a fold, and the probe of the
        HEST benchmark :cite:p:`Jaume2024` as ``"ridge"``.
    seeds
        Number of seeds, from 0, or the seeds themselves. Models in closed form are run once.
    normalize
        Arguments of :func:`gdml.pp.normalize` and :func:`gdml.pp.select_genes` (``n_genes``, ``method``, ``genes``,
        ``normalization``, ``smooth``, ``layer``, ...). By default as ``adata`` was normalised, else their defaults.
        The panel is chosen anew on the training slides of each fold, unless it was given gene by gene.
    validation, validation_fraction
        As in :func:`gdml.tl.fit`; not used by ``"paper"``.
    max_epochs
        Epochs at most, for models that don't say otherwise.
    allow_shared_groups
        Accept given splits with a group on both sides: the score is then of a known patient.
    device, precision
        As in :func:`gdml.tl.fit`.
    save_to
        Folder for finished runs; by default one in ``gdml.settings.cache_dir``.
    key
        Name under which tiles, features and normalisation are stored.

    Returns
    -------
    :class:`gdml.tl.Comparison`: ``scores`` by gene, slide, fold and seed; tables of means with bootstrap intervals
    (``summary()``, ``intervals()``), of paired differences (``compare("ridge")``), of slides (``slides()``), and of
    ``runs``. Sets, for each model:

    ``.obsm['gdml_{model}']`` : DataFrame, float32, n_obs x genes
        Prediction of each spot from the fold in which it was scored (the first one, where several are given), of the
        first seed; NaN for spots that were scored in no fold and genes that are not in the fold's panel.
    ``.layers['gdml_{model}']`` : float32, n_obs x n_vars
        The same on ``var_names``, unless it would exceed ``gdml.settings.max_layer_gb``.
    ``.obsm['gdml_{model}_measured']`` : DataFrame, float32
        Measured expression of the same spots and genes.
    ``.uns['gdml_{model}']['predict']`` : dict
        ``name``, ``protocol``, ``optimistic``, ``normalization``, ``panel``.

    Raises
    ------
    KeyError
        If ``groups`` is no column of ``obs``, or coordinates are missing.
    ValueError
        If an argument is not valid; if there are fewer groups than folds; if a group, a slide, or a copy of a slide
        (found by the hash of its counts) is on both sides; if a model needs parts that were not embedded.

    See Also
    --------
    gdml.tl.ablate : Compare settings of one model.
    gdml.pl.benchmark : Draw the result.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.datasets.her2st(["B4", "C2", "C3"])  # doctest: +SKIP
    >>> found = gdml.tl.cross_validate(adata, ["ridge", "stnet"], groups="patient")  # doctest: +SKIP
    >>> found.compare("ridge")  # doctest: +SKIP
    """
    from ._compare import compare_models, comparison
    from ._run_folds import write_predictions

    result, plan = compare_models(
        adata,
        model,
        groups=groups,
        folds=folds,
        protocol=protocol,
        seeds=seeds,
        normalize=normalize,
        validation=validation,
        validation_fraction=validation_fraction,
        max_epochs=max_epochs,
        allow_shared_groups=allow_shared_groups,
        device=device,
        precision=precision,
        save_to=save_to,
        key=key,
    )
    write_predictions(adata, plan, result, key)
    return comparison(plan, result)
