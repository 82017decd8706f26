"""The training loop: epochs, validation, early stopping, averaged weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from gdml import metrics
from gdml._progress import bar
from gdml.models import SpotModel
from gdml.models.batch import Batch

from .config import TrainingConfig
from .data import Batches, SpotData
from .memory import kept_memory
from .out_of_fold import OutOfFold
from .sampler import SlideSampler, balanced_counts

#: Called after an epoch with its number, the number of epochs at most, and its losses and scores by name.
OnEpoch = Callable[[int, int, dict[str, float]], None]

_MOMENTUM = 0.9
_BATCH = 512  # spots of a batch in prediction


@dataclass
class Run:
    """Course of a training run.

    Parameters
    ----------
    history
        One float array per quantity, one entry per epoch: ``epoch`` (from 1), ``loss`` and its parts, and, where there
        are validation spots, ``val_pcc`` and ``val_mse``.
    best_epoch
        Epoch of the model's weights, from 1; 0 for a model in closed form.
    validation_pcc
        (M,) PCC per gene of the held-out spots, averaged over slides; None without validation spots.
    interrupted
        Whether the user stopped the run.
    shares
        Shares of the members of a blend, the floor's first; empty for other models.
    gain
        Of the best blend over the floor, see :func:`gdml.training.shares.certain_gain`; NaN for other models.
    out_of_fold
        Predictions of held-out spots; None without splits, or where the training was interrupted.
    """

    history: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    best_epoch: int = 0
    validation_pcc: NDArray[np.float64] | None = None
    interrupted: bool = False
    shares: tuple[float, ...] = ()
    gain: float = float("nan")
    out_of_fold: OutOfFold | None = None


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[Generator]:
    """Seed torch inside the block and give the run's own generator; the user's random state is untouched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield Generator().manual_seed(seed)


