"""How a model is fitted: hold spots out, choose the epoch, learn once more from all spots."""

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from gdml.models.base import Shape, SpotModel

from .config import TrainingConfig
from .data import SpotData
from .fabric import launch
from .frame import FRAMES, FrameConfig, make_module
from .loop import OnEpoch, Run, train
from .sampler import SlideSampler
from .split import Split


def check_sizes(config: Any, loop: TrainingConfig, split: Split | None, data: SpotData, *, world_size: int = 1) -> None:
    """Refuse data with which a batch would have fewer spots than k-means has groups.

    Raises
    ------
    ValueError
        If a batch can be too small.
    """
    k = getattr(config, "n_groups", 0) if getattr(config, "group_weight", 0) else 0
    rows = torch.arange(len(data)) if split is None else split.train
    sizes = loop.batch_size, loop.slides_per_batch
    smallest = SlideSampler(data.slide, rows, *sizes, torch.Generator(), world_size=world_size).smallest()
    if smallest < k:
        raise ValueError(
            f"`n_groups` is {k}, but a batch can have {smallest} spots only ({len(rows)} training spots on "
            f"{len(data.slide[rows].unique())} slides): pass config={{'n_groups': {max(2, smallest // 4)}}}, or more "
            "spots, or a larger batch_size or slides_per_batch in `training`."
        )


def fit_model(
    model_class: type[SpotModel],
    config: Any,
    data: SpotData,
    split: Split | None,
    loop: TrainingConfig,
    fabric: Fabric,
    seed: int,
    *,
    frame: FrameConfig = FRAMES["raw"],
    on_epoch: OnEpoch | None = None,
) -> tuple[SpotModel, Run, int]:
    """Choose the epoch on the split, then learn from all spots, in the processes of ``fabric``.

    Parameters
    ----------
    model_class, config
        The model.
    data
        The spots, with expression.
    split
        Spots to learn from and to choose the epoch by; None: train all epochs on all spots.
    loop
        Settings of the training.
    fabric
        Of :func:`gdml.training.fabric.make_fabric`.
    seed
        As in :func:`gdml.training.loop.train`.
    frame
        Units that the model learns in.
    on_epoch
        As in :func:`gdml.training.loop.train`; not called in processes that are started for this call.

    Returns
    -------
    The model, on the CPU; the course of the training that chose the epoch; and the epochs of the last training.
    """
    check_sizes(config, loop, split, data, world_size=fabric.world_size)
    arguments = (model_class, config, frame, data, split, loop, seed)
    if fabric.world_size == 1:
        return _choose_and_train(fabric, *arguments, on_epoch)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fitted.pt"
        fitted = launch(fabric, _fit_in_process, path, *arguments)
        return fitted if fitted is not None else _read(path, model_class, config, frame)


def _choose_and_train(
    fabric: Fabric,
    model_class: type[SpotModel],
    config: Any,
    frame: FrameConfig,
    data: SpotData,
    split: Split | None,
    loop: TrainingConfig,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> tuple[SpotModel, Run, int]:
    make = lambda: make_module(model_class, config, data.shape(), frame)
    everything = torch.arange(len(data))
    if split is None:
        module, run = train(make, data, everything, loop, fabric, seed=seed, on_epoch=on_epoch)
        return module, run, len(run.history.get("epoch", ()))
    module, run = train(
        make, data, split.train, loop, fabric, seed=seed, validation=split.validation, on_epoch=on_epoch
    )
    interrupted = run.interrupted
    if loop.refit and not interrupted:
        again = replace(loop, max_epochs=max(1, run.best_epoch))
        try:
            refitted, final = train(make, data, everything, again, fabric, seed=seed, name="refit", on_epoch=on_epoch)
            interrupted = final.interrupted
        except KeyboardInterrupt:  # before the end of its first epoch
            interrupted = True
        if not interrupted:
            return refitted, run, len(final.history.get("epoch", ()))
    if interrupted:
        run.interrupted = True
    return module, run, run.best_epoch


def _fit_in_process(fabric: Fabric, path: Path, *arguments: Any) -> tuple[SpotModel, Run, int] | None:
    """Fit in one of several processes; where they end with the call, the first leaves the result in a file."""
    fitted = _choose_and_train(fabric, *arguments)
    if torch.multiprocessing.parent_process() is None:
        return fitted
    if fabric.is_global_zero:
        module, run, n_epochs = fitted
        tensors: dict[str, Tensor | None] = {k: torch.from_numpy(v) for k, v in run.history.items()}
        pcc = None if run.validation_pcc is None else torch.from_numpy(run.validation_pcc)
        parts = (module.state_dict(), asdict(module.shape), tensors, run.best_epoch, pcc, run.interrupted, n_epochs)
        torch.save(parts, path)
    return None


def _read(path: Path, model_class: type[SpotModel], config: Any, frame: FrameConfig) -> tuple[SpotModel, Run, int]:
    weights, shape, history, best_epoch, pcc, interrupted, n_epochs = torch.load(path, weights_only=True)
    with torch.random.fork_rng(devices=[]):
        module = make_module(model_class, config, Shape(**shape), frame)
    module.load_state_dict(weights, strict=False)
    run = Run({k: v.numpy() for k, v in history.items()}, best_epoch, None if pcc is None else pcc.numpy(), interrupted)
    return module.eval(), run, n_epochs
