"""How a model is trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from gdml._errors import check_fields, did_you_mean

_EPOCHS, _STEPS = 25, 150  # what max_epochs=None stands for


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the training loop; those of the model are in its own config.

    Parameters
    ----------
    max_epochs
        Epochs at most. None: 25, or as many as 150 steps take where that is more, since an epoch of a few hundred
        spots has few steps.
    patience
        Epochs without a better validation PCC after which training stops.
    batch_size
        Spots per step, over all processes.
    slides_per_batch
        Slides that the spots of a batch come from, at most; the context of each passes through the slide branch.
    balance
        Draw about as many spots of each group (``group_key``; else of each slide) in an epoch, so that a patient with many
        slides does not outweigh the others; no spot is drawn more than twice.
    optimizer
        ``"adamw"``, ``"adam"``, or ``"sgd"`` with momentum 0.9.
    learning_rate
        Reached after ``warmup_steps``.
    warmup_steps
        Steps over which the learning rate rises linearly.
    decay_epochs, decay
        The learning rate is multiplied by ``decay`` every ``decay_epochs`` (1: constant).
    weight_decay
        Of AdamW, on matrices alone; biases, norms and position tables are not decayed.
    clip
        Largest norm of the gradient; 0 for no limit.
    average
        Decay of the running average of the weights that is evaluated and kept (Polyak, Juditsky 1992; early in
        training the average is shorter); 0 keeps the last weights.
    refit
        After the epoch is chosen on the validation split, train once more on all training spots for that many epochs.
    num_workers
        Processes that read batches ahead; 0 reads them in the training process. The numbers are the same.
    """

    max_epochs: int | None = None
    patience: int = 10
    batch_size: int = 128
    slides_per_batch: int = 8
    balance: bool = False
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: float = 3e-4
    warmup_steps: int = 10
    decay_epochs: int = 1
    decay: float = 1.0
    weight_decay: float = 0.05
    clip: float = 1.0
    average: float = 0.98
    refit: bool = True
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name in ("max_epochs", "patience", "batch_size", "slides_per_batch", "decay_epochs"):
            value = getattr(self, name)
            if name == "max_epochs" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, found {value!r}.")
        if not isinstance(self.num_workers, int) or self.num_workers < 0:
            raise ValueError(f"`num_workers` must be a whole number of at least 0, found {self.num_workers!r}.")
        check_fields(self)
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive, found {self.learning_rate!r}.")
        if not 0 <= self.average < 1:
            raise ValueError(f"`average` must lie in [0, 1), found {self.average!r}.")
        if self.optimizer not in ("adamw", "adam", "sgd"):
            raise ValueError(f"`optimizer` must be 'adamw', 'adam' or 'sgd', found {self.optimizer!r}.")

    def epochs(self, steps_per_epoch: int) -> int:
        """Give the number of epochs at most, for a data set with that many steps per epoch."""
        if self.max_epochs is not None:
            return self.max_epochs
        return max(_EPOCHS, math.ceil(_STEPS / steps_per_epoch))


def make_training_config(
    recipe: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None
) -> TrainingConfig:
    """Make settings: the defaults, with a model's ``recipe`` in place of some, then ``options``.

    Raises
    ------
    ValueError
        If an option is unknown.
    """
    names = [f.name for f in fields(TrainingConfig)]
    for option in options or {}:
        if option not in names:
            raise ValueError(f"`training` has no field {option!r}. {did_you_mean(option, names)}")
    return TrainingConfig(**{**(recipe or {}), **(options or {})})
