"""Which slides each fold learns from, and which it is scored on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdml._errors import count, did_you_mean, some

_ATTEMPTS = 100  # to deal groups as they were not dealt before


@dataclass(frozen=True)
class Fold:
    """Slides to learn from and slides to score.

    Parameters
    ----------
    name
        Name of the fold.
    train, test
        Names of slides.
    repeat
        Number of the repeat that the fold belongs to, from 0.
    cut
        Of folds within slides, the spots of each slide to learn from and to score, (n,) ascending; None where slides
        are whole.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    repeat: int = 0
    cut: Mapping[str, tuple[NDArray[np.intp], NDArray[np.intp]]] | None = field(default=None, compare=False)

    def rows_to_learn(self, slides: Mapping[str, NDArray[np.intp]]) -> list[NDArray[np.intp]]:
        """Rows of an AnnData to learn from, slide by slide, of the rows of each slide."""
        return [slides[name] if self.cut is None else slides[name][self.cut[name][0]] for name in self.train]

    def rows_to_score(self, slides: Mapping[str, NDArray[np.intp]]) -> list[NDArray[np.intp]]:
        """Rows to score, as :meth:`rows_to_learn` gives them."""
        return [slides[name] if self.cut is None else slides[name][self.cut[name][1]] for name in self.test]


Splits = Mapping[str, tuple[Sequence[str], Sequence[str]]]


def fold_name(name: str, repeat: int, n_repeats: int) -> str:
    """Name of a fold; of several repeats with the number of its own, from 1."""
    return name if n_repeats == 1 else f"repeat {repeat + 1}, {name}"


def make_folds(
    groups: Mapping[str, str],
    folds: int | Splits | None,
    *,
    sizes: Mapping[str, int] | None = None,
    seeds: Sequence[int] = (0,),
    n_repeats: int = 1,
) -> list[Fold]:
    """Folds by group.

    Parameters
    ----------
    groups
        Group of each slide.
    folds
        None: leave one group out. A number: that many folds of similar size, see :func:`deal`. A mapping: the slides to
        learn from and the slides to score, by the name of the fold.
    sizes
        Number of spots of each slide; None: all are of one size.
    seeds
        Of the assignment: the first one, or one for each repeat.
    n_repeats
        How often a number of folds is dealt, each time differently.

    Raises
    ------
    ValueError
        If there are fewer groups than folds, a split names an unknown slide, one slide on both sides, or none; or if
        folds can't be repeated.
    """
    if n_repeats > 1 and (folds is None or isinstance(folds, Mapping)):
        raise ValueError(
            f"`n_repeats` is {n_repeats}, but {'leave one group out' if folds is None else 'the given splits'} is the same "
            f"every time: pass a number of folds, folds=3, or train several times with seeds={n_repeats}."
        )
    if isinstance(folds, Mapping):
        return [_given(str(name), split, groups) for name, split in folds.items()]
    names = sorted(set(groups.values()))
    number = len(names) if folds is None else folds
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or (folds is not None and number < 2):
        raise ValueError(
            f"`folds` is {folds!r}: give a number of two or more, 'blocks' for parts of each slide, or a mapping such as "
            '{"to C6": (["C2", "C3"], ["C6"])} from names to slides to learn from and slides to score.'
        )
    if len(names) < max(2, number):
        raise ValueError(
            f"A comparison needs at least {max(2, number)} groups, since a group is never split, but there "
            f"{'is' if len(names) == 1 else 'are'} {count(len(names), 'group')} ({some(names)}). "
            + (
                "Ask for fewer folds, or name a finer column in `group_key`."
                if len(names) > 1
                else "Add slides, or, if the slides are of different patients, name their column in `group_key`. To hold "
                "out parts of each slide in turn, pass folds='blocks': the score is then of an unseen part of a known slide."
            )
        )
    if folds is None:
        return [_holding_out(name, [name], groups) for name in names]
    spots = dict.fromkeys(names, 0)
    for slide, group in groups.items():
        spots[group] += 1 if sizes is None else sizes[slide]
    return [
        _holding_out(fold_name(str(i), repeat, n_repeats), part, groups, repeat)
        for repeat, parts in enumerate(_deals(spots, number, seeds, n_repeats))
        for i, part in enumerate(parts)
    ]


