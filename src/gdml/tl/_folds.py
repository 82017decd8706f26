"""What the arguments of a comparison say about folds, seeds, and what is kept of them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdml._errors import check_count, check_path
from gdml._marker import CACHE_DIR, check_writable
from gdml._settings import settings

from ._intervals import PART

if TYPE_CHECKING:
    from gdml.spots.folds import FoldMaker
    from gdml.training.compare import Plan
    from gdml.training.folds import Fold

_N_BLOCKS = 5


def unseen(plan: "Plan") -> str:
    """Say what the models of a comparison had not seen of the spots that they are scored on."""
    if any(fold.cut is not None for fold in plan.folds):
        return PART
    if plan.group_key is None:
        return "unseen slide"
    group = {name: slide.group for name, slide in plan.source.slides.items()}
    shared = any({group[name] for name in fold.train} & {group[name] for name in fold.test} for fold in plan.folds)
    return f"unseen slide of a known {plan.group_key}" if shared else f"unseen {plan.group_key}"


def folds_of(
    source: "FoldMaker", folds: Any, n_blocks: int | None, seeds: Sequence[int], n_repeats: int
) -> "list[Fold]":
    """Make the folds that were asked for; see :func:`gdml.tl.cross_validate`."""
    from gdml.training.blocks import make_blocks
    from gdml.training.folds import make_folds

    if n_blocks is not None:
        return make_blocks(source.spots.slides, n_blocks, smooth=source.normalization.smooth, n_repeats=n_repeats)
    groups = {name: slide.group for name, slide in source.slides.items()}
    sizes = {slide.name: len(slide) for slide in source.spots.slides}
    return make_folds(groups, folds, sizes=sizes, seeds=seeds, n_repeats=n_repeats)


def as_n_blocks(folds: Any, n_folds: int | None) -> int | None:
    """Give the number of blocks; None where slides are whole."""
    blocks = isinstance(folds, str) and folds == "blocks"
    if n_folds is not None:
        if not blocks:
            raise ValueError(
                f"`n_folds` is {n_folds!r}, the number of blocks of folds='blocks', but `folds` is {folds!r}."
            )
        check_count("n_folds", n_folds, at_least=2)
    return (n_folds or _N_BLOCKS) if blocks else None


def models_folder(keep_models: Any) -> Path | None:
    """Folder that models are kept in, if it can be written to."""
    if isinstance(keep_models, bool):
        folder, name = (settings.cache_dir / "models" if keep_models else None), f"keep_models=, or {CACHE_DIR}"
    else:
        check_path("keep_models", keep_models)
        folder, name = Path(keep_models).expanduser().absolute(), "keep_models="
    if folder is not None:
        check_writable(folder, "Models of folds", name)
    return folder


def as_seeds(seeds: int | Sequence[int], n_repeats: int) -> list[int]:
    """Seeds of the runs: one for each repeat where there are several, else all that were asked for."""
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        check_count("seeds", seeds, hint="give the number of seeds, or a list of different seeds")
        return _one_each(list(range(seeds)), n_repeats)
    for seed in seeds:
        check_count("seeds", seed, at_least=0)
    numbers = [int(seed) for seed in seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"`seeds` is {seeds!r}; give a number of one or more, or different seeds.")
    return _one_each(numbers, n_repeats)


def _one_each(seeds: list[int], n_repeats: int) -> list[int]:
    """Give each of several repeats its seed."""
    if n_repeats == 1 or len(seeds) == n_repeats:
        return seeds
    if len(seeds) > 1:
        raise ValueError(
            f"There are {len(seeds)} `seeds` for {n_repeats} repeats, which have one each: give the first one, seeds=[0], or "
            f"{n_repeats} of them."
        )
    return list(range(seeds[0], seeds[0] + n_repeats))
