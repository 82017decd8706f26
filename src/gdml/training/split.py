"""Which training spots are held out to choose the epoch: whole groups, or blocks of tissue with a margin."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .data import SpotData


@dataclass(frozen=True)
class Split:
    """Rows to learn from and rows to choose by.

    Parameters
    ----------
    train, validation
        (n_train,) and (n_validation,) int64, ascending, disjoint.
    by
        ``"group"`` or ``"block"``.
    held_out
        Names of the groups or slides that validation spots lie on.
    """

    train: Tensor
    validation: Tensor
    by: str
    held_out: tuple[str, ...]


def split_by_group(data: SpotData, fraction: float, generator: Generator) -> Split:
    """Hold out whole groups: drawn at random until ``fraction`` of the spots is reached, one at least.

    Raises
    ------
    ValueError
        If there is one group only.
    """
    names = sorted(set(data.groups))
    if len(names) < 2:
        raise ValueError(f"A split by group needs two groups or more; found {names}.")
    code = torch.tensor([names.index(group) for group in data.groups])[data.slide]
    size = torch.bincount(code, minlength=len(names))
    held: list[int] = []
    for group in torch.randperm(len(names), generator=generator).tolist():
        total = int(size[held].sum()) + int(size[group])
        # the first group whatever its size, the others while they fit; something must be left to learn from
        if not held or (total <= fraction * len(data) and len(held) < len(names) - 1):
            held.append(group)
    inside = torch.isin(code, torch.tensor(held))
    rows = torch.arange(len(data))
    return Split(rows[~inside], rows[inside], "group", tuple(names[i] for i in sorted(held)))


def split_by_block(data: SpotData, fraction: float, margin: float, generator: Generator) -> Split:
    """Hold out one end of each slide, and drop the spots between it and the rest.

    The tissue is cut across its longer axis (the first principal axis of the spots' positions); a coin
    decides which end is held out. Spots nearer to a held-out spot than the margin, in x and in y (tiles and
    regions are squares), are in neither part: a random choice of spots would leak, since neighbour regions
    overlap.

    Parameters
    ----------
    data
        The spots.
    fraction
        Share of each slide's spots that is held out.
    margin
        In units of the tile's side.
    generator
        Source of the coins.

    Raises
    ------
    ValueError
        If nothing is left on one side.
    """
    train, validation = [], []
    for slide in range(len(data.names)):
        rows = data.rows_of(slide)
        xy = data.xy[rows]
        centered = xy - xy.mean(0)
        axis = torch.linalg.eigh((centered.T @ centered).double()).eigenvectors[:, -1].float()
        along = centered @ axis * (1 - 2 * int(torch.randint(2, (), generator=generator)))
        n_held = round(fraction * len(rows))
        held = torch.zeros(len(rows), dtype=torch.bool)
        held[along.argsort(stable=True)[:n_held]] = True
        if n_held:
            near = torch.cdist(xy, xy[held], p=float("inf")).amin(1) < margin
        else:
            near = held.clone()
        validation.append(rows[held])
        train.append(rows[~held & ~near])
    split = Split(torch.cat(train), torch.cat(validation), "block", tuple(data.names))
    if not len(split.train) or len(split.validation) < 3:
        raise ValueError(
            f"Holding out {fraction:.0%} of {len(data)} spots leaves {len(split.train)} to learn from and "
            f"{len(split.validation)} to validate on: use more spots, another `validation_fraction`, or "
            "validation=None with `max_epochs`."
        )
    return split
