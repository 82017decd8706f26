"""Models of the folds of a comparison, kept where they are asked for."""

import math
import re
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from gdml import metrics
from gdml._marker import marked
from gdml._progress import tell
from gdml._provenance import provenance_key
from gdml.models.base import SpotModel

from .errors import held_out_errors
from .familiarity import Familiarity
from .loop import Run
from .trained import TrainedModel
from .warrant import Warrant

if TYPE_CHECKING:
    from .candidates import Candidate
    from .compare import FoldData, Plan

_N_HIGH = 50
_SCALE = ("order", "target_sum", "log", "smooth")


def model_folder(root: Path, label: str, key: str) -> Path:
    """Folder of the model of a run.

    Parameters
    ----------
    root
        Folder of the folders.
    label
        Of the model; letters that a file system may refuse are left out.
    key
        Provenance key of the run.
    """
    name = re.sub(r"[^A-Za-z0-9-]+", "-", label).strip("-")[:40]
    return root / f"{name or 'model'}-{key}"


def is_kept(folder: Path, key: str) -> bool:
    """Whether the model of the run with this key lies in the folder."""
    found = marked(folder) or {}
    return found.get("gdml") == "models" and found.get("provenance") == key


def keep_model(
    plan: "Plan", data: "FoldData", candidate: "Candidate", seed: int, fitted: tuple[SpotModel, Run, int]
) -> None:
    """Keep the model of a run in ``plan.models``; a failure costs the file, not the scores.

    Parameters are those of :func:`as_trained`.
    """
    key = provenance_key(plan.record(data, candidate, seed))
    folder = model_folder(plan.models, candidate.label, key)  # type: ignore[arg-type]
    try:
        as_trained(plan, data, candidate, seed, fitted, key).save(folder, overwrite=True)
    except OSError as error:
        tell(f"cross_validate: the model of a run could not be kept ({error}); its scores are not lost.")


def as_trained(
    plan: "Plan",
    data: "FoldData",
    candidate: "Candidate",
    seed: int,
    fitted: tuple[SpotModel, Run, int],
    key: str,
) -> TrainedModel:
    """Make the model of a run as :func:`gdml.tl.fit` returns one.

    What it says of genes, intervals and unusual slides is what the training spots of its fold say, as after ``fit`` on them;
    where the epoch was chosen on the test fold, nothing is known of genes and intervals.

    Parameters
    ----------
    plan, data, candidate, seed
        The run.
    fitted
        What :func:`gdml.training.fitting.fit_model` returned.
    key
        Provenance key of the run.
    """
    module, run, n_epochs = fitted
    source, fold = plan.source, data.fold
    scale: dict[str, Any] = source.normalization.to_dict()
    high = () if run.validation_pcc is None else metrics.top_genes(run.validation_pcc[None], _N_HIGH)
    members, train = candidate.model.members(module.config), data.train
    # where the epoch was chosen on the test fold, the training spots were not held out
    held_out = None if plan.protocol.select_on_test else run.out_of_fold
    warrant = calibration = spread = None
    if held_out is not None:
        attainable = source.attainable(fold, data.panel)
        warrant = Warrant.make(held_out, train, pd.Index(data.panel), attainable, plan.group_key)
        calibration, spread = held_out_errors(held_out, train, plan.group_key)
    return TrainedModel(
        module=module,
        name=candidate.name,
        panel=tuple(map(str, data.panel)),
        normalization={name: scale[name] for name in _SCALE},
        features=source.features,
        tiles=source.tiles,
        high_genes=tuple(str(data.panel[i]) for i in high),
        training={
            "config": asdict(module.config),
            "settings": {name: value for name, value in asdict(candidate.loop).items() if value is not None},
            "frame": asdict(candidate.frame),
            "seed": int(seed),
            "fold": {"name": fold.name, "repeat": fold.repeat, "test": list(fold.test), "within": fold.cut is not None},
            "split": {"groups": plan.group_key or "slide"},
            "protocol": plan.protocol.name,
            "best_epoch": run.best_epoch,
            "n_epochs": n_epochs,
            "shares": dict(zip(members, run.shares, strict=True)) if run.shares else {},
            **({"gain": run.gain} if math.isfinite(run.gain) else {}),
            "n_spots": len(train),
            "slides": list(fold.train),
            "device": plan.fabric.device.type,
            "versions": {"gdml": version("gdml")},
        },
        history=run.history,
        slides={name: {"image": source.slides[name].image, "key": source.slides[name].key} for name in fold.train},
        provenance=key,
        warrant=warrant,
        calibration=calibration,
        error_spread=spread,
        familiarity=Familiarity.fit(train),
    )
