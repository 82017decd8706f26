"""Train a model on paired tiles and expression."""

import os
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import did_you_mean
from gdml._settings import settings
from gdml.pp import embed, normalize, tile
from gdml.spots.coordinates import check_adata, spot_coordinates
from gdml.spots.undo import all_or_nothing

from ._arguments import check_target
from ._record import high_genes, plain, split_record, summary, tile_geometry, versions

if TYPE_CHECKING:
    import torch

    from gdml.encoders.device import Precision
    from gdml.training import TrainedModel, TrainingConfig
    from gdml.training.data import SpotData


def fit(
    adata: AnnData,
    model: str = "gene-dml",
    *,
    groups: str | None = None,
    preset: str | None = None,
    config: Mapping[str, Any] | None = None,
    training: "Mapping[str, Any] | TrainingConfig | None" = None,
    validation: Literal["auto", "group", "block"] | None = "auto",
    validation_fraction: float = 0.2,
    max_epochs: int | None = None,
    seed: int = 0,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    save_to: str | os.PathLike[str] | None = None,
    key_added: str = _keys.KEY,
) -> "TrainedModel":
    """Train a model that predicts expression from tiles.

    Steps that were not run (:func:`gdml.pp.tile`, :func:`gdml.pp.embed`, :func:`gdml.pp.normalize`) are run
    with their defaults. The epoch is chosen by the PCC(A) on spots that are held out of the training spots,
    never on a slide that is scored later; then the model is trained once more on all spots for as many epochs.
    An error leaves ``adata`` as it was; features that were made stay on disk for the next call.

    Parameters
    ----------
    adata
        Spots of the training slides, with counts.
    model
        Name of the model, one of :func:`gdml.models.list_models`.
    groups
        Column of ``adata.obs`` with the group (patient) of each slide. Slides of one group are held out
        together. None: each slide is its own group, which lets a patient stand on both sides.
    preset
        Published settings of a model, by name. Of Gene-DML :cite:p:`Song2026` and TRIPLEX :cite:p:`Chung2024`:
        ``"her2st"``, ``"stnet"``, ``"skinst"``, the paper's own model and training for that data set; where
        :func:`gdml.pp.normalize` was not run, the expression is then the paper's too. Of ridge regression:
        ``"hest"``, the probe of the HEST benchmark. None: our defaults.
    config
        Fields of the model's config that differ, for instance of :class:`gdml.models.GeneDMLConfig`.
    training
        Settings of the loop that differ, or a whole :class:`gdml.training.TrainingConfig`.
    validation
        How spots are held out to choose the epoch: ``"group"``, whole groups; ``"block"``, one end of each
        slide, with a margin of half a neighbour region and half a tile, so that no region of a training spot
        shows a held-out tile; ``"auto"``, by group where there are two or more, else by block; None, not at
        all: ``max_epochs`` epochs are trained.
    validation_fraction
        Share of the spots that is held out.
    max_epochs
        Epochs at most; short for ``training={"max_epochs": ...}``.
    seed
        The same seed gives the same numbers on the same device.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"`` computes in bfloat16 where the hardware does natively; ``"bf16"``, ``"fp32"``.
    save_to
        Folder for the trained model; by default one in ``gdml.settings.cache_dir``.
    key_added
        Name under which tiles, features and results are stored.

    Returns
    -------
    The trained model. Sets, besides what the missing steps do:

    ``.uns['gdml']['fit']`` : dict
        ``model`` (folder of the saved model), ``name``, ``config``, ``training``, ``seed``, ``split``,
        ``best_epoch``, ``n_epochs`` trained at last, ``versions``, and ``history``: ``epoch``, ``loss`` and its
        parts, ``val_pcc``, ``val_mse``, float64, an entry an epoch.

    Raises
    ------
    KeyError
        If ``groups`` is no column of ``obs``, or coordinates are missing.
    ValueError
        If an argument is not valid; if a split by group is asked for and there is one group; if there are
        fewer spots than the model's ``n_groups``.
    FileExistsError
        If ``save_to`` exists and is no saved model.

    See Also
    --------
    gdml.tl.predict : Predict expression with the trained model.
    gdml.load : Read a saved model.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.datasets.synthetic()
    >>> model = gdml.tl.fit(adata, groups="patient")  # doctest: +SKIP
    """
    from gdml.encoders.device import resolve_device, use_bf16
    from gdml.models.base import config_record
    from gdml.training import TrainedModel
    from gdml.training.candidates import resolve_settings
    from gdml.training.fabric import make_fabric
    from gdml.training.fitting import check_sizes, fit_model
    from gdml.training.split import check_split_arguments, make_split
    from gdml.training.trained import weights_digest

    check_adata(adata)
    spot_coordinates(adata, adata.uns.get(key_added, {}).get(_keys.TILES, {}).get("spatial_key", _keys.SPATIAL))
    model_class, model_config, settings_of_run = resolve_settings(model, preset, config, training, max_epochs)
    on = resolve_device(device)
    fabric = make_fabric(on, precision=precision)
    check_split_arguments(validation, validation_fraction)
    check_target(save_to)
    if groups is not None and groups not in adata.obs:
        raise KeyError(f"`groups` is {groups!r}, which is no column of obs. {did_you_mean(groups, adata.obs.columns)}")

    with all_or_nothing(adata, key_added):
        _run_missing_steps(adata, "scanpy" if preset is None else model_class.preset_normalization, key_added)
        measured = adata.obsm[_keys.measured(key_added)]
        data = _gather(adata, measured, groups, model_class.needs, key_added)
        model_config = model_class.adapt(model_config, adata.uns[key_added][_keys.NORMALIZATION])
        smooth = bool(adata.uns[key_added][_keys.NORMALIZATION]["smooth"])
        split = make_split(data, validation, validation_fraction, groups, seed, smooth=smooth)
        check_sizes(model_config, settings_of_run, split, data)
        module, run, n_epochs = fit_model(model_class, model_config, data, split, settings_of_run, fabric, seed)

    stored = adata.uns[key_added]
    record = {
        "config": config_record(model_config),
        "settings": {k: v for k, v in asdict(settings_of_run).items() if v is not None},
        "preset": preset or "default",
        "seed": seed,
        "split": split_record(split, groups),
        "best_epoch": run.best_epoch,
        "n_epochs": n_epochs,
        "n_spots": len(data),
        "slides": list(data.names),
        "precision": "bf16" if use_bf16(on, precision) else "fp32",
        "device": on.type,
        "versions": versions(),
    }
    trained = TrainedModel(
        module=module,
        name=model,
        panel=tuple(measured.columns),
        normalization=plain({k: stored[_keys.NORMALIZATION][k] for k in ("order", "target_sum", "log", "smooth")}),
        features=plain({k: v for k, v in stored[_keys.FEATURES].items() if k not in ("stores", "obsm")}),
        tiles=tile_geometry(stored[_keys.TILES]),
        high_genes=high_genes(run, measured.columns),
        training=record,
        history=run.history,
    )
    path = Path(save_to) if save_to is not None else settings.cache_dir / "models" / f"{model}-{weights_digest(module)}"
    trained.save(path, overwrite=True)
    adata.uns[key_added] = {
        **stored,
        _keys.FIT: {
            "model": str(path.expanduser().absolute()),
            "name": model,
            **{k: v for k, v in record.items() if k != "slides"},
            "slides": np.array(record["slides"], dtype=object),
            "history": run.history,
        },
    }
    logg.info(f"fit: {trained!r}, {summary(run, split, n_epochs)}; saved in {path}")
    return trained


