"""Which training spots are held out to choose the epoch: whole groups, or blocks of tissue with a margin."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from gdml._errors import check_number, did_you_mean
from gdml.expression import grid_smoother

from .data import SlideSpots, SpotData

#: Splits by which the shares of a blend are chosen. With three, what is left of half a Visium slide is so little that the
#: network was told as useless where, trained on all of it, it was the best of the three.
N_SPLITS = 5
#: Groups, or slides, from which on whole ones are held out.
LEAST_UNITS = 3
_BEYOND = 1e-3  # tiles
_PIECE = 1024  # spots whose distances to all held-out spots are computed at once


@dataclass(frozen=True)
class Split:
    """Rows to learn from and rows to choose by.

    Parameters
    ----------
    train, validation
        (n_train,) and (n_validation,) int64, ascending, disjoint.
    by
        ``"group"``, ``"slide"`` or ``"block"``.
    held_out
        Names of the groups or slides that validation spots lie on.
    within_groups
        Whether groups were named, and spots are held out of groups that are learnt from.
    """

    train: Tensor
    validation: Tensor
    by: str
    held_out: tuple[str, ...]
    within_groups: bool = False


def check_split_arguments(validation: str | None, fraction: float) -> None:
    """Refuse arguments that name no split.

    Raises
    ------
    ValueError
        If one of them is not valid.
    """
    if validation not in (None, "auto", "group", "block"):
        raise ValueError(f"`validation` is {validation!r}. {did_you_mean(str(validation), ('auto', 'group', 'block'))}")
    check_number("validation_fraction", fraction)
    if not 0 < fraction < 1:
        raise ValueError(f"`validation_fraction` must lie between 0 and 1, found {fraction!r}.")


def make_split(
    data: SpotData, validation: str | None, fraction: float, group_key: str | None, seed: int, *, smooth: bool = False
) -> Split | None:
    """Split the training spots as asked.

    Parameters
    ----------
    data
        The training spots.
    validation
        ``"group"``, ``"block"``, ``"auto"`` (by group where there are two or more, else by block), or None for no split.
    fraction
        Share of the spots that is held out.
    group_key
        Column that the groups come from, for messages.
    seed
        Of the choice.
    smooth
        Whether the labels are averages over neighbouring spots.

    Raises
    ------
    ValueError
        If a split by group is asked for and there is one group, or too few spots are left.
    """
    if validation is None:
        return None
    generator = Generator().manual_seed(seed)
    n_groups = len(set(data.groups))
    if validation == "group" and n_groups < 2:
        raise _one_group(data, group_key)
    if validation == "group" or (validation == "auto" and n_groups > 1):
        return split_by_group(data, fraction, generator)
    margin = max(block_margin(slide, smooth=smooth) for slide in data.slides)
    return split_by_block(data, fraction, margin, generator)


def block_margin(slide: SlideSpots, *, smooth: bool = False) -> float:
    """Distance between training and held-out spots, in x or in y, in units of the tile's side.

    Half a neighbour region and half a tile, so that no region of a training spot shows a held-out tile. Where labels are
    averages over neighbouring spots, no region shows a spot that a held-out label averages, and no spot is part of
    labels on both sides.
    """
    region = (round(slide.neighbors.shape[1] ** 0.5) + 1) / 2
    # just beyond the reach: a spot in the middle between two others must not be averaged into the labels of both
    reach = _smoothing_reach(slide) + _BEYOND if smooth else 0.0
    return max(region, reach) + reach


def _smoothing_reach(slide: SlideSpots) -> float:
    """Greatest distance, in x or y, of spots whose expression is averaged into one label."""
    row, column = slide.grid.T
    pairs = grid_smoother(row, column, np.zeros(len(row))).tocoo()
    apart = np.abs(slide.xy[pairs.row] - slide.xy[pairs.col])
    return float(apart.max()) if apart.size else 0.0


def make_splits(
    data: SpotData,
    validation: str | None,
    fraction: float,
    group_key: str | None,
    seed: int,
    *,
    several: bool,
    smooth: bool,
) -> list[Split]:
    """Split the training spots as asked: once, or five times, so that each spot is held out once.

    Of five splits, each holds out a fifth of the groups where ``group_key`` names three or more, or where
    ``validation="group"``; else a fifth of the slides, if there are three or more (of fewer than five, one each); else a
    fifth of each slide, across its longer axis, with the margin of :func:`block_margin`. Where that would leave less than a
    third of the spots to learn from, there is one split.

    Parameters
    ----------
    data, validation, fraction, group_key, seed, smooth
        As in :func:`make_split`; ``fraction`` is that of a single split.
    several
        Whether each spot is to be held out: to choose the shares of a blend, or because training costs little.

    Returns
    -------
    The splits; none where ``validation`` is None.

    Raises
    ------
    ValueError
        As in :func:`make_split`.
    """
    if not several:
        split = make_split(data, validation, fraction, group_key, seed, smooth=smooth)
        found = [] if split is None else [split]
    else:
        found = _hold_out_each(data, validation, fraction, group_key, seed, smooth=smooth)
    return [replace(split, within_groups=group_key is not None and split.by != "group") for split in found]


def _hold_out_each(
    data: SpotData, validation: str | None, fraction: float, group_key: str | None, seed: int, *, smooth: bool
) -> list[Split]:
    if validation is None:
        return []
    groups = sorted(set(data.groups))
    if validation == "group" and len(groups) < 2:
        raise _one_group(data, group_key)
    if validation == "group" or (validation == "auto" and group_key is not None and len(groups) >= LEAST_UNITS):
        return _leave_out(data, "group", data.groups, seed)
    if validation == "auto" and len(data.names) >= LEAST_UNITS:
        return _leave_out(data, "slide", data.names, seed)
    margin = max(block_margin(slide, smooth=smooth) for slide in data.slides)
    bands = [_without_band(data, k, margin) for k in range(N_SPLITS)]
    if all(len(split.train) >= len(data) / 3 and len(split.validation) > 2 for split in bands):
        return bands
    split = make_split(data, validation, fraction, group_key, seed, smooth=smooth)  # small slides are mostly margin
    return [] if split is None else [split]


def _leave_out(data: SpotData, by: str, of: Sequence[str], seed: int) -> list[Split]:
    """Hold out each of the groups or slides once, in ``N_SPLITS`` splits at most; ``of`` is that of each slide."""
    names = sorted(set(of))
    order = [names[i] for i in torch.randperm(len(names), generator=Generator().manual_seed(seed)).tolist()]
    rows = torch.arange(len(data))
    found = []
    for k in range(min(N_SPLITS, len(names))):
        held = order[k::N_SPLITS]
        inside = torch.tensor([name in held for name in of])[data.slide]
        found.append(Split(rows[~inside], rows[inside], by, tuple(sorted(held))))
    return found


def _one_group(data: SpotData, group_key: str | None) -> ValueError:
    return ValueError(
        f'`validation="group"` needs two groups or more; {group_key or "the slides"!r} gives one '
        f'({data.groups[0]!r}, {len(data.names)} slides). Use validation="block".'
    )


def _without_band(data: SpotData, which: int, margin: float) -> Split:
    """Hold out one of ``N_SPLITS`` bands of each slide."""
    train, validation = [], []
    for number, slide in enumerate(data.slides):
        rows = data.rows_of(number)
        held = torch.from_numpy(cut_across(slide.xy, N_SPLITS) == which)
        train.append(rows[~held & ~near(torch.from_numpy(slide.xy), held, margin)])
        validation.append(rows[held])
    return Split(torch.cat(train), torch.cat(validation), "block", tuple(data.names))


def cut_across(xy: NDArray[np.floating], n: int, axis: int = 0, *, turn: float = 0.0) -> NDArray[np.int64]:
    """Cut spots (N, 2) into n parts of equal number across their first (0) or second (1) principal axis: (N,) int64.

    The axis is turned by the part ``turn`` of half a turn.
    """
    centered = xy.astype(np.float64) - xy.mean(0, dtype=np.float64)
    axes = np.linalg.eigh(centered.T @ centered)[1]
    along = centered @ (np.cos(np.pi * turn) * axes[:, 1 - axis] + np.sin(np.pi * turn) * axes[:, axis])
    return along.argsort(kind="stable").argsort(kind="stable") * n // max(len(xy), 1)


def near(xy: Tensor, held: Tensor, margin: float) -> Tensor:
    """Whether each spot is nearer to a held-out spot than the margin, in x and in y; (n,) bool."""
    if not held.any():
        return held.clone()
    # in pieces, so that memory does not grow with the square of the slide
    return torch.cat([torch.cdist(piece, xy[held], p=float("inf")).amin(1) for piece in xy.split(_PIECE)]) < margin


def split_by_group(data: SpotData, fraction: float, generator: Generator) -> Split:
    """Hold out whole groups: drawn at random while they have no more than ``fraction`` of the spots, one at least.

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

    The tissue is cut across its longer axis (the first principal axis of the spots' positions); which end is held out
    is drawn at random. Spots nearer to a held-out spot than the margin, in x and in y (tiles and regions are squares),
    are in neither part: neighbour regions overlap, so a random choice of spots would leak.

    Parameters
    ----------
    data
        The spots.
    fraction
        Share of each slide's spots that is held out.
    margin
        In units of the tile's side.
    generator
        Source of the random numbers.

    Raises
    ------
    ValueError
        If nothing is left on one side.
    """
    train, validation = [], []
    for slide in range(len(data.names)):
        rows = data.rows_of(slide)
        xy = torch.from_numpy(data.slides[slide].xy)
        centered = xy - xy.mean(0)
        axis = torch.linalg.eigh((centered.T @ centered).double()).eigenvectors[:, -1].float()
        along = centered @ axis * (1 - 2 * int(torch.randint(2, (), generator=generator)))
        n_held = round(fraction * len(rows))
        held = torch.zeros(len(rows), dtype=torch.bool)
        held[along.argsort(stable=True)[:n_held]] = True
        validation.append(rows[held])
        train.append(rows[~held & ~near(xy, held, margin)])
    split = Split(torch.cat(train), torch.cat(validation), "block", tuple(data.names))
    if not len(split.train) or len(split.validation) < 3:
        raise ValueError(
            f"Holding out {fraction:.0%} of {len(data)} spots leaves {len(split.train)} to learn from and "
            f"{len(split.validation)} to validate on: use more spots, another `validation_fraction`, or "
            "validation=None with `max_epochs`."
        )
    return split