@torch.inference_mode()
def predict(
    module: SpotModel,
    data: SpotData,
    fabric: Fabric,
    *,
    rows: Tensor | None = None,
    batch_size: int = _BATCH,
    network_alone: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Predict spots, slide by slide, in time that is linear in their number.

    Parameters
    ----------
    module
        On the device of ``fabric``; dropout is off, so the same spots give the same numbers.
    data
        The spots.
    fabric
        Device and precision.
    rows
        (N,) rows of ``data``; None for all.
    batch_size
        Spots of a batch. The context of a slide is read, and what models keep of it is computed, once.
    network_alone
        Predict by the last member of a blend.

    Returns
    -------
    predictions : float32, (N, M)
        In the order of ``rows``.
    embedding : float32, (N, d)
        In the shared space; None where the model has none.
    """
    module.eval()
    data = data.in_frame(module.frame)
    rows = torch.arange(len(data)) if rows is None else rows
    needs = module.network_needs if network_alone else module.needs
    if not needs & {"tokens", "neighbors", "nearest", "summary"}:
        batch_size = max(batch_size, data.max_context)  # spots are light then
    ordered, places = rows.sort()
    found: dict[str, Tensor] = {}
    start = 0
    with fabric.autocast():
        for batch in data.in_order(ordered, batch_size, needs, fabric.device):
            output = module(batch)
            here = places[start : start + len(batch)]
            start += len(batch)
            prediction = output.prediction if module.frame is None else module.frame.inverse(output.prediction)
            for name, part in (("prediction", prediction), ("embedding", output.embedding)):
                if part is None:
                    continue
                if name not in found:  # written in place: pieces joined at the end would need twice the memory
                    found[name] = torch.empty(len(rows), part.shape[1], dtype=torch.float32)
                found[name][here] = part.float().cpu()
    return found.get("prediction"), found.get("embedding")  # type: ignore[return-value]


def validate(model: SpotModel, data: SpotData, rows: Tensor, fabric: Fabric) -> tuple[NDArray[np.float64], float]:
    """PCC per gene averaged over slides, (M,), and the mean squared error on ``rows``; of a blend, those of the network.

    The first process computes them for all.
    """
    found = None
    if fabric.is_global_zero:
        measured = data.expression[rows].numpy()  # type: ignore[index]
        predicted = predict(model, data, fabric, rows=rows, network_alone=True)[0].numpy()
        slide = data.slide[rows].numpy()
        by_slide = [metrics.pearson_per_gene(measured[slide == s], predicted[slide == s]) for s in np.unique(slide)]
        found = metrics.nan_mean(np.stack(by_slide), 0), float(np.square(measured - predicted).mean())
    return fabric.broadcast(found)  # type: ignore[return-value]


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam, SGD with momentum 0.9, or AdamW that decays matrices alone."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adam":
        return torch.optim.Adam(learnt, lr=config.learning_rate, fused=True)
    if config.optimizer == "sgd":
        return torch.optim.SGD(learnt, lr=config.learning_rate, momentum=_MOMENTUM)
    groups = [
        {"params": [p for p in learnt if p.ndim == 2], "weight_decay": config.weight_decay},
        {"params": [p for p in learnt if p.ndim != 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def learning_rate_factor(config: TrainingConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Factor of the learning rate by step: linear rise, then a step down every ``decay_epochs``."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / max(config.warmup_steps, 1))
        return rise * config.decay ** (step // (steps_per_epoch * config.decay_epochs))

    return factor


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Average a model's weights as it trains (Polyak, Juditsky 1992), over fewer steps early in training.

    Buffers are those of the last step.
    """

    @torch.no_grad()
    def update(average: Any, weights: Any, n_averaged: Any) -> None:
        steps = int(n_averaged)
        torch._foreach_lerp_(average, weights, 1 - min(decay, steps / (steps + 10)))

    averaged = AveragedModel(model, multi_avg_fn=update)
    averaged.update_parameters(model)  # the untrained weights are the first that are averaged
    return averaged


@dataclass
class _Reader(Dataset[Batch]):
    """Batches of a data set, as a DataLoader asks for them."""

    data: SpotData
    needs: frozenset[str]

    def __getitems__(self, rows: Tensor) -> Batch:
        return self.data.batch(rows, self.needs)


class _Step(nn.Module):
    """The loss of a model as one call, so that every use of its weights passes through Fabric's wrapper."""

    def __init__(self, model: SpotModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, read: Callable[[], Batch], generator: Generator) -> dict[str, Tensor]:
        """Losses by name, of the batch that ``read`` returns: Fabric would cast targets and counts to bfloat16."""
        batch = read()
        return self.model.loss(batch, self.model(batch), generator)


class Trainer:
    """A model with its optimiser and averaged weights: one epoch at a time.

    Parameters
    ----------
    model
        Prepared, on the CPU.
    data
        The spots, with expression.
    rows
        (n,) rows to learn from.
    config
        Settings.
    fabric
        Devices, processes and precision.
    generator
        Source of the run's random numbers.
    """

    def __init__(
        self,
        model: SpotModel,
        data: SpotData,
        rows: Tensor,
        config: TrainingConfig,
        fabric: Fabric,
        generator: Generator,
    ) -> None:
        self.data, self.config, self.fabric, self.generator = data, config, fabric, generator
        # what models draw differs between processes, but all must draw the same batches
        draws = generator if fabric.world_size == 1 else Generator().manual_seed(generator.initial_seed())
        sizes = config.batch_size, config.slides_per_batch
        counts = balanced_counts(data.slide, rows, data.groups) if config.balance else None
        self.sampler = SlideSampler(data.slide, rows, *sizes, draws, fabric.global_rank, fabric.world_size, counts)
        loader = DataLoader(
            _Reader(data, model.network_needs),
            batch_sampler=self.sampler,  # type: ignore[arg-type]
            collate_fn=_as_it_is,
            num_workers=config.num_workers,
            generator=Generator(),  # leaves torch's own, which dropout draws from, alone
        )
        self.loader = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
        self.model: SpotModel = fabric.to_device(model)  # type: ignore[assignment]
        optimizer = make_optimizer(self.model, config)
        steps = self.sampler.n_batches()
        self.n_epochs = config.epochs(steps)
        self.schedule = LambdaLR(optimizer, learning_rate_factor(config, steps))
        self.average = average_weights(self.model, config.average) if config.average else None
        self.step, self.optimizer = fabric.setup(_Step(self.model), optimizer)

    @property
    def result(self) -> SpotModel:
        """The model that is evaluated and kept."""
        return self.average.module if self.average else self.model  # type: ignore[return-value]

    def epoch(self) -> dict[str, float]:
        """Train one epoch, and return the mean losses.

        Of several processes, each counts by its share of a batch: losses that are means over spots, and their
        gradients, are those of the whole batch. Losses that compare the spots of a batch see those of the process.

        Raises
        ------
        FloatingPointError
            If the loss is not finite.
        """
        config, fabric = self.config, self.fabric
        self.model.train()
        log: list[dict[str, Tensor]] = []
        for batch in self.loader:
            losses = self.step(partial(_as_it_is, batch), self.generator)
            if fabric.world_size > 1:
                n = torch.tensor(float(len(batch)), device=fabric.device)
                share: Any = n / fabric.all_reduce(n.clone(), reduce_op="mean")  # type: ignore[operator]
                losses = {name: value * share for name, value in losses.items()}
            self.optimizer.zero_grad()
            fabric.backward(losses["loss"])
            if config.clip:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
            self.optimizer.step()
            self.schedule.step()
            if self.average:
                self.average.update_parameters(self.model)
            log.append({name: value.detach() for name, value in losses.items()})
        means = torch.stack([torch.stack([row[name] for row in log]).mean() for name in log[0]])
        if fabric.world_size > 1:
            means = fabric.all_reduce(means, reduce_op="mean")  # type: ignore[assignment]
        found = dict(zip(log[0], means.tolist(), strict=True))
        if not np.isfinite(found["loss"]):
            raise FloatingPointError(
                f"The loss is {found['loss']}: lower `learning_rate` (now {config.learning_rate}) or use "
                'precision="fp32".'
            )
        return found


def _as_it_is(batch: Any) -> Any:
    return batch


def train(
    make_model: Callable[[], SpotModel],
    data: SpotData,
    rows: Tensor,
    config: TrainingConfig,
    fabric: Fabric,
    *,
    seed: int,
    validation: Tensor | None = None,
    solve_only: bool = False,
    name: str = "fit",
    on_epoch: OnEpoch | None = None,
) -> tuple[SpotModel, Run]:
    """Train a new model on ``rows``.

    With validation spots the epoch with the best validation PCC(A) is kept, and training stops when it has not risen
    for ``config.patience`` epochs; without, training runs all epochs of the config. Ctrl-C ends training and keeps
    the best epoch so far.

    Parameters
    ----------
    make_model
        Makes the untrained model, with the frame that it is to learn in, if any; called with torch seeded.
    data
        The spots, with expression.
    rows
        (n,) rows to learn from.
    config
        Settings.
    fabric
        Devices, processes and precision.
    seed
        Of the weights, the order of the spots, dropout and the model's own draws.
    validation
        Rows to choose the epoch by.
    solve_only
        Do what is in closed form, and no training step.
    name
        Of the progress bar.
    on_epoch
        Called after each epoch with its number, the number of epochs at most, and its losses and scores; shows the
        progress in place of a bar.

    Returns
    -------
    The model, on the CPU, in evaluation mode, and the course of its training.

    Raises
    ------
    FloatingPointError
        If the loss is not finite.
    """
    with seeded(seed, fabric.device) as generator, kept_memory(fabric.device):
        model = make_model()
        data = data.learning_from(rows)
        if model.frame is not None:
            data = data.fit_frame(model.frame, model.needs)
        model.prepare(Batches(data, rows, config.batch_size, model.needs))
        if model.closed_form or solve_only:
            run = Run()
            if validation is not None:
                fabric.to_device(model)
                run.validation_pcc, _ = validate(model, data, validation, fabric)
            return model.cpu().eval(), run
        if fabric.world_size > 1:
            torch.manual_seed(seed + fabric.global_rank)  # dropout differs between processes
        trainer = Trainer(model, data, rows, config, fabric, generator)
        if on_epoch is not None or not fabric.is_global_zero:
            run = _iterate(trainer, validation, on_epoch or _silent)
        else:
            with bar(trainer.n_epochs, desc=name, unit="epoch", leave=False) as progress:

                def show(epoch: int, n_epochs: int, row: dict[str, float]) -> None:
                    progress.set_postfix({k: f"{row[k]:.3f}" for k in ("loss", "val_pcc") if k in row}, refresh=False)
                    progress.update()

                run = _iterate(trainer, validation, show)
    return trainer.result.cpu().eval(), run


def _silent(epoch: int, n_epochs: int, row: dict[str, float]) -> None:
    """Show nothing."""


def _iterate(trainer: Trainer, validation: Tensor | None, on_epoch: OnEpoch) -> Run:
    """Run the epochs; leave the trainer's result at the best one."""
    run, log = Run(), []
    best_score, best_weights = -np.inf, None
    try:
        for epoch in range(1, trainer.n_epochs + 1):
            row = {"epoch": float(epoch), **trainer.epoch()}
            if validation is None:
                run.best_epoch = epoch
            else:
                pcc, row["val_mse"] = validate(trainer.result, trainer.data, validation, trainer.fabric)
                row["val_pcc"] = metrics.pcc_a(pcc)
                # an untrained model can predict constants, which have no PCC
                if np.nan_to_num(row["val_pcc"], nan=-1.0) > best_score:
                    best_score = np.nan_to_num(row["val_pcc"], nan=-1.0)
                    best_weights = {k: v.clone() for k, v in trainer.result.state_dict().items()}
                    run.best_epoch, run.validation_pcc = epoch, pcc
            log.append(row)
            on_epoch(epoch, trainer.n_epochs, row)
            if epoch - run.best_epoch >= trainer.config.patience:
                break
    except KeyboardInterrupt:
        if not log:
            raise
        run.interrupted = True
    if best_weights is not None:
        trainer.result.load_state_dict(best_weights)
    run.history = {k: np.array([row[k] for row in log]) for k in log[0]}
    return run
