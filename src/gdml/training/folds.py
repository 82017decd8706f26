"""Which slides each fold learns from, and which it is scored on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gdml._errors import count, did_you_mean, some


@dataclass(frozen=True)
class Fold:
    """Slides to learn from and slides to score.

    Parameters
    ----------
    name
        Name of the fold.
    train, test
        Names of slides.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


Splits = Mapping[str, tuple[Sequence[str], Sequence[str]]]


def make_folds(groups: Mapping[str, str], folds: int | Splits | None, *, seed: int = 0) -> list[Fold]:
    """Folds by group.

    Parameters
    ----------
    groups
        Group of each slide.
    folds
        None: leave one group out. A number: that many folds, the groups assigned at random. A mapping: the slides to
        learn from and the slides to score, by the name of the fold.
    seed
        Of the random assignment.

    Raises
    ------
    ValueError
        If there are fewer groups than folds, a split names an unknown slide, one slide on both sides, or none.
    """
    if isinstance(folds, Mapping):
        return [_given(str(name), split, groups) for name, split in folds.items()]
    names = sorted(set(groups.values()))
    number = len(names) if folds is None else folds
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or (folds is not None and number < 2):
        raise ValueError(
            f"`folds` is {folds!r}: give a number of two or more, or a mapping such as "
            '{"to C6": (["C2", "C3"], ["C6"])} from names to slides to learn from and slides to score.'
        )
    if len(names) < max(2, number):
        raise ValueError(
            f"A comparison needs at least {max(2, number)} groups, since a group is never split, but there "
            f"{'is' if len(names) == 1 else 'are'} {count(len(names), 'group')} ({some(names)}). "
            + (
                "Ask for fewer folds, or name a finer column in `group_key`."
                if len(names) > 1
                else "Add slides, or, if the slides are of different patients, name their column in `group_key`; to hold out "
                "a part of one slide, call gdml.tl.fit(adata, validation='block')."
            )
        )
    if folds is None:
        parts = [[name] for name in names]
    else:
        order = np.random.default_rng(seed).permutation(len(names))
        parts = [sorted(names[i] for i in part) for part in np.array_split(order, number)]
    found = []
    for i, part in enumerate(parts):
        test = tuple(slide for slide, group in groups.items() if group in part)
        train = tuple(slide for slide in groups if slide not in test)
        found.append(Fold(part[0] if folds is None else str(i), train, test))
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
        twins = [(a, b) for a in fold.train for b in fold.test if digests[a] == digests[b]]
        if twins:
            raise ValueError(
                f"Fold {fold.name!r}: slides {some(f'{a!r} (train) and {b!r} (test)' for a, b in twins)} have the same counts: "
                "one is a copy of the other, and a model would be scored on what it has seen. Drop one of them, or give "
                "both the same group in the column of `group_key`."
            )
