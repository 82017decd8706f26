"""How fit trains: hold spots out, choose the epoch, learn once more from all spots."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scanpy import logging as logg

if TYPE_CHECKING:
    from gdml.models import Shape
    from gdml.training import Run, Split, SpotData, TrainingConfig


def make_split(
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


def check_sizes(config: Any, loop: "TrainingConfig", split: "Split | None", data: "SpotData") -> None:
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


def shape_of(data: "SpotData") -> "Shape":
    """Sizes that the data give a model."""
    from gdml.models import Shape

    n_rows, n_cols = (data.grid.amax(0) + 1).tolist()
    return Shape(
        dim=data.tokens.shape[2],
        n_tokens=data.tokens.shape[1],
        n_side=round(data.neighbors.shape[1] ** 0.5),
        n_genes=0 if data.expression is None else data.expression.shape[1],
        n_rows=n_rows,
        n_cols=n_cols,
    )


def choose_and_train(
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

    from gdml.training import train

    make = lambda: model_class(config, shape_of(data))
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
        run.interrupted = True
        logg.warning("fit: interrupted; the best epoch is kept, trained without the validation spots.")
        return module, run, run.best_epoch
    return refitted, run, len(final.history.get("epoch", ()))
