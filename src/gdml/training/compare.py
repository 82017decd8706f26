"""Train and score every model on every fold with every seed, keeping what is finished."""

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from gdml import metrics
from gdml._progress import bar, tell
from gdml._provenance import array_digest, provenance_key
from gdml.expression import Normalization

from .candidates import Candidate
from .candidates import Protocol as Rules
from .code import code_digest
from .data import SpotData
from .fitting import fit_model
from .folds import Fold
from .kept import is_kept, keep_model, model_folder
from .loop import predict
from .runs import Finished, RunStore
from .split import Split, make_splits

#: Genes of PCC(H).
N_HIGH = 50
_COLUMNS = [
    "model",
    "fold",
    "repeat",
    "seed",
    "slide",
    "group",
    "gene",
    "n_spots",
    "pcc",
    "spearman",
    "mse",
    "mae",
    "high",
]


@dataclass(frozen=True)
class Slide:
    """What a comparison knows of a slide.

    Parameters
    ----------
    group
        Group (patient) of the slide.
    key
        Provenance key of its image, features, positions and counts.
    counts
        Digest of its counts in any order, by which copies are found.
    image
        Fingerprint of its image.
    """

    group: str
    key: str
    counts: str
    image: str = ""


@dataclass(frozen=True)
class FoldData:
    """The data of a fold, the same for every model.

    Parameters
    ----------
    fold
        Names of the slides.
    both
        Spots of the training slides, then of the test slides, with expression.
    rows
        (n_test,) rows of the AnnData that the test spots came from.
    panel
        Modelled genes.
    """

    fold: Fold
    both: SpotData
    rows: NDArray[np.intp]
    panel: list[str]

    @property
    def train(self) -> SpotData:
        """Spots to learn from."""
        return self.both.select(range(len(self.fold.train)))

    @property
    def test(self) -> SpotData:
        """Spots to score, without their expression."""
        part = self.both.select(range(len(self.fold.train), len(self.both.slides)))
        return replace(part, expression=None, counts=None)

    @property
    def measured(self) -> NDArray[np.float32]:
        """(n_test, M) expression of the test spots."""
        return self.both.expression[len(self.both) - len(self.rows) :].numpy()  # type: ignore[index]


class FoldSource(Protocol):
    """Where the data of folds come from; :class:`gdml.spots.folds.FoldMaker` makes them from an AnnData.

    Attributes
    ----------
    slides
        All slides by name.
    spots
        Their spots, without expression.
    normalization
        The scale of the expression.
    layer
        Layer of the counts; None for ``X``.
    features, tiles
        Encoder and geometry, as :class:`gdml.training.TrainedModel` has them.
    """

    slides: dict[str, Slide]
    spots: SpotData
    normalization: Normalization
    layer: str | None
    features: dict[str, Any]
    tiles: dict[str, Any]

    def panel(self, fold: Fold) -> list[str]:
        """Choose the panel of a fold."""
        ...

    def make(self, fold: Fold, panel: list[str]) -> FoldData:
        """Make the data of a fold."""
        ...

    def attainable(self, fold: Fold, panel: list[str]) -> NDArray[np.float64]:
        """PCC of each gene that a perfect prediction of the training slides would have."""
        ...


@dataclass(frozen=True)
class Plan:
    """All runs of a comparison.

    Parameters
    ----------
    source
        Of the folds' data.
    folds, candidates, seeds
        Every combination is a run; a model in closed form has the first seed alone. Of several repeats, each has one
        seed.
    protocol
        Rules.
    fabric
        Devices, processes and precision.
    folder
        Of finished runs.
    validation, validation_fraction, group_key
        How training spots are held out.
    n_repeats
        How often the folds were made.
    models
        Folder that the models of all runs are kept in; None: they are not kept.
    """

    source: FoldSource
    folds: Sequence[Fold]
    candidates: Sequence[Candidate]
    seeds: Sequence[int]
    protocol: Rules
    fabric: Fabric
    folder: Path
    validation: str | None = "auto"
    validation_fraction: float = 0.2
    group_key: str | None = None
    n_repeats: int = 1
    models: Path | None = None

    def runs(self) -> list[tuple[Fold, Candidate, int]]:
        """Every run, fold by fold."""
        return [
            (fold, candidate, seed)
            for fold in self.folds
            for candidate in self.candidates
            for seed in self._seeds_of(fold, candidate)
        ]

    def _seeds_of(self, fold: Fold, candidate: Candidate) -> Sequence[int]:
        if self.n_repeats > 1:
            return self.seeds[fold.repeat : fold.repeat + 1]
        return self.seeds[:1] if candidate.model.closed_form else self.seeds

    def record(self, data: FoldData, candidate: Candidate, seed: int) -> dict[str, Any]:
        """Everything that the result of a run depends on; its ``provenance_key`` is the key of the run."""
        loop = {name: value for name, value in asdict(candidate.loop).items() if name != "num_workers"}
        slides = self.source.slides
        return {
            "model": candidate.name,
            "code": code_digest(candidate.model),
            "config": asdict(candidate.config),
            "training": loop,
            "frame": asdict(candidate.frame),
            "seed": int(seed),
            "select_on_test": self.protocol.select_on_test,
            "validation": [self.validation, self.validation_fraction],
            "panel": list(data.panel),
            "normalization": self.source.normalization.to_dict(),
            "train": [[slides[name].key, slides[name].group] for name in data.fold.train],
            "test": [slides[name].key for name in data.fold.test],
            "cut": [[array_digest(part) for part in parts] for parts in (data.fold.cut or {}).values()],
            "max_context": data.both.max_context,
            "device": self.fabric.device.type,
            "precision": str(self.fabric.strategy.precision.precision),
            "processes": self.fabric.world_size,
            "gdml": version("gdml"),
        }


