"""The training loop: epochs, validation, early stopping, averaged weights."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from gdml import metrics
from gdml.models import SpotModel

from .config import TrainingConfig
from .data import SpotData

_MOMENTUM = 0.9


@dataclass
class Run:
    """What happened in a training run.

    Parameters
    ----------
    history
        One float array per quantity, an entry an epoch: ``epoch`` (from 1), ``loss`` and its parts, and,
        where there are validation spots, ``val_pcc`` and ``val_mse``.
    best_epoch
        Epoch whose weights the model has, from 1; 0 for a closed-form model.
    validation_pcc
        (M,) PCC per gene at that epoch, averaged over slides; None without validation spots.
    interrupted
        Whether the user stopped it.
    """

    history: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    best_epoch: int = 0
    validation_pcc: NDArray[np.float64] | None = None
    interrupted: bool = False


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[Generator]:
    """Seed torch inside the block and give the run's own generator; the user's random state is untouched."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield Generator().manual_seed(seed)


def make_fabric(device: torch.device, *, bf16: bool) -> Fabric:
    """Set up one process on one device, in bf16 autocast or in float32."""
    # that mixed precision is on is in the record of the fit, and need not be told at every call
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    index = [device.index] if device.index is not None else 1
    return Fabric(accelerator=device.type, devices=index, precision="bf16-mixed" if bf16 else "32-true")


@torch.inference_mode()
def predict_rows(
    model: SpotModel, data: SpotData, rows: Tensor, fabric: Fabric, *, batch_size: int = 512
) -> tuple[Tensor, Tensor | None]:
    """Predict some spots, slide by slide: (N, M) float32 and the (N, d) embedding, in the order of ``rows``.

    Dropout is off, so the same spots give the same numbers.
    """
    model.eval()
    predictions, embeddings = [], []
    if not model.needs & {"tokens", "neighbors", "nearest"}:
        batch_size = len(rows)  # a slide passes through whole, whatever is cut from it: once is enough
    rows, back = rows.sort()
    with fabric.autocast():
        for batch in data.in_order(rows, batch_size, model.needs):
            output = model(batch.to(fabric.device))
            predictions.append(output.prediction.float().cpu())
            if output.embedding is not None:
                embeddings.append(output.embedding.float().cpu())
    back = back.argsort()
    return torch.cat(predictions)[back], torch.cat(embeddings)[back] if embeddings else None


def validate(model: SpotModel, data: SpotData, rows: Tensor, fabric: Fabric) -> tuple[NDArray[np.float64], float]:
    """PCC per gene averaged over slides, (M,), and the mean squared error on ``rows``."""
    measured = data.expression[rows].numpy()  # type: ignore[index]
    predicted = predict_rows(model, data, rows, fabric)[0].numpy()
    slide = data.slide[rows].numpy()
    pcc = np.stack([metrics.pearson_per_gene(measured[slide == s], predicted[slide == s]) for s in np.unique(slide)])
    return metrics.nan_mean(pcc, 0), float(np.square(measured - predicted).mean())


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
    """Linear rise, then a step down every ``decay_epochs``: factor of the learning rate by step."""

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / max(config.warmup_steps, 1))
        return rise * config.decay ** (step // (steps_per_epoch * config.decay_epochs))

    return factor


class Average:
    """Running average of a model's weights (Polyak, Juditsky 1992), over fewer steps early in training."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more step."""
        self.steps += 1
        weight = 1 - min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)


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
        Device and precision.
    generator
        Of the run's random numbers.
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
        self.data, self.rows, self.config, self.fabric, self.generator = data, rows, config, fabric, generator
        self.model: SpotModel = fabric.to_device(model)  # type: ignore[assignment]
        self.optimizer = make_optimizer(self.model, config)
        steps = len(list(data.cuts(rows, config.batch_size, Generator(), slides=config.slides_per_batch)))
        self.n_epochs = config.epochs(steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, learning_rate_factor(config, steps))
        self.average = Average(self.model, config.average) if config.average else None

    @property
    def result(self) -> SpotModel:
        """The model that is evaluated and kept."""
        return self.average.model if self.average else self.model  # type: ignore[return-value]

    def epoch(self) -> dict[str, float]:
        """Train one epoch; give the mean losses.

        Raises
        ------
        FloatingPointError
            If the loss is not finite.
        """
        config, model = self.config, self.model
        model.train()
        log: list[dict[str, Tensor]] = []
        for cut in self.data.cuts(self.rows, config.batch_size, self.generator, slides=config.slides_per_batch):
            batch = self.data.batch(cut, model.needs).to(self.fabric.device)
            with self.fabric.autocast():
                losses = model.loss(batch, model(batch), self.generator)
            self.optimizer.zero_grad()
            self.fabric.backward(losses["loss"])
            if config.clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            self.optimizer.step()
            self.schedule.step()
            if self.average:
                self.average.update(model)
            log.append({name: value.detach() for name, value in losses.items()})
        means = {name: float(torch.stack([row[name] for row in log]).mean()) for name in log[0]}
        if not np.isfinite(means["loss"]):
            raise FloatingPointError(
                f"The loss is {means['loss']}: lower `learning_rate` (now {config.learning_rate}) or use "
                'precision="fp32".'
            )
        return means


