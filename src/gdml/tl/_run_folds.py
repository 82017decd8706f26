"""Train and score every model on every fold with every seed, keeping what is finished."""

import hashlib
import inspect
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scanpy import logging as logg
from tqdm.auto import tqdm

from gdml import _keys, metrics
from gdml._settings import settings

from ._candidates import Candidate
from ._comparison import N_HIGH
from ._fold_data import FoldData, FoldMaker
from ._folds import Fold
from ._protocols import Protocol
from ._record import versions
from ._runs import Finished, RunStore, run_digest
from ._training import check_sizes, choose_and_train, make_split, shape_of


@dataclass(frozen=True)
class Setting:
    """What is the same for all runs.

    Parameters
    ----------
    protocol
        Rules.
    validation, validation_fraction, groups
        How training spots are held out.
    shared_groups
        Whether a group may be on both sides of a split.
    fabric
        Device and precision.
    numerics, features, tiles
        What the numbers depend on, for the record.
    """

    protocol: Protocol
    validation: str | None
    validation_fraction: float
    groups: str | None
    shared_groups: bool
    fabric: Any
    numerics: str
    features: dict[str, str]
    tiles: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison.

    Parameters
    ----------
    maker
        Of the folds' data.
    folds, candidates, seeds
        Every combination is a run; a model in closed form has the first seed alone.
    setting
        What they share.
    folder
        Of finished runs.
    """

    maker: FoldMaker
    folds: Sequence[Fold]
    candidates: Sequence[Candidate]
    seeds: Sequence[int]
    setting: Setting
    folder: Path

    def seeds_of(self, candidate: Candidate) -> Sequence[int]:
        """Seeds that a model is run with."""
        return self.seeds[:1] if candidate.model.closed_form else self.seeds


@dataclass
class Results:
    """Scores and predictions of all runs.

    Parameters
    ----------
    scores, table
        As ``scores`` and ``runs`` of :class:`gdml.tl.Comparison`.
    predictions
        Prediction of the first seed by model and fold.
    data
        Rows, panel and measured expression by fold.
    """

    scores: pd.DataFrame
    table: pd.DataFrame
    predictions: dict[tuple[str, str], NDArray[np.float32]]
    data: dict[str, tuple[NDArray[np.intp], pd.Index, NDArray[np.float32]]]


def run_plan(plan: Plan) -> Results:
    """Do the runs that are not there yet, fold by fold.

    Raises
    ------
    ValueError
        If a model needs parts that were not embedded, or a panel can't be chosen; before the first run.
    """
    store = RunStore(plan.folder)
    for candidate in plan.candidates:
        candidate.check(replace(shape_of(plan.maker.everything), n_genes=1))
    panels = [plan.maker.panel(fold) for fold in plan.folds]
    total = len(plan.folds) * sum(len(plan.seeds_of(candidate)) for candidate in plan.candidates)
    scores, rows = [], []
    results = Results(pd.DataFrame(), pd.DataFrame(), {}, {})
    with tqdm(total=total, desc="cross_validate", unit="run", disable=None) as bar:
        for fold, panel in zip(plan.folds, panels, strict=True):
            data = plan.maker.make(fold, panel)
            results.data[fold.name] = (data.rows, data.panel, data.measured)
            for candidate in plan.candidates:
                for seed in plan.seeds_of(candidate):
                    bar.set_postfix_str(f"{candidate.label}, {fold.name}, seed {seed}")
                    run, row = _one(plan, store, data, candidate, seed)
                    rows.append(row)
                    if run is not None:
                        scores.append(_scores(plan, data, candidate.label, seed, run))
                        results.predictions.setdefault((candidate.label, fold.name), run.prediction)
                    bar.update()
    order = {candidate.label: i for i, candidate in enumerate(plan.candidates)}
    results.table = pd.DataFrame(rows).sort_values(
        "model", key=lambda m: m.map(order), kind="stable", ignore_index=True
    )
    if scores:
        table = pd.concat(scores, ignore_index=True)
        results.scores = table.sort_values("model", key=lambda m: m.map(order), kind="stable", ignore_index=True)
    else:
        results.scores = pd.DataFrame(columns=_COLUMNS)
    return results


def _one(
    plan: Plan, store: RunStore, data: FoldData, candidate: Candidate, seed: int
) -> tuple[Finished | None, dict[str, Any]]:
    """One run, from disk where it is there; with its row of the table."""
    row = {"model": candidate.label, "fold": data.fold.name, "seed": seed, "status": "done", "error": ""}
    measured = data.measured
    constant = {g for slide in _parts(plan, data) for g in np.flatnonzero(np.ptp(measured[slide], axis=0) == 0)}
    about = _about(plan, data, candidate, seed)
    digest = run_digest(about)
    run = store.read(digest, measured.shape)
    if run is None:
        try:
            run = _train_and_predict(plan, data, candidate, seed)
        except Exception as error:  # noqa: BLE001 whatever one model does must not cost the others their hours
            logg.warning(f"cross_validate: {candidate.label!r} failed on fold {data.fold.name!r}, seed {seed}: {error}")
            row |= {"status": "failed", "error": traceback.format_exc(limit=-3)}
        else:
            store.write(digest, run, about)
    row |= {
        "epoch": run.epoch if run else 0,
        "seconds": run.seconds if run else np.nan,
        "parameters": run.parameters if run else 0,
        "n_train": len(data.both) - len(data.rows),
        "n_test": len(data.rows),
        "n_genes": len(data.panel),
        "n_constant": len(constant),
    }
    return run, row


def _train_and_predict(plan: Plan, data: FoldData, candidate: Candidate, seed: int) -> Finished:
    import torch

    from gdml.training import Split, predict_rows

    setting, start = plan.setting, time.perf_counter()
    config = candidate.model.adapt(candidate.config, plan.maker.normalization.to_dict())
    split: Split | None
    if setting.protocol.select_on_test:
        spots, loop = data.both, replace(candidate.loop, refit=False)
        n_train = len(spots) - len(data.rows)
        rows = torch.arange(len(spots))
        split = Split(rows[:n_train], rows[n_train:], "the test fold", data.fold.test)
    else:
        spots, loop = data.train, candidate.loop
        n_side = shape_of(spots).n_side
        split = make_split(spots, setting.validation, setting.validation_fraction, setting.groups, seed, n_side)
    check_sizes(config, loop, split, spots)
    module, run, n_epochs = choose_and_train(candidate.model, config, spots, split, loop, setting.fabric, seed)
    if run.interrupted:  # by the user: what it learnt so far is no finished run
        raise KeyboardInterrupt
    test = data.test
    setting.fabric.to_device(module)
    prediction = predict_rows(module, test, torch.arange(len(test)), setting.fabric)[0].numpy()
    if not np.isfinite(prediction).all():
        raise FloatingPointError("The predictions hold NaN or infinite values.")
    high = () if run.validation_pcc is None else metrics.top_genes(run.validation_pcc[None], N_HIGH)
    parameters = sum(p.numel() for p in module.parameters()) or sum(b.numel() for b in module.buffers())
    return Finished(prediction, time.perf_counter() - start, n_epochs, tuple(map(int, high)), parameters)


def _about(plan: Plan, data: FoldData, candidate: Candidate, seed: int) -> dict[str, Any]:
    """Everything that the result of a run depends on."""
    setting, maker = plan.setting, plan.maker
    return {
        "model": candidate.name,
        "code": _code(candidate.model),
        "config": asdict(candidate.config),
        "training": asdict(candidate.loop),
        "seed": seed,
        "select_on_test": setting.protocol.select_on_test,
        "validation": [setting.validation, setting.validation_fraction],
        "panel": list(data.panel),
        "normalization": maker.normalization.to_dict(),
        "train": {name: [*maker.content(name), maker.groups[name]] for name in data.fold.train},
        "test": {name: maker.content(name) for name in data.fold.test},
        "features": setting.features,
        "tiles": setting.tiles,
        "numerics": setting.numerics,
        "gdml": versions()["gdml"],
    }


def _code(model: type) -> str:
    """Hash of the file or cell that a model is written in: a changed model is another model."""
    try:
        text = (
            inspect.getsource(inspect.getmodule(model) or model)
            if model.__module__ != "__main__"
            else inspect.getsource(model)
        )
    except (OSError, TypeError):  # typed at a prompt
        text = model.__qualname__
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


_COLUMNS = ["model", "fold", "seed", "slide", "gene", "n_spots", "pcc", "spearman", "mse", "mae", "high"]


def _parts(plan: Plan, data: FoldData) -> list[NDArray[np.intp]]:
    """Test spots over which a correlation is taken: slide by slide, or all of the fold."""
    if plan.setting.protocol.pooled:
        return [np.arange(len(data.rows))]
    return [np.flatnonzero(data.test_slide == i) for i in range(len(data.fold.test))]


def _scores(plan: Plan, data: FoldData, label: str, seed: int, run: Finished) -> pd.DataFrame:
    """Scores of a run, a row for each slide and gene."""
    high = np.isin(np.arange(len(data.panel)), run.high_genes)
    names = ["all spots"] if plan.setting.protocol.pooled else data.fold.test
    tables = []
    for name, rows in zip(names, _parts(plan, data), strict=True):
        y, p = data.measured[rows], run.prediction[rows]
        tables.append(
            pd.DataFrame(
                {
                    "model": label,
                    "fold": data.fold.name,
                    "seed": seed,
                    "slide": name,
                    "gene": data.panel.astype(str),
                    "n_spots": len(rows),
                    "pcc": metrics.pearson_per_gene(y, p),
                    "spearman": metrics.spearman_per_gene(y, p),
                    "mse": metrics.mse_per_gene(y, p),
                    "mae": metrics.mae_per_gene(y, p),
                    "high": high,
                },
                columns=_COLUMNS,
            )
        )
    return pd.concat(tables, ignore_index=True)


def write_predictions(adata: AnnData, plan: Plan, results: Results, key: str) -> None:
    """Write the predictions of each model, with what was measured, to the AnnData."""
    panel = pd.Index([]).append([panel for _, panel, _ in results.data.values()]).unique()
    panel = adata.var_names[adata.var_names.isin(panel)]
    empty = np.full((adata.n_obs, len(panel)), np.nan, np.float32)

    def spread(values_of: Callable[[str], NDArray[np.float32] | None]) -> pd.DataFrame:
        """Values of every fold in their place; those of the first fold where a spot is in several."""
        spread = empty.copy()
        for name, (rows, genes, _) in reversed(results.data.items()):
            values = values_of(name)
            if values is not None:
                spread[np.ix_(rows, panel.get_indexer(genes))] = values
        return pd.DataFrame(spread, index=adata.obs_names, columns=panel)

    measured = spread(lambda fold: results.data[fold][2])
    for candidate in plan.candidates:
        predicted = spread(lambda fold, label=candidate.label: results.predictions.get((label, fold)))  # type: ignore[misc]
        place = _keys.of_model(candidate.label, key)
        adata.obsm[place] = predicted
        adata.obsm[_keys.measured(place)] = measured
        adata.uns[place] = {
            _keys.PREDICT: {
                "name": candidate.name,
                "protocol": plan.setting.protocol.name,
                "optimistic": plan.setting.protocol.select_on_test,
                "normalization": plan.maker.normalization.to_dict(),
                "panel": panel.to_numpy(dtype=object),
            }
        }
        if adata.n_obs * adata.n_vars * 4 / 1e9 <= settings.max_layer_gb:
            layer = np.full(adata.shape, np.nan, np.float32)
            layer[:, adata.var_names.get_indexer(panel)] = predicted.to_numpy()
            adata.layers[place] = layer