def _holding_out(name: str, held: Sequence[str], groups: Mapping[str, str], repeat: int = 0) -> Fold:
    test = tuple(slide for slide, group in groups.items() if group in held)
    return Fold(name, tuple(slide for slide in groups if slide not in test), test, repeat)


def deal(
    sizes: Mapping[str, int], n: int, *, seed: int | Sequence[int] = 0, largest_first: bool = True
) -> list[list[str]]:
    """Deal groups to folds of similar size: each group in turn to the fold that has the fewest spots.

    The sizes of two folds differ by no more than the largest group.

    Parameters
    ----------
    sizes
        Number of spots of each group.
    n
        Number of folds, no more than groups.
    seed
        Of the order of groups of one size.
    largest_first
        Deal the largest groups first, for the most even folds; else all in random order.

    Returns
    -------
    Names of the groups of each fold, sorted.
    """
    names = sorted(sizes)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    if largest_first:
        order.sort(key=lambda name: -sizes[name])  # stable: those of one size keep their random order
    folds: list[list[str]] = [[] for _ in range(n)]
    for name in order:
        # a group without spots would leave a later fold empty
        min(folds, key=lambda fold: (sum(sizes[other] for other in fold), len(fold))).append(name)
    return [sorted(fold) for fold in folds]


def _deals(sizes: Mapping[str, int], n: int, seeds: Sequence[int], n_repeats: int) -> list[list[list[str]]]:
    """Deal groups once for each repeat, each time differently: the largest first, then in random order."""
    found: list[list[list[str]]] = []
    for repeat in range(n_repeats):
        for attempt in range(_ATTEMPTS):
            made = deal(sizes, n, seed=[int(seeds[repeat]), attempt], largest_first=repeat == 0)
            if sorted(made) not in map(sorted, found):
                found.append(made)
                break
        else:
            raise ValueError(
                f"`n_repeats` is {n_repeats}, but {count(len(sizes), 'group')} can be dealt to {n} folds in "
                f"{count(len(found), 'way')} only: pass n_repeats={len(found)}, or train several times with seeds={n_repeats}."
            )
    return found


def _given(name: str, split: Any, groups: Mapping[str, str]) -> Fold:
    try:
        train, test = ((side,) if isinstance(side, str) else tuple(map(str, side)) for side in split)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`folds[{name!r}]` is {split!r}: give two lists of slides, those to learn from and those to score."
        ) from error
    for side, slides in (("learn from", train), ("score", test)):
        if not slides:
            raise ValueError(f"`folds[{name!r}]` names no slide to {side}.")
        for slide in slides:
            if slide not in groups:
                raise ValueError(f"`folds[{name!r}]` names {slide!r}, which is no slide. {did_you_mean(slide, groups)}")
    both = set(train) & set(test)
    if both:
        raise ValueError(
            f"`folds[{name!r}]` has {some(sorted(both))} on both sides: a model would be scored on what it has seen."
        )
    return Fold(name, tuple(dict.fromkeys(train)), tuple(dict.fromkeys(test)))


def check_groups(folds: Sequence[Fold], groups: Mapping[str, str], *, allow_shared: bool, column: str) -> None:
    """Refuse folds with a group on both sides, unless they are asked for."""
    for fold in folds:
        shared = {groups[s] for s in fold.train} & {groups[s] for s in fold.test}
        if shared and not allow_shared:
            raise ValueError(
                f"`folds[{fold.name!r}]` has {column} {some(sorted(shared))} on both sides: its score would be of a known "
                f"{column}. Change the split, or pass allow_shared_groups=True if that is the question."
            )


def check_twins(folds: Sequence[Fold], digests: Mapping[str, str]) -> None:
    """Refuse folds with the same counts, under two names, on both sides."""
    for fold in folds:
        twins = [(a, b) for a in fold.train for b in fold.test if a != b and digests[a] == digests[b]]
        if twins:
            raise ValueError(
                f"Fold {fold.name!r}: slides {some(f'{a!r} (train) and {b!r} (test)' for a, b in twins)} have the same counts: "
                "one is a copy of the other, and a model would be scored on what it has seen. Drop one of them, or give "
                "both the same group in the column of `group_key`."
            )
