"""Folds within slides: blocks of each slide are held out in turn, with a margin around them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gdml._errors import count

from .folds import Fold, fold_name
from .slide import SlideSpots
from .split import block_margin, cut_across, near

#: Spots of a block, at least: a correlation over fewer says little.
LEAST_HELD = 10
#: Part of a slide that is left to learn from, at least.
LEAST_LEARNT = 1 / 3
_MOST = 10  # numbers of blocks that are tried for a message


def make_blocks(slides: Sequence[SlideSpots], n: int, *, smooth: bool = False, n_repeats: int = 1) -> list[Fold]:
    """Cut each slide into ``n`` blocks; a fold holds out one block of every slide.

    The blocks lie side by side along the longer axis of the tissue and have equal numbers of spots, up to one. Spots in
    the margin of a held-out block (:func:`gdml.training.split.block_margin`) are neither learnt from nor scored in that
    fold, so that no region of a training spot shows a held-out tile, and no training label averages a held-out spot.
    Each repeat cuts along another direction: the longer axis, then the one across it, then those between.

    Parameters
    ----------
    slides
        The slides.
    n
        Number of blocks, two or more.
    smooth
        Whether labels are averages over neighbouring spots.
    n_repeats
        Number of directions.

    Returns
    -------
    ``n`` folds for each repeat; within a repeat every spot is held out once.

    Raises
    ------
    ValueError
        If a block has fewer than ``LEAST_HELD`` spots, or less than ``LEAST_LEARNT`` of a slide is left to learn from.
    """
    cuts = {}
    for repeat in range(n_repeats):
        for slide in slides:
            cuts[repeat, slide.name] = cut_slide(slide, n, smooth=smooth, turn=_turn(repeat))
            _check_sizes(slides, slide, cuts[repeat, slide.name], n, smooth, _turn(repeat))
    names = tuple(slide.name for slide in slides)
    return [
        Fold(
            fold_name(f"block {block + 1}", repeat, n_repeats),
            names,
            names,
            repeat,
            {name: cuts[repeat, name][block] for name in names},
        )
        for repeat in range(n_repeats)
        for block in range(n)
    ]


def cut_slide(
    slide: SlideSpots, n: int, *, smooth: bool = False, turn: float = 0.0
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Spots to learn from and spots to score of each block of a slide, ascending.

    Parameters
    ----------
    slide
        The slide.
    n, smooth
        As in :func:`make_blocks`.
    turn
        Part of half a turn by which the direction differs from the longer axis.
    """
    block = cut_across(slide.xy, n, turn=turn)
    margin = block_margin(slide, smooth=smooth)
    xy = torch.from_numpy(slide.xy)
    found = []
    for number in range(n):
        held = block == number
        close = near(xy, torch.from_numpy(held), margin).numpy()
        found.append((np.flatnonzero(~held & ~close), np.flatnonzero(held)))
    return found


def _turn(repeat: int) -> float:
    """Direction of a repeat, whatever their number: 0, 1/2, 1/4, 3/4, 1/8, ..."""
    return int(f"{repeat:b}"[::-1], 2) / 2 ** repeat.bit_length()


def _worst(cut: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]) -> tuple[int, int]:
    """Fewest spots to learn from, and fewest to score."""
    return min(len(learnt) for learnt, _ in cut), min(len(held) for _, held in cut)


def _fits(slide: SlideSpots, cut: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]) -> bool:
    learnt, held = _worst(cut)
    return learnt >= LEAST_LEARNT * len(slide) and held >= LEAST_HELD


def _check_sizes(
    slides: Sequence[SlideSpots],
    slide: SlideSpots,
    cut: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]],
    n: int,
    smooth: bool,
    turn: float,
) -> None:
    """Refuse a slide that is too small, and say what would do."""
    if _fits(slide, cut):
        return
    others = (k for k in range(2, _MOST + 1) if k != n)
    better = next((k for k in others if all(_fits(s, cut_slide(s, k, smooth=smooth, turn=turn)) for s in slides)), None)
    side = round(slide.neighbors.shape[1] ** 0.5)
    mend = [f"n_folds={better}"] if better else []
    if not better and smooth:
        mend.append("labels without smoothing, normalize={'smooth': False}")
    if not better and side > 2:
        mend.append(f"smaller neighbour regions, gdml.pp.tile(adata, n_side={side - 2}) and gdml.pp.embed(adata) again")
    if len(slides) > 1:
        mend.append("leave the slide out")
    learnt, held = _worst(cut)
    raise ValueError(
        f"Slide {slide.name!r} is too small for {count(n, 'block')} with margins of "
        f"{block_margin(slide, smooth=smooth):.1f} tiles: of its {count(len(slide), 'spot')}, a fold leaves {learnt} to "
        f"learn from (at least {int(np.ceil(LEAST_LEARNT * len(slide)))} are needed) and scores {held} (at least "
        f"{LEAST_HELD}). {'What helps: ' + '; or '.join(mend) + '.' if mend else 'More spots are needed.'}"
    )