@dataclass
class Results:
    """Scores and predictions of all runs.

    Parameters
    ----------
    scores, runs
        As in :class:`gdml.tl.Comparison`.
    predictions
        Prediction of the first seed by model and fold.
    data
        Rows, panel and measured expression by fold.
    """

    scores: pd.DataFrame
    runs: pd.DataFrame
    predictions: dict[tuple[str, str], NDArray[np.float32]] = field(default_factory=dict)
    data: dict[str, tuple[NDArray[np.intp], list[str], NDArray[np.float32]]] = field(default_factory=dict)


def run_plan(plan: Plan) -> Results:
    """Do the runs that are missing, fold by fold.

    Raises
    ------
    OSError
        If the folder of finished runs can't be written to; before the first run.
    ValueError
        If a model needs parts that were not embedded, or a panel can't be chosen; before the first run.
    """
    for candidate in plan.candidates:
        candidate.check(replace(plan.source.spots.shape(), n_genes=1))
    panels = {fold.name: plan.source.panel(fold) for fold in plan.folds}
    store = RunStore(plan.folder)
    scores, rows = [], []
    results = Results(pd.DataFrame(columns=_COLUMNS), pd.DataFrame())
    runs, data = plan.runs(), None
    with bar(len(runs), desc="cross_validate", unit="run") as progress:
        for fold, candidate, seed in runs:
            if data is None or data.fold is not fold:
                data = plan.source.make(fold, panels[fold.name])
                results.data[fold.name] = (data.rows, data.panel, data.measured)
            about = f"{candidate.label}, {fold.name}, seed {seed}"

            def show(epoch: int, n_epochs: int, losses: Mapping[str, float], about: str = about) -> None:
                score = f", val_pcc {losses['val_pcc']:.3f}" if "val_pcc" in losses else ""
                progress.set_postfix_str(f"{about}, epoch {epoch}/{n_epochs}{score}")

            progress.set_postfix_str(about)
            run, row = _one(plan, store, data, candidate, seed, show)
            rows.append(row)
            if run is not None:
                scores.append(_scores(plan, data, candidate.label, seed, run))
                results.predictions.setdefault((candidate.label, fold.name), run.prediction)
            progress.update()
    order = {candidate.label: i for i, candidate in enumerate(plan.candidates)}
    by_model: dict[str, Any] = {"key": lambda label: label.map(order), "kind": "stable", "ignore_index": True}
    results.runs = pd.DataFrame(rows).sort_values("model", **by_model)
    if scores:
        results.scores = pd.concat(scores, ignore_index=True).sort_values("model", **by_model)
    return results


