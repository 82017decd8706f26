"""Train a model on paired tiles and expression."""

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from gdml import _keys, metrics
from gdml._errors import did_you_mean
from gdml._settings import settings
from gdml.pp import embed, normalize, tile
from gdml.pp._validate import check_adata, spot_coordinates

from ._undo import all_or_nothing

if TYPE_CHECKING:
    import torch

    from gdml.encoders._device import Precision
    from gdml.training import Run, Split, SpotData, TrainedModel, TrainingConfig

_N_HIGH = 50


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
        Name of the model: ``"gene-dml"`` or ``"ridge"``.
    groups
        Column of ``adata.obs`` with the group (patient) of each slide. Slides of one group are held out
        together. None: each slide is its own group, which lets a patient stand on both sides.
    preset
        ``"her2st"``, ``"stnet"`` or ``"skinst"``: the paper's own model and training recipe for that data set
        :cite:p:`Song2026`. Where :func:`gdml.pp.normalize` was not run, the expression is then the paper's too.
        None: our defaults.
    config
        Fields of the model's config that differ (see :class:`gdml.models.GeneDMLConfig`).
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
    from gdml.encoders._device import resolve_device, use_bf16
    from gdml.models import config_record
    from gdml.training import SpotData, TrainedModel, make_fabric, weights_digest

    check_adata(adata)
    spot_coordinates(adata, adata.uns.get(key_added, {}).get(_keys.TILES, {}).get("spatial_key", _keys.SPATIAL))
    model_class, model_config, settings_of_run = _settings(model, preset, config, training, max_epochs)
    on = resolve_device(device)
    fabric = make_fabric(on, bf16=use_bf16(on, precision))
    _check_split_arguments(validation, validation_fraction)
    _check_target(save_to)
    if groups is not None and groups not in adata.obs:
        raise KeyError(f"`groups` is {groups!r}, which is no column of obs. {did_you_mean(groups, adata.obs.columns)}")

    with all_or_nothing(adata, key_added):
        _run_missing_steps(adata, preset, key_added)
        measured = adata.obsm[_keys.measured(key_added)]
        data: SpotData = _gather(adata, measured, groups, key_added)
        n_side = int(adata.uns[key_added][_keys.TILES]["n_side"])
        model_config = model_class.adapt(model_config, adata.uns[key_added][_keys.NORMALIZATION])
        split = _split(data, validation, validation_fraction, groups, seed, n_side)
        _check_sizes(model_config, settings_of_run, split, data)
        module, run, n_epochs = _train(model_class, model_config, data, split, settings_of_run, fabric, seed)

    stored = adata.uns[key_added]
    record = {
        "config": config_record(model_config),
        "settings": {k: v for k, v in asdict(settings_of_run).items() if v is not None},
        "preset": preset or "default",
        "seed": seed,
        "split": _split_record(split, groups),
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
        normalization=_plain({k: stored[_keys.NORMALIZATION][k] for k in ("order", "target_sum", "log", "smooth")}),
        features=_plain({k: v for k, v in stored[_keys.FEATURES].items() if k not in ("stores", "obsm")}),
        tiles=_tile_geometry(stored[_keys.TILES]),
        high_genes=_high_genes(run, measured.columns),
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
    logg.info(f"fit: {trained!r}, {_summary(run, split, n_epochs)}; saved in {path}")
    return trained


def _settings(
    name: str,
    preset: str | None,
    config: Mapping[str, Any] | None,
    training: "Mapping[str, Any] | TrainingConfig | None",
    max_epochs: int | None,
) -> tuple[Any, Any, "TrainingConfig"]:
    """Class of the model, its config, and the loop's settings."""
    from gdml.models import get_model, make_config
    from gdml.training import TrainingConfig, make_training_config

    model_class = get_model(name)
    base = None
    if preset is not None:
        if preset not in model_class.presets:
            known = model_class.presets or {}
            raise ValueError(
                f"`preset` is {preset!r}. {did_you_mean(preset, known)}"
                if known
                else f"`preset` is {preset!r}, but the model {name!r} has none."
            )
        base = model_class.presets[preset]
    if isinstance(training, TrainingConfig):
        loop = training
    else:
        loop = make_training_config(preset, dict(training or {}))
    if max_epochs is not None:
        loop = replace(loop, max_epochs=max_epochs)
    return model_class, make_config(model_class, base, dict(config or {})), loop


def _check_split_arguments(validation: str | None, fraction: float) -> None:
    if validation not in (None, "auto", "group", "block"):
        raise ValueError(f"`validation` is {validation!r}. {did_you_mean(str(validation), ('auto', 'group', 'block'))}")
    if not 0 < fraction < 1:
        raise ValueError(f"`validation_fraction` must lie between 0 and 1, found {fraction!r}.")


def _check_target(save_to: str | os.PathLike[str] | None) -> None:
    """Refuse a folder that is no saved model before hours are spent, not after."""
    if save_to is not None and Path(save_to).expanduser().exists():
        if not (Path(save_to).expanduser() / "model.json").is_file():
            raise FileExistsError(f"`save_to` {str(save_to)!r} exists and is no saved model; choose another folder.")


def _run_missing_steps(adata: AnnData, preset: str | None, key: str) -> None:
    stored = adata.uns.get(key, {})
    if _keys.TILES not in stored:
        logg.info("fit: running gdml.pp.tile(adata) with its defaults")
        tile(adata, key_added=key)
    # counts are checked before hours are spent on features
    if _keys.measured(key) not in adata.obsm or _keys.NORMALIZATION not in adata.uns[key]:
        scale = "scanpy" if preset is None else "paper"
        logg.info(f"fit: running gdml.pp.normalize(adata, normalization={scale!r})")
        normalize(adata, normalization=scale, library_key=adata.uns[key][_keys.TILES]["library_key"], key_added=key)
    if _keys.FEATURES not in adata.uns[key]:
        logg.info("fit: running gdml.pp.embed(adata) with its defaults")
        embed(adata, key=key)


def _gather(adata: AnnData, measured: Any, groups: str | None, key: str) -> "SpotData":
    from ._spots import slide_groups, spot_data

    values = measured.to_numpy(np.float32)
    absent = ~np.isfinite(values).all(0)
    if absent.any():
        raise ValueError(
            f"obsm[{_keys.measured(key)!r}] has NaN or infinite values in {int(absent.sum())} genes; "
            "call gdml.pp.normalize(adata) again."
        )
    return spot_data(adata, key=key, expression=values, groups=slide_groups(adata, groups, key=key))[0]


def _split(
    data: "SpotData", validation: str | None, fraction: float, groups: str | None, seed: int, n_side: int
) -> "Split | None":
    """Split the training spots as asked."""
    from torch import Generator

    from gdml.training import split_by_block, split_by_group

    if validation is None:
        return None
    generator = Generator().manual_seed(seed)
    n_groups = len(set(data.groups))
    if validation == "group" and n_groups < 2:
        raise ValueError(
            f'`validation="group"` needs two groups or more; {groups or "the slides"!r} gives one '
            f'({data.groups[0]!r}, {len(data.names)} slides). Use validation="block".'
        )
    if validation == "group" or (validation == "auto" and n_groups > 1):
        return split_by_group(data, fraction, generator)
    return split_by_block(data, fraction, (n_side + 1) / 2, generator)


def _check_sizes(config: Any, loop: "TrainingConfig", split: "Split | None", data: "SpotData") -> None:
    """Fewer spots in a batch than k-means has groups: say so before training."""
    import torch

    k = getattr(config, "n_groups", 0) if getattr(config, "group_weight", 0) else 0
    rows = torch.arange(len(data)) if split is None else split.train
    smallest = data.smallest_cut(rows, loop.batch_size, slides=loop.slides_per_batch)
    if smallest < k:
        raise ValueError(
            f"`n_groups` is {k}, but a batch can have {smallest} spots only ({len(rows)} training spots on "
            f"{len(data.slide[rows].unique())} slides): pass config={{'n_groups': {max(2, smallest // 4)}}}, or more "
            "spots, or a larger batch_size or slides_per_batch in `training`."
        )


def _train(
    model_class: Any,
    config: Any,
    data: "SpotData",
    split: "Split | None",
    loop: "TrainingConfig",
    fabric: Any,
    seed: int,
) -> tuple[Any, "Run", int]:
    """Choose the epoch on the split, then learn from all spots; the last number is the epochs of that."""
    import torch

    from gdml.models import Shape
    from gdml.training import train

    n_side = round(data.neighbors.shape[1] ** 0.5)
    n_genes = 0 if data.expression is None else data.expression.shape[1]
    shape = Shape(data.tokens.shape[2], data.tokens.shape[1], n_side, n_genes)
    make = lambda: model_class(config, shape)
    everything = torch.arange(len(data))
    if split is None:
        module, run = train(make, data, everything, loop, fabric, seed=seed)
        return module, run, len(run.history.get("epoch", ()))
    module, run = train(make, data, split.train, loop, fabric, seed=seed, validation=split.validation)
    if run.interrupted:
        logg.warning("fit: interrupted; the best epoch so far is kept, trained without the validation spots.")
    if not loop.refit or run.interrupted:
        return module, run, run.best_epoch
    again = replace(loop, max_epochs=max(1, run.best_epoch))
    try:
        refitted, final = train(make, data, everything, again, fabric, seed=seed, name="refit")
        interrupted = final.interrupted
    except KeyboardInterrupt:  # before its first epoch was over
        interrupted = True
    if interrupted:
        logg.warning("fit: interrupted; the best epoch is kept, trained without the validation spots.")
        return module, run, run.best_epoch
    return refitted, run, len(final.history.get("epoch", ()))


def _high_genes(run: "Run", panel: Any) -> tuple[str, ...]:
    if run.validation_pcc is None:
        return ()
    return tuple(str(panel[i]) for i in metrics.top_genes(run.validation_pcc[None], _N_HIGH))


def _split_record(split: "Split | None", groups: str | None) -> dict[str, Any]:
    if split is None:
        return {"by": "none"}
    return {
        "by": split.by,
        "groups": groups or "slide",
        "held_out": ", ".join(split.held_out),
        "n_train": len(split.train),
        "n_validation": len(split.validation),
    }


def _tile_geometry(tiles: Any) -> dict[str, Any]:
    um = float(tiles["tile_um"])
    return {
        "tile_um": um if np.isfinite(um) else None,
        "tile_px": int(tiles["tile_px"]),
        "n_side": int(tiles["n_side"]),
    }


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Python numbers and strings in place of numpy's, which h5ad gives back and JSON refuses."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in record.items()}


def _summary(run: "Run", split: "Split | None", n_epochs: int) -> str:
    if split is None or "val_pcc" not in run.history:
        return f"{n_epochs} epochs" if n_epochs else "solved"
    best = run.history["val_pcc"][run.best_epoch - 1]
    return f"validation PCC(A) {best:.3f} at epoch {run.best_epoch} (split by {split.by})"


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {name: version(name) for name in ("gdml", "anndata", "numpy", "torch", "timm")}
    return {"python": platform.python_version(), **found}
