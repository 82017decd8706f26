"""Check the arguments of a comparison, make its plan and run it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import did_you_mean
from gdml._settings import settings
from gdml.pp import embed, tile
from gdml.spots.coordinates import check_adata, spot_coordinates
from gdml.spots.undo import all_or_nothing

from ._arguments import check_split_arguments
from ._candidates import make_candidates
from ._comparison import Comparison
from ._fold_data import FoldMaker
from ._folds import Splits, check_groups, check_twins, make_folds
from ._protocols import get_protocol
from ._run_folds import Plan, Results, Setting, run_plan

if TYPE_CHECKING:
    import torch

    from gdml.encoders.device import Precision


def compare_models(
    adata: AnnData,
    model: str | Sequence[str] | Mapping[str, Any],
    *,
    groups: str | None = None,
    folds: int | Splits | None = None,
    protocol: str = "nested",
    seeds: int | Sequence[int] = 1,
    normalize: Mapping[str, Any] | None = None,
    validation: str | None = "auto",
    validation_fraction: float = 0.2,
    max_epochs: int | None = None,
    allow_shared_groups: bool = False,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    save_to: str | os.PathLike[str] | None = None,
    key: str = _keys.KEY,
) -> tuple[Results, Plan]:
    """Run what :func:`gdml.tl.cross_validate` describes; nothing but missing tiles and features is written."""
    from gdml.encoders.device import resolve_device, use_bf16
    from gdml.training import make_fabric

    check_adata(adata)
    spot_coordinates(adata, adata.uns.get(key, {}).get(_keys.TILES, {}).get("spatial_key", _keys.SPATIAL))
    rules = get_protocol(protocol)
    candidates = make_candidates(model, rules.presets, max_epochs)
    check_split_arguments(validation, validation_fraction)
    numbers = _seeds(seeds)
    if groups is not None and groups not in adata.obs:
        raise KeyError(f"`groups` is {groups!r}, which is no column of obs. {did_you_mean(groups, adata.obs.columns)}")
    on = resolve_device(device)
    bf16 = use_bf16(on, precision)

    with all_or_nothing(adata, key):
        _run_missing_steps(adata, key)
        needs = set().union(*(candidate.model.needs for candidate in candidates))
        merged = {**rules.normalize, **(normalize or {})}
        maker = FoldMaker(adata, key=key, groups=groups, normalize=merged, needs=needs)
        found = make_folds(maker.groups, folds, seed=numbers[0])
        check_groups(found, maker.groups, allow_shared=allow_shared_groups, column=groups or "slide")
        check_twins(found, maker.digests)
        setting = Setting(
            protocol=rules,
            validation=validation,
            validation_fraction=validation_fraction,
            groups=groups,
            shared_groups=allow_shared_groups,
            fabric=make_fabric(on, bf16=bf16),
            numerics=f"{on.type} {'bf16' if bf16 else 'fp32'}",
            features={k: str(v) for k, v in adata.uns[key][_keys.FEATURES].items() if k not in ("stores", "obsm")},
            tiles={k: str(adata.uns[key][_keys.TILES][k]) for k in ("tile_um", "tile_px", "n_side")},
        )
        folder = Path(save_to).expanduser() if save_to is not None else settings.cache_dir / "runs"
        plan = Plan(maker, found, candidates, numbers, setting, folder)
        return run_plan(plan), plan


def comparison(plan: Plan, results: Results) -> Comparison:
    """Give what the user gets of it, with all that has to be said of its scores."""
    setting = plan.setting
    failed = int((results.table["status"] == "failed").sum())
    logg.info(f"compared: {len(results.table)} runs" + (f", {failed} of them FAILED, see .runs" if failed else ""))
    notes = [setting.protocol.note]
    if plan.maker.normalization.smooth:
        notes.append("Labels are smoothed over neighbouring spots.")
    if setting.shared_groups:
        notes.append(f"Slides of one {setting.groups or 'slide'} may be on both sides of a split.")
    note = " ".join(filter(None, notes))
    return Comparison(results.scores, results.table, setting.protocol.name, note, setting.protocol.select_on_test)


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    numbers = list(range(seeds)) if isinstance(seeds, int | np.integer) else [int(seed) for seed in seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"`seeds` is {seeds!r}; give a number of one or more, or different seeds.")
    return numbers


def _run_missing_steps(adata: AnnData, key: str) -> None:
    if _keys.TILES not in adata.uns.get(key, {}):
        logg.info("cross_validate: running gdml.pp.tile(adata) with its defaults")
        tile(adata, key_added=key)
    if _keys.FEATURES not in adata.uns[key]:
        logg.info("cross_validate: running gdml.pp.embed(adata) with its defaults")
        embed(adata, key_added=key)
