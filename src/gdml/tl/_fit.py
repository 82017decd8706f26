"""Train a model on paired tiles and expression."""

import math
import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import check_count, count, renamed
from gdml._marker import CACHE_DIR, check_writable
from gdml._progress import tell
from gdml._provenance import provenance_key, row_digests
from gdml._settings import settings
from gdml.spots.provenance import known_slides, plain, tile_geometry
from gdml.spots.resolve import Spots
from gdml.spots.undo import all_or_nothing

from ._features import run_missing_steps
from ._model import IN_MEMORY
from ._record import high_genes, split_record, summary, versions
from ._warrant import make_warrant, tally

if TYPE_CHECKING:
    import torch

    from gdml.encoders.device import Precision
    from gdml.training import TrainedModel, TrainingConfig
    from gdml.training.data import SpotData

_SCALE = ("order", "target_sum", "log", "smooth")


def fit(
    adata: AnnData,
    model: str = "gene-dml",
    *,
    group_key: str | None = None,
    preset: str | None = None,
    config: Mapping[str, Any] | None = None,
    training: "Mapping[str, Any] | TrainingConfig | None" = None,
    validation: Literal["auto", "group", "block"] | None = "auto",
    validation_fraction: float = 0.2,
    max_epochs: int | None = None,
    frame: "str | Mapping[str, Any] | None" = None,
    seed: int = 0,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    devices: int | list[int] | str = 1,
    strategy: str = "auto",
    num_nodes: int = 1,
    save_to: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    key_added: str = _keys.KEY,
    groups: str | None = None,
) -> "TrainedModel":
    """Train a model that predicts expression from tiles.

    Steps that were not run (:func:`gdml.pp.tile`, :func:`gdml.pp.embed`, :func:`gdml.pp.normalize`) are run
    with their defaults. The epoch is selected by the PCC(A) on spots that are held out of the training spots,
    never on a slide that is scored later; then the model is trained again on all spots for as many epochs.
    Gene-DML is blended with ridge and kernel ridge regression, with shares chosen on five such splits;
    ``config={"floor": "none"}`` is the network alone.
    If an error is raised, ``adata`` is left unchanged; features stay on disk for the next call.

    Parameters
    ----------
    adata
        Spots of the training slides, with counts. A SpatialData with one table works as well.
    model
        Name of the model, one of :func:`gdml.models.list_models`.
    group_key
        Column of ``adata.obs`` with the group (patient) of each slide. Slides of one group are held out
        together. None: each slide is its own group, so that slides of one patient can be on both sides of the split.
    preset
        Published settings of a model, by name. Of Gene-DML :cite:p:`Song2026` and TRIPLEX :cite:p:`Chung2024`:
        ``"her2st"``, ``"stnet"``, ``"skinst"``, the paper's model and training for that data set, and its
        normalisation if :func:`gdml.pp.normalize` was not run. Of ridge regression: ``"hest"``, the probe of the HEST
        benchmark. None: gdml's defaults.
    config
        Fields of the model's config to change, for instance of :class:`gdml.models.GeneDMLConfig`.
    training
        Settings of the training loop to change, or a :class:`gdml.training.TrainingConfig`.
    validation
        How spots are held out to select the epoch: ``"group"``, whole groups; ``"block"``, one end of each
        slide, with a margin so that no neighbour region of a training spot contains a held-out tile; ``"auto"``, by
        group if there are two or more, else by block; None, no spots are held out and ``max_epochs`` epochs are
        trained. For a blend, and for models in closed form, each spot is held out once: by group where ``group_key`` names three
        or more, else by slide where there are three or more, else by fifths of each slide. A blend must explain 5 % more than its
        first member to be taken, or 10 % where ``group_key`` is given and no group is held out. With None, half of the
        prediction of a blend is the network's.
    validation_fraction
        Fraction of the spots that is held out where they are held out once.
    max_epochs
        Maximum number of epochs; short for ``training={"max_epochs": ...}``.
    frame
        Units that the model learns in. ``"slide"``: features and expression in units of their slide, components of the
        expression above the noise, spots weighed by their depth; ``"raw"``: as the papers have it; or a dict of the
        fields of :class:`gdml.training.FrameConfig` that differ. None: ``"slide"`` for Gene-DML, ridge and kernel ridge
        without a preset, else ``"raw"``.
    seed
        The same seed gives the same numbers on the same device.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"`` computes in bfloat16 if the hardware supports it natively; ``"bf16"``, ``"fp32"``.
    devices, strategy, num_nodes
        Train on several devices (on the CPU: processes) or machines, as in ``lightning_fabric.Fabric``:
        ``devices=4, strategy="ddp"``. ``batch_size`` is then that of all of them together.
    save_to
        Folder for the trained model; by default one in ``gdml.settings.cache_dir``. It is checked before training that
        it can be written to.
    overwrite
        Replace a model that is saved in ``save_to``.
    key_added
        Name under which tiles, features and results are stored.
    groups
        Former name of ``group_key``.

    Returns
    -------
    The trained model. Writes, in addition to the results of missing steps:

    ``.uns['gdml']['fit']`` : dict
        ``model`` (folder of the saved model, or ``"in memory"`` if it could not be saved), ``name``, ``config``,
        ``settings``, ``frame``, ``seed``, ``split``, ``slides``, ``best_epoch``, ``n_epochs`` of the final training,
        ``shares`` of a blend (empty for other models), ``gain`` of the best blend over its first member on held-out spots,
        less a standard error, as a share of what that member explains,
        ``provenance``, ``versions``, and ``history``: ``epoch``, ``loss`` and its parts, ``val_pcc``, ``val_mse``,
        float64, one entry per epoch.

    Raises
    ------
    KeyError
        If ``group_key`` is no column of ``obs``, or coordinates are missing.
    ValueError
        If an argument is not valid; if a split by group is asked for and there is one group; if there are
        fewer spots than the model's ``n_groups``.
    TypeError
        If a number is expected and something else was passed.
    FileExistsError
        If ``save_to`` exists, and is no saved model or ``overwrite`` is False.
    OSError
        If the folder of the model cannot be written to.

    Warns
    -----
    UserWarning
        If slides of different groups are copies, as alike as two halves of one slide, or their names contradict the groups.
        If the trained model could not be saved, or raw counts are not at hand and all spots weigh the same.

    See Also
    --------
    gdml.tl.predict : Predict expression with the trained model.
    gdml.load : Read a saved model.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.datasets.synthetic()
    >>> model = gdml.tl.fit(adata, group_key="patient")  # doctest: +SKIP
    """
    from gdml.encoders.device import resolve_device, use_bf16
    from gdml.spots.leaks import warn_of_leaks
    from gdml.training import TrainedModel
    from gdml.training.candidates import resolve_settings
    from gdml.training.errors import held_out_errors
    from gdml.training.fabric import make_fabric
    from gdml.training.familiarity import Familiarity
    from gdml.training.fitting import fit_model
    from gdml.training.split import check_split_arguments, make_splits

    group_key = renamed("groups", groups, "group_key", group_key)
    spots = Spots.resolve(adata, key=key_added)
    model_class, model_config, loop, frame_config = resolve_settings(model, preset, config, training, max_epochs, frame)
    on = resolve_device(device)
    fabric = make_fabric(on, precision=precision, devices=devices, strategy=strategy, num_nodes=num_nodes)
    check_split_arguments(validation, validation_fraction)
    check_count("seed", seed, at_least=0)
    groups_of_slides = spots.groups(group_key)
    _check_target(save_to, overwrite)

    with all_or_nothing(spots.adata, key_added):
        steps = run_missing_steps(spots, "fit", "scanpy" if preset is None else model_class.preset_normalization)
        measured = spots.adata.obsm[_keys.measured(key_added)]
        normalization = spots.record(_keys.NORMALIZATION) or {}
        tiles, features = spots.record(_keys.TILES) or {}, spots.record(_keys.FEATURES) or {}
        data = _training_data(spots, measured, group_key, model_class.needs, weigh=frame_config.weights == "depth")
        slides = known_slides(spots, counts=row_digests(measured.to_numpy()))
        model_config = model_class.adapt(model_config, normalization)
        smooth = bool(normalization["smooth"])
        several = model_class.holds_out_every_spot(model_config)
        splits = make_splits(data, validation, validation_fraction, group_key, seed, several=several, smooth=smooth)
        module, run, n_epochs = fit_model(
            model_class, model_config, data, splits, loop, fabric, seed, frame=frame_config
        )
        warrant = make_warrant(spots, data, run, measured, normalization, group_key)
        calibration, spread = (
            (None, None) if run.out_of_fold is None else held_out_errors(run.out_of_fold, data, group_key)
        )
        familiarity = Familiarity.fit(data)
        if splits and splits[0].by != "block":
            layer = normalization.get("layer")
            warn_of_leaks(spots, data, groups_of_slides, group_key=group_key, layer=layer, stacklevel=2)

    record = {
        "config": asdict(model_config),
        "settings": {k: v for k, v in asdict(loop).items() if v is not None},
        "preset": preset or "default",
        "frame": asdict(frame_config),
        "seed": int(seed),
        "split": split_record(splits, group_key),
        "best_epoch": run.best_epoch,
        "n_epochs": n_epochs,
        "shares": dict(zip(model_class.members(model_config), run.shares, strict=True)) if run.shares else {},
        **({"gain": run.gain} if math.isfinite(run.gain) else {}),
        "n_spots": len(data),
        "slides": list(data.names),
        "precision": "bf16" if use_bf16(on, precision) else "fp32",
        "device": on.type,
        "versions": versions(),
    }
    scale = plain({name: normalization[name] for name in _SCALE})
    panel = tuple(map(str, measured.columns))
    about = {"model": model, **record, "panel": panel, "normalization": scale, "groups": groups_of_slides}
    about["slides"] = [slides[name]["key"] for name in data.names]
    trained = TrainedModel(
        module=module,
        name=model,
        panel=panel,
        normalization=scale,
        features=plain({k: v for k, v in features.items() if k not in ("stores", "keys", "obsm")}),
        tiles=tile_geometry(tiles),
        high_genes=high_genes(run, measured.columns),
        training=record,
        history=run.history,
        slides=slides,
        provenance=provenance_key(about),
        warrant=warrant,
        familiarity=familiarity,
        calibration=calibration,
        error_spread=spread,
    )
    # of several processes that run this line, one writes
    saved = _save(trained, save_to, overwrite) if fabric.is_global_zero else IN_MEMORY
    saved = fabric.broadcast(saved)
    if run.interrupted:
        tell("fit: interrupted; the best epoch is kept, trained without the validation spots.")
    fitted = {**record, "slides": np.array(record["slides"], dtype=object), "history": run.history}
    spots.write_record(_keys.FIT, {"model": saved, "name": model, "provenance": trained.provenance, **fitted})
    made = f" after {', '.join(steps)} with defaults" if steps else ""
    tell(
        f"fit: {model} on {count(len(data.names), 'slide')} ({count(len(data), 'spot')}){made}; "
        f"{summary(run, splits, n_epochs, model_class.members(model_config))}{tally(warrant)}; "
        f"model: {saved}"
    )
    return trained


