"""How a model is fitted: hold spots out, choose the epoch, learn once more from all spots."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from gdml.models.base import Shape, SpotModel
from gdml.models.floor import even_shares

from .config import TrainingConfig
from .data import SpotData
from .fabric import launch
from .frame import FRAMES, Frame, FrameConfig, make_module
from .loop import OnEpoch, Run, train
from .out_of_fold import OutOfFold, predict_members
from .sampler import SlideSampler, balanced_counts
from .shares import Products, certain_gain, choose_shares, held_out_products, is_hopeless, least_gain
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
    counts = balanced_counts(data.slide, rows, data.groups) if loop.balance else None
    sampler = SlideSampler(data.slide, rows, *sizes, torch.Generator(), world_size=world_size, counts=counts)
    smallest = sampler.smallest()
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
    splits: Sequence[Split],
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
    splits
        Spots to learn from and to choose by. One chooses the epoch. Of several, each chooses an epoch, of which the median is
        taken, and all together the shares of a blend. None of them: train all epochs on all spots.
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
    The model, on the CPU; the course of the training that chose the epoch, with the out-of-fold predictions; and the
    epochs of the last training.
    """
    for split in splits or (None,):
        check_sizes(config, loop, split, data, world_size=fabric.world_size)
    arguments = (model_class, config, frame, data, splits, loop, seed)
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
    splits: Sequence[Split],
    loop: TrainingConfig,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> tuple[SpotModel, Run, int]:
    make = lambda: make_module(model_class, config, data.shape(), frame)
    everything = torch.arange(len(data))
    if not splits:
        module, run = train(make, data, everything, loop, fabric, seed=seed, on_epoch=on_epoch)
        return module, run, len(run.history.get("epoch", ()))
    members = model_class.members(config)
    targets = _targets(data, frame) if members else None

    runs: list[Run] = []
    modules: list[SpotModel] = []
    products: list[Products] = []
    held_out: list[Tensor] = []
    hopeless = False
    for split in splits:
        options: dict[str, Any] = (
            {"solve_only": True} if hopeless else {"validation": split.validation, "on_epoch": on_epoch}
        )
        module, run = train(make, data, split.train, loop, fabric, seed=seed, **options)
        if not hopeless:
            runs.append(run)
            modules.append(module)
        if run.interrupted:
            break
        predicted = _predict_held_out(module, data, split, fabric)
        held_out.append(predicted if module.frame is None else module.frame.inverse(predicted))
        if targets is not None:
            products.append(held_out_products(predicted, data, targets, split))
            # the other splits are then for the members in closed form, which cost little
            hopeless = hopeless or is_hopeless(Products.join(products), least_gain(split))
    # without a refit, what the first split learnt is kept
    module, run, interrupted = modules[0], runs[0], runs[-1].interrupted
    n_epochs = run.best_epoch
    if loop.refit and not interrupted:
        again = replace(loop, max_epochs=max(1, int(np.median([one.best_epoch for one in runs]))))
        try:
            refitted, final = train(make, data, everything, again, fabric, seed=seed, name="refit", on_epoch=on_epoch)
            interrupted = final.interrupted
        except KeyboardInterrupt:  # before the end of its first epoch
            interrupted = True
        if not interrupted:
            module, n_epochs = refitted, len(final.history.get("epoch", ()))
    run.interrupted = interrupted
    shares = torch.ones(1)
    if products:
        found = Products.join(products)
        shares = choose_shares(found, least_gain(splits[0]), without_last=hopeless)
        run.gain = certain_gain(found, without_last=hopeless)
        module.take_shares(shares)
        run.shares = tuple(round(share, 6) for share in shares.tolist())
    elif members:  # interrupted before there was anything to choose by
        module.take_shares(even_shares(len(members)))
    if len(held_out) == len(splits):
        run.out_of_fold = OutOfFold.join(held_out, splits, shares, data)
        run.validation_pcc = run.out_of_fold.pcc(data)
    return module, run, n_epochs


def _targets(data: SpotData, frame: FrameConfig) -> Tensor:
    """Give what is to be learnt of all spots, (n, M), in a frame that is fitted to all of them."""
    if frame == FRAMES["raw"]:
        return data.expression  # type: ignore[return-value]
    return data.fit_frame(Frame(frame, data.shape()), ()).targets(torch.arange(len(data)))  # type: ignore[return-value]


def _predict_held_out(module: SpotModel, data: SpotData, split: Split, fabric: Fabric) -> Tensor:
    try:
        return predict_members(fabric.to_device(module), data, split.validation, fabric)  # type: ignore[arg-type]
    finally:
        module.cpu()


def _fit_in_process(fabric: Fabric, path: Path, *arguments: Any) -> tuple[SpotModel, Run, int] | None:
    """Fit in one of several processes; where they end with the call, the first leaves the result in a file."""
    fitted = _choose_and_train(fabric, *arguments)
    if torch.multiprocessing.parent_process() is None:
        return fitted
    if fabric.is_global_zero:
        module, run, n_epochs = fitted
        tensors: dict[str, Tensor | None] = {k: torch.from_numpy(v) for k, v in run.history.items()}
        pcc = None if run.validation_pcc is None else torch.from_numpy(run.validation_pcc)
        shares = torch.tensor(run.shares)
        out_of_fold = None if run.out_of_fold is None else vars(run.out_of_fold)
        kept = (tensors, run.best_epoch, pcc, run.interrupted, shares, run.gain, out_of_fold)
        parts = (module.state_dict(), asdict(module.shape), kept, n_epochs)
        torch.save(parts, path)
    return None


def _read(path: Path, model_class: type[SpotModel], config: Any, frame: FrameConfig) -> tuple[SpotModel, Run, int]:
    weights, shape, kept, n_epochs = torch.load(path, weights_only=True)
    history, best_epoch, pcc, interrupted, shares, gain, out_of_fold = kept
    with torch.random.fork_rng(devices=[]):
        module = make_module(model_class, config, Shape(**shape), frame)
    module.load_state_dict(weights, strict=False)
    values = {k: v.numpy() for k, v in history.items()}
    run = Run(
        values,
        best_epoch,
        None if pcc is None else pcc.numpy(),
        interrupted,
        tuple(shares.tolist()),
        gain,
        None if out_of_fold is None else OutOfFold(**out_of_fold),
    )
    return module.eval(), run, n_epochs