def _one(
    plan: Plan, store: RunStore, data: FoldData, candidate: Candidate, seed: int, show: Callable[..., None]
) -> tuple[Finished | None, dict[str, Any]]:
    """One run, from disk if it is finished, with its row of the table."""
    row: dict[str, Any] = {"model": candidate.label, "fold": data.fold.name, "repeat": data.fold.repeat, "seed": seed}
    row |= {"status": "done", "error": "", "saved": ""}
    measured, fabric = data.measured, plan.fabric
    constant = {g for spots in _parts(plan, data) for g in np.flatnonzero(np.ptp(measured[spots], axis=0) == 0)}
    about = plan.record(data, candidate, seed)
    key = provenance_key(about)
    run = fabric.broadcast(store.read(key, measured.shape) if fabric.is_global_zero else None)
    kept = None if plan.models is None else model_folder(plan.models, candidate.label, key)
    if kept is not None and not fabric.broadcast(is_kept(kept, key)):
        run = None  # finished earlier, without its model
    if run is None:
        try:
            run = _train_and_predict(plan, data, candidate, seed, show)
        except Exception as error:  # noqa: BLE001 an error of one model must not end the runs of the others
            tell(f"cross_validate: {candidate.label!r} failed on fold {data.fold.name!r}, seed {seed}: {error}")
            row |= {"status": "failed", "error": traceback.format_exc(limit=-3)}
        else:
            if fabric.is_global_zero:
                try:
                    store.write(key, run, about)
                except OSError as error:
                    tell(f"cross_validate: a finished run could not be kept ({error}); its scores are not lost.")
    row |= {
        "epoch": run.epoch if run else 0,
        "seconds": run.seconds if run else np.nan,
        "parameters": run.parameters if run else 0,
        "n_train": len(data.both) - len(data.rows),
        "n_test": len(data.rows),
        "n_genes": len(data.panel),
        "n_constant": len(constant),
    }
    if run is not None and kept is not None and is_kept(kept, key):
        row["saved"] = str(kept)
    return run, row


def _train_and_predict(
    plan: Plan, data: FoldData, candidate: Candidate, seed: int, show: Callable[..., None]
) -> Finished:
    normalization, fabric, start = plan.source.normalization, plan.fabric, time.perf_counter()
    config = candidate.model.adapt(candidate.config, normalization.to_dict())
    if plan.protocol.select_on_test:
        spots, loop = data.both, replace(candidate.loop, refit=False)
        rows = torch.arange(len(spots))
        n_train = len(spots) - len(data.rows)
        splits = [Split(rows[:n_train], rows[n_train:], "the test fold", data.fold.test)]
    else:
        spots, loop = data.train, candidate.loop
        arguments = (spots, plan.validation, plan.validation_fraction, plan.group_key, seed)
        several = candidate.model.holds_out_every_spot(config)
        splits = make_splits(*arguments, several=several, smooth=normalization.smooth)
    settings = (candidate.model, config, spots, splits, loop, fabric, seed)
    trained = fit_model(*settings, frame=candidate.frame, on_epoch=show)
    module, run, n_epochs = trained
    if run.interrupted:  # by the user: a partial training is no finished run
        raise KeyboardInterrupt
    try:
        prediction = predict(fabric.to_device(module), data.test, fabric)[0].numpy()  # type: ignore[arg-type]
    finally:
        module.cpu()
    if not np.isfinite(prediction).all():
        raise FloatingPointError("The predictions hold NaN or infinite values.")
    high = () if run.validation_pcc is None else metrics.top_genes(run.validation_pcc[None], N_HIGH)
    if plan.models is not None and fabric.is_global_zero:
        keep_model(plan, data, candidate, seed, trained)
    return Finished(prediction, time.perf_counter() - start, n_epochs, tuple(map(int, high)), module.n_parameters)


def _parts(plan: Plan, data: FoldData) -> list[NDArray[np.intp]]:
    """Test spots over which a correlation is computed: those of each slide, or all of the fold."""
    if plan.protocol.pooled:
        return [np.arange(len(data.rows))]
    lengths = [len(slide) for slide in data.both.slides[len(data.fold.train) :]]
    return np.split(np.arange(len(data.rows)), np.cumsum(lengths)[:-1])


def _scores(plan: Plan, data: FoldData, label: str, seed: int, run: Finished) -> pd.DataFrame:
    """Scores of a run, a row for each slide and gene."""
    high = np.isin(np.arange(len(data.panel)), run.high_genes)
    groups = [plan.source.slides[name].group for name in data.fold.test]
    names: Sequence[str] = data.fold.test
    if plan.protocol.pooled:
        names, groups = ["all spots"], [", ".join(dict.fromkeys(groups))]
    tables = []
    for name, group, rows in zip(names, groups, _parts(plan, data), strict=True):
        y, p = data.measured[rows], run.prediction[rows]
        values = {
            "model": label,
            "fold": data.fold.name,
            "repeat": data.fold.repeat,
            "seed": seed,
            "slide": name,
            "group": group,
            "gene": data.panel,
            "n_spots": len(rows),
            "pcc": metrics.pearson_per_gene(y, p),
            "spearman": metrics.spearman_per_gene(y, p),
            "mse": metrics.mse_per_gene(y, p),
            "mae": metrics.mae_per_gene(y, p),
            "high": high,
        }
        tables.append(pd.DataFrame(values, columns=_COLUMNS))
    return pd.concat(tables, ignore_index=True)