def _check_target(save_to: str | os.PathLike[str] | None, overwrite: bool) -> None:
    """Refuse a folder that the model cannot be saved in before it is trained."""
    from gdml.training.trained import check_target

    if save_to is None:
        check_writable(settings.cache_dir / "models", "Models", f"save_to=, or {CACHE_DIR}")
    else:
        check_target(save_to, overwrite=overwrite, name="save_to")
        check_writable(Path(save_to).expanduser().absolute().parent, "Models", "save_to=")


def _training_data(
    spots: Spots, measured: pd.DataFrame, group_key: str | None, needs: Collection[str], *, weigh: bool
) -> "SpotData":
    from gdml.spots.data import panel_counts, spot_data

    values = measured.to_numpy(np.float32)
    absent = ~np.isfinite(values).all(0)
    if absent.any():
        raise ValueError(
            f"obsm[{_keys.measured(spots.key)!r}] has NaN or infinite values in {int(absent.sum())} genes; "
            "call gdml.pp.normalize(adata) again."
        )
    layer = (spots.record(_keys.NORMALIZATION) or {}).get("layer")
    counts = panel_counts(spots, measured.columns, layer) if "counts" in needs else None
    depth = _depth(spots, layer) if weigh else None
    return spot_data(spots, expression=values, counts=counts, depth=depth, group_key=group_key)[0]


def _depth(spots: Spots, layer: str | None) -> NDArray[np.float32]:
    """Total counts; all the same, with a warning, where raw counts are no longer at hand."""
    from gdml.spots.data import total_counts

    try:
        return total_counts(spots, layer)
    except (KeyError, ValueError) as error:
        warnings.warn(
            f"Spots are not weighed by their total counts, since raw counts are not at hand ({error}); "
            'frame={"weights": "equal"} says so.',
            UserWarning,
            stacklevel=4,
        )
        return np.ones(spots.adata.n_obs, np.float32)


def _save(trained: "TrainedModel", save_to: str | os.PathLike[str] | None, overwrite: bool) -> str:
    """Save a model; a failure costs the file, not the model."""
    from gdml.training.trained import weights_digest

    path = settings.cache_dir / "models" / f"{trained.name}-{weights_digest(trained.module)}"
    try:
        trained.save(path if save_to is None else Path(save_to), overwrite=save_to is None or overwrite)
    except OSError as error:
        warnings.warn(
            f"The trained model could not be saved ({error}). It is returned all the same: keep it in a variable and save "
            "it elsewhere, model.save(path).",
            UserWarning,
            stacklevel=3,
        )
    return trained.path or IN_MEMORY
