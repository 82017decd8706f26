"""Compare models on folds of a data set."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anndata import AnnData

from gdml import _keys
from gdml._errors import check_count, check_path, renamed, some
from gdml._progress import tell
from gdml._settings import settings
from gdml.spots.resolve import Spots
from gdml.spots.undo import all_or_nothing

from ._comparison import Comparison
from ._features import run_missing_steps
from ._fold_predictions import as_table, fold_warrants, write_predictions
from ._folds import as_n_blocks, as_seeds, folds_of, models_folder, unseen
from ._warrant import tally

if TYPE_CHECKING:
    import torch

    from gdml.encoders.device import Precision
    from gdml.training.compare import Plan, Results
    from gdml.training.folds import Splits
    from gdml.training.warrant import Warrant

#: Columns of ``obs`` that name the patient of a slide in published data.
_PATIENT = ("patient", "patient_id", "donor", "donor_id", "subject", "subject_id", "individual", "case_id")


def cross_validate(
    adata: AnnData,
    model: str | Sequence[str] | Mapping[str, Any] = ("gene-dml", "triplex", "ridge"),
    *,
    group_key: str | None = None,
    folds: "int | Literal['blocks'] | Splits | None" = None,
    n_folds: int | None = None,
    n_repeats: int = 1,
    protocol: Literal["nested", "paper", "hest-bench"] = "nested",
    seeds: int | Sequence[int] = 1,
    normalize: Mapping[str, Any] | None = None,
    validation: Literal["auto", "group", "block"] | None = "auto",
    validation_fraction: float = 0.2,
    max_epochs: int | None = None,
    allow_shared_groups: bool = False,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    devices: int | list[int] | str = 1,
    strategy: str = "auto",
    num_nodes: int = 1,
    save_to: str | os.PathLike[str] | None = None,
    keep_models: bool | str | os.PathLike[str] = False,
    key: str = _keys.KEY,
    key_added: str = _keys.KEY,
    copy: bool = False,
    groups: str | None = None,
) -> Comparison | tuple[AnnData, Comparison]:
    """Train and score models on the same folds, features, panels and labels.

    Everything that is learnt, including the panel, normalisation constants, exemplars and reference banks, is learnt on
    the training slides of each fold. Each finished run is kept on disk under its provenance key: a call that was stopped
    and is repeated does the runs that are missing, and a run on other images, counts, positions, features or settings
    is another run. A run that fails is reported in ``runs``, and the others continue.

    Parameters
    ----------
    adata
        Spots of all slides, with raw counts. Tiles and features are made with their defaults where they are missing. A
        SpatialData with one table works as well.
    model
        A name of :func:`gdml.models.list_models`, several, or a mapping from labels of your choice to a name or to
        the options of :func:`gdml.tl.fit` (``model``, ``preset``, ``config``, ``training``, ``max_epochs``):
        ``{"ridge": "ridge", "wide": {"model": "gene-dml", "config": {"width": 512}}}``.
    group_key
        Column of ``adata.obs`` with the group (patient) of each slide, which is never split. None: each slide is its
        own group.
    folds
        None: leave one group out. A number: that many folds of similar numbers of spots; no group is split, the largest
        are dealt first, and those of one size at random with the first of ``seeds``. ``"blocks"``: contiguous blocks of
        each slide are held out in turn, and the spots in their margins are left out of training: the score of an
        **unseen part of a known slide**, the most that one slide can tell. Or the splits:
        ``{"to C6": (["C2", "C3"], ["C6"])}``, slides to learn from and slides to score by name.
    n_folds
        Number of blocks of ``folds="blocks"``; None: five.
    n_repeats
        How often folds are made, each time differently: groups dealt in another order, or blocks cut in another
        direction. Each repeat has one seed, the next whole number, or one of as many ``seeds``.
    protocol
        ``"nested"``: the epoch is chosen on a validation split of the training slides, as in :func:`gdml.tl.fit`.
        ``"paper"``: the practice of Gene-DML's and TRIPLEX's public code, panel-wise ``log10`` labels smoothed over
        neighbours, and the epoch chosen on the **test fold** itself: optimistic, and labelled so.
        ``"hest-bench"``: the HEST benchmark :cite:p:`Jaume2024`. Labels are ``log1p`` of raw counts, not scaled to a
        total; 50 highly variable genes are chosen on all slides, test slides included; correlations are over all test
        spots of a fold; and ``"ridge"`` is its probe (256 principal components, a fixed penalty, no intercept).
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
    devices, strategy, num_nodes
        Devices that train one model together, as in ``lightning_fabric.Fabric``.
    save_to
        Folder for finished runs; by default one in ``gdml.settings.cache_dir``. It is checked before the first run that
        it can be written to.
    keep_models
        Keep the model of each run, for :func:`gdml.load`: True, in ``gdml.settings.cache_dir``, or a folder. Their places
        are in the column ``saved`` of ``runs``. A run that was finished without its model is done again.
    key
        Name under which tiles, features and normalisation are stored.
    key_added
        Start of the names of results, ``"{key_added}_{model}"``.
    copy
        Write to a copy of ``adata``, and return it too.
    groups
        Former name of ``group_key``.

    Returns
    -------
    :class:`gdml.tl.Comparison`: ``scores`` by gene, slide, fold and seed; tables of means with bootstrap intervals
    (``summary()``, ``intervals()``), of paired differences (``compare("ridge")``), of slides (``slides()``), of what
    predictions of each gene are worth (``warrants("ridge")``), and of ``runs``. With ``copy=True`` the copy of ``adata``
    comes first. Writes, for each model:

    ``.obsm['gdml_{model}']`` : DataFrame, float32, n_obs x genes
        Prediction of each spot from the fold in which it was scored (the first one, where several are given), of the
        first seed; NaN for spots that were scored in no fold and genes that are not in the fold's panel.
    ``.layers['gdml_{model}']`` : float32, n_obs x n_vars
        The same on ``var_names``, unless it would exceed ``gdml.settings.max_layer_gb``.
    ``.obsm['gdml_{model}_measured']`` : DataFrame, float32
        Measured expression of the same spots and genes.
    ``.uns['gdml_{model}']['predict']`` : dict
        ``name``, ``protocol``, ``optimistic``, ``held_out`` (such as ``"unseen part of a known slide"``),
        ``normalization``, ``panel``, and the ``layer`` of the counts if one was named. Unless ``optimistic``, what the
        predictions of each gene are worth, as :func:`gdml.tl.predict` writes it: ``genes`` (DataFrame, the
        ``warrants()`` of the result), ``unseen`` and ``n_unseen``; :func:`gdml.pl.warrant` draws it.
    ``.var['gdml_{model}_warrant']``, ``.var['gdml_{model}_pcc_expected']``, ``.var['gdml_{model}_attainable']``
        Its main columns.

    Raises
    ------
    KeyError
        If ``group_key`` is no column of ``obs``, or coordinates are missing.
    ValueError
        If an argument is not valid; if there are fewer groups than folds; if a group, a slide, or a copy of a slide
        (found by the hash of its counts) is on both sides; if a slide is too small for blocks with margins; if a model
        needs parts that were not embedded.
    OSError
        If the folder of finished runs, or of models, can't be written to.

    Warns
    -----
    UserWarning
        If ``group_key`` is None, and a column such as ``"patient"`` says that slides belong together. If slides of
        different groups show the same image, have the same counts or are as alike as two halves of one slide; or the
        groups contradict the names of the slides.

    See Also
    --------
    gdml.tl.ablate : Compare settings of one model.
    gdml.pl.benchmark : Draw the result.
    gdml.pl.warrant : Draw what predictions of each gene are worth.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.datasets.her2st(["B4", "C2", "C3"])  # doctest: +SKIP
    >>> found = gdml.tl.cross_validate(adata, ["ridge", "stnet"], group_key="patient")  # doctest: +SKIP
    >>> found.compare("ridge")  # doctest: +SKIP
    >>> found.warrants("stnet")  # doctest: +SKIP
    """
    group_key = renamed("groups", groups, "group_key", group_key)
    spots = Spots.resolve(adata, key=key, copy=copy)
    plan, results = compare_models(
        spots,
        model,
        group_key=group_key,
        folds=folds,
        n_folds=n_folds,
        n_repeats=n_repeats,
        protocol=protocol,
        seeds=seeds,
        normalize=normalize,
        validation=validation,
        validation_fraction=validation_fraction,
        max_epochs=max_epochs,
        allow_shared_groups=allow_shared_groups,
        fabric={
            "device": device,
            "precision": precision,
            "devices": devices,
            "strategy": strategy,
            "num_nodes": num_nodes,
        },
        save_to=save_to,
        keep_models=keep_models,
    )
    warrants = fold_warrants(spots, plan, results)
    found = as_comparison(plan, results, allow_shared_groups, warrants)
    write_predictions(spots.adata, plan, results, key_added, found.held_out, warrants)
    only = tally(*warrants.values()).removesuffix(f" ({found.held_out})") if len(warrants) == 1 else ""
    tell(f"cross_validate: {found.line()}{only}; predictions in obsm['{_keys.of_model('<model>', key_added)}']")
    return (spots.adata, found) if copy else found


def compare_models(
    spots: Spots,
    model: str | Sequence[str] | Mapping[str, Any],
    *,
    group_key: str | None = None,
    folds: "int | str | Splits | None" = None,
    n_folds: int | None = None,
    n_repeats: int = 1,
    protocol: str = "nested",
    seeds: int | Sequence[int] = 1,
    normalize: Mapping[str, Any] | None = None,
    validation: str | None = "auto",
    validation_fraction: float = 0.2,
    max_epochs: int | None = None,
    allow_shared_groups: bool = False,
    fabric: Mapping[str, Any] | None = None,
    save_to: str | os.PathLike[str] | None = None,
    keep_models: bool | str | os.PathLike[str] = False,
) -> "tuple[Plan, Results]":
    """Run what :func:`gdml.tl.cross_validate` describes; nothing but missing tiles and features is written."""
    from gdml.spots.folds import FoldMaker, fold_normalization
    from gdml.spots.leaks import warn_of_leaks
    from gdml.training.candidates import get_protocol, make_candidates
    from gdml.training.compare import Plan, run_plan
    from gdml.training.fabric import make_fabric
    from gdml.training.folds import check_groups, check_twins
    from gdml.training.split import check_split_arguments

    rules = get_protocol(protocol)
    candidates = make_candidates(model, rules.presets, max_epochs)
    check_split_arguments(validation, validation_fraction)
    check_count("n_repeats", n_repeats)
    numbers = as_seeds(seeds, n_repeats)
    n_blocks = as_n_blocks(folds, n_folds)
    if normalize is not None and not isinstance(normalize, Mapping):
        raise TypeError(f"`normalize` must be a dict of arguments of gdml.pp.normalize, found {normalize!r}.")
    if save_to is not None:
        check_path("save_to", save_to)
    models = models_folder(keep_models)
    spots.groups(group_key)
    if group_key is None:
        _warn_of_patients(spots)
    made = make_fabric(**(fabric or {}))

    changes = {**rules.normalize, **(normalize or {})}
    fold_normalization(spots, changes)  # counts are checked before the features, which take longest
    with all_or_nothing(spots.adata, spots.key):
        run_missing_steps(spots, "cross_validate")
        needs = set().union(*(candidate.model.needs for candidate in candidates))
        source = FoldMaker(spots, group_key=group_key, normalize=changes, needs=needs)
        groups = {name: slide.group for name, slide in source.slides.items()}
        found = folds_of(source, folds, n_blocks, numbers, n_repeats)
        if n_blocks is None:
            check_groups(found, groups, allow_shared=allow_shared_groups, column=group_key or "slide")
        check_twins(found, {name: slide.counts for name, slide in source.slides.items()})
        warn_of_leaks(spots, source.spots, groups, group_key=group_key, layer=source.layer, stacklevel=3)
        folder = Path(save_to).expanduser() if save_to is not None else settings.cache_dir / "runs"
        how = validation, validation_fraction, group_key
        plan = Plan(source, found, candidates, numbers, rules, made, folder, *how, n_repeats, models)
        return plan, run_plan(plan)


def as_comparison(
    plan: "Plan", results: "Results", shared_groups: bool, warrants: "Mapping[str, Warrant]"
) -> Comparison:
    """Make the result, with the caveats that are shown with its scores."""
    notes = [plan.protocol.note]
    if plan.source.normalization.smooth:
        notes.append("Labels are smoothed over neighbouring spots.")
    if shared_groups:
        notes.append(f"Slides of one {plan.group_key or 'slide'} may be on both sides of a split.")
    note = " ".join(filter(None, notes))
    rules = plan.protocol
    return Comparison(
        results.scores,
        results.runs,
        rules.name,
        note,
        rules.select_on_test,
        group_key=plan.group_key,
        held_out=unseen(plan),
        genes=as_table(warrants),
    )


def _warn_of_patients(spots: Spots) -> None:
    """Warn where a column says that slides belong together, and nobody named it."""
    columns = {str(column).lower(): column for column in spots.adata.obs.columns}
    for name in _PATIENT:
        if name not in columns:
            continue
        values = spots.adata.obs[columns[name]]
        by_slide = [set(values.iloc[rows].dropna()) for rows in spots.slides.values()]
        if len(set().union(*by_slide)) < len(by_slide):
            warnings.warn(
                f"obs[{columns[name]!r}] says that slides belong together ({some(sorted(set().union(*by_slide), key=str))}), "
                f"but each slide is taken for its own group: a model is scored on slides whose {name} it has learnt from. "
                f"Pass group_key={columns[name]!r} to keep them apart.",
                UserWarning,
                stacklevel=4,
            )
            return