def _run_missing_steps(adata: AnnData, scale: str, key: str) -> None:
    stored = adata.uns.get(key, {})
    if _keys.TILES not in stored:
        logg.info("fit: running gdml.pp.tile(adata) with its defaults")
        tile(adata, key_added=key)
    # counts are checked before hours are spent on features
    if _keys.measured(key) not in adata.obsm or _keys.NORMALIZATION not in adata.uns[key]:
        logg.info(f"fit: running gdml.pp.normalize(adata, normalization={scale!r})")
        normalize(adata, normalization=scale, library_key=adata.uns[key][_keys.TILES]["library_key"], key_added=key)
    if _keys.FEATURES not in adata.uns[key]:
        logg.info("fit: running gdml.pp.embed(adata) with its defaults")
        embed(adata, key_added=key)


def _gather(adata: AnnData, measured: Any, groups: str | None, needs: Collection[str], key: str) -> "SpotData":
    from gdml.spots.data import panel_counts, spot_data
    from gdml.spots.resolve import Spots

    values = measured.to_numpy(np.float32)
    absent = ~np.isfinite(values).all(0)
    if absent.any():
        raise ValueError(
            f"obsm[{_keys.measured(key)!r}] has NaN or infinite values in {int(absent.sum())} genes; "
            "call gdml.pp.normalize(adata) again."
        )
    layer = adata.uns[key][_keys.NORMALIZATION].get("layer")
    counts = panel_counts(adata, measured.columns, layer) if "counts" in needs else None
    return spot_data(Spots.resolve(adata, key=key), expression=values, counts=counts, group_key=groups)[0]