def train(
    make_model: Callable[[], SpotModel],
    data: SpotData,
    rows: Tensor,
    config: TrainingConfig,
    fabric: Fabric,
    *,
    seed: int,
    validation: Tensor | None = None,
    name: str = "fit",
) -> tuple[SpotModel, Run]:
    """Train a new model on ``rows``.

    With validation spots the epoch with the best validation PCC(A) is kept, and training stops when it has
    not risen for ``config.patience`` epochs; without, training runs all epochs of the config.
    Ctrl-C ends training and keeps the best epoch so far.

    Parameters
    ----------
    make_model
        Makes the untrained model; called with torch seeded.
    data
        The spots, with expression.
    rows
        (n,) rows to learn from.
    config
        Settings.
    fabric
        Device and precision.
    seed
        Of the weights, the order of the spots, dropout and the model's own draws.
    validation
        Rows to choose the epoch by.
    name
        Of the progress bar.

    Returns
    -------
    The model, on the CPU, in evaluation mode, and what happened.

    Raises
    ------
    FloatingPointError
        If the loss is not finite.
    """
    with seeded(seed, fabric.device) as generator:
        model = make_model()
        data = data.learning_from(rows)
        model.prepare(data.in_order(rows, config.batch_size, model.needs))
        if model.closed_form:
            run = Run()
            if validation is not None:
                fabric.to_device(model)
                run.validation_pcc, _ = validate(model, data, validation, fabric)
            return model.cpu().eval(), run
        trainer = Trainer(model, data, rows, config, fabric, generator)
        run = _iterate(trainer, validation, name)
    return trainer.result.cpu().eval(), run


def _iterate(trainer: Trainer, validation: Tensor | None, name: str) -> Run:
    """Run the epochs; leave the trainer's result at the best one."""
    run, log = Run(), []
    best_score, best_weights = -np.inf, None
    bar = tqdm(range(1, trainer.n_epochs + 1), desc=name, unit="epoch", disable=None, leave=False)
    try:
        for epoch in bar:
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
            bar.set_postfix({k: f"{row[k]:.3f}" for k in ("loss", "val_pcc") if k in row})
            if epoch - run.best_epoch >= trainer.config.patience:
                break
    except KeyboardInterrupt:
        if not log:
            raise
        run.interrupted = True
    finally:
        bar.close()
    if best_weights is not None:
        trainer.result.load_state_dict(best_weights)
    run.history = {k: np.array([row[k] for row in log]) for k in log[0]}
    return run
