"""A trained model with everything that it needs to predict, in memory and on disk."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from gdml._errors import check_path
from gdml._marker import mark, marked
from gdml._saved import Saved, whole_folder
from gdml.conformal import Calibration, ErrorSpread
from gdml.models.base import Shape, SpotModel, get_model, make_config

from .errors import pack, unpack
from .familiarity import Familiarity
from .frame import FRAMES, FrameConfig, make_module
from .warrant import Warrant

_FORMAT = "gdml-model"
_FORMAT_VERSION = 3  # 2: provenance and training slides; 3: frame
_WEIGHTS = "model.safetensors"
_CALIBRATION = "calibration.safetensors"  # not of every model
_FAMILIARITY = "familiarity.safetensors"
_RECORD = "model.json"
_KIND = "models"  # in the marker
_SAVED = Saved("model", _RECORD, (_WEIGHTS,), _FORMAT, _FORMAT_VERSION, "model.save(path)")
#: Entries of the JSON and their types.
_PARTS = {
    "format_version": int,
    "model": str,
    "config": dict,
    "shape": dict,
    "panel": list,
    "normalization": dict,
    "features": dict,
    "tiles": dict,
    "high_genes": list,
    "training": dict,
    "history": dict,
    "weights_sha256": str,
}
#: Values of fields that the configs of models did not have before format 3.
_BEFORE_3: dict[str, dict[str, Any]] = {"ridge": {"penalty": "one"}}
_SINCE: dict[int, dict[str, Any]] = {2: {"provenance": str, "slides": dict | None}, 3: {"frame": dict}}


@dataclass
class TrainedModel:
    """A trained model: predict with :func:`gdml.tl.predict`, write with ``save``, read with :func:`gdml.load`.

    Parameters
    ----------
    module
        The network (or solved regression), in evaluation mode, on the CPU.
    name
        Name of the model, one of :func:`gdml.models.list_models`.
    panel
        Panel genes, in the order of the predictions.
    normalization
        Fields of the :class:`gdml.expression.Normalization` of the predictions.
    features
        Encoder of the features: ``encoder``, ``identity``, ``precision``, ``tokens``, ``n_tokens``, ``dim``.
    tiles
        Geometry: ``tile_um`` (None for tiles of ``tile_px`` native pixels), ``tile_px``, ``n_side``.
    high_genes
        The 50 panel genes with the best PCC on the validation split, best first; empty without a split.
    training
        Settings, seed, split, best epoch and versions of the run.
    history
        Quantities by epoch.
    slides
        Training slides by name: ``image`` (fingerprint) and ``key`` (provenance) of each. None where they are unknown
        (models saved by gdml 0.1).
    provenance
        Key of everything that the model depends on; empty where unknown.
    warrant
        How far each gene can be trusted; None where no spots were held out, or the model was saved by an earlier gdml.
    calibration, error_spread
        How wide prediction intervals must be, and the predicted size of the errors (see ``gdml.conformal``); None where
        no spots were held out, or the model was saved by an earlier gdml.
    path
        Folder that the model was last saved in or read from; None before.
    familiarity
        Description of the training features, by which unusual slides and spots are told; None of models that were saved
        without one.
    """

    module: SpotModel
    name: str
    panel: tuple[str, ...]
    normalization: dict[str, Any]
    features: dict[str, Any]
    tiles: dict[str, Any]
    high_genes: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    history: dict[str, np.ndarray] = field(default_factory=dict)
    slides: dict[str, dict[str, str]] | None = None
    provenance: str = ""
    warrant: Warrant | None = None
    calibration: Calibration | None = None
    error_spread: ErrorSpread | None = None
    path: str | None = None
    familiarity: Familiarity | None = None

    def __repr__(self) -> str:
        return (
            f"TrainedModel({self.name!r}, {len(self.panel)} genes, encoder {self.features['encoder']!r}, "
            f"{self.module.n_parameters:,} parameters)"
        )

    @property
    def best_epoch(self) -> int:
        """Epoch selected on the validation split, from 1; 0 for a model solved in closed form."""
        return int(self.training.get("best_epoch", 0))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model to a folder: weights and calibration as safetensors, everything else as JSON.

        The folder is written completely or not at all.

        Parameters
        ----------
        path
            Folder to create.
        overwrite
            Replace a model that is saved there.

        Raises
        ------
        FileExistsError
            If ``path`` exists, and is not a saved model or ``overwrite`` is False.
        OSError
            If the folder cannot be written.
        """
        target = Path(path).expanduser().absolute()
        check_target(target, overwrite=overwrite)
        weights = save_tensors({k: v.contiguous() for k, v in _own_tensors(self.module).items()})
        record = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "model": self.name,
            "citation": self.module.citation,
            "config": asdict(self.module.config),
            "shape": asdict(self.module.shape),
            "frame": asdict(FRAMES["raw"] if self.module.frame is None else self.module.frame.config),
            "panel": list(self.panel),
            "normalization": self.normalization,
            "features": self.features,
            "tiles": self.tiles,
            "high_genes": list(self.high_genes),
            "training": self.training,
            "history": {k: [float(x) if np.isfinite(x) else None for x in v] for k, v in self.history.items()},
            "slides": self.slides,
            "provenance": self.provenance,
            "warrant": None if self.warrant is None else self.warrant.to_dict(),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }
        described = None
        if self.familiarity is not None:
            described, record["familiarity"] = self.familiarity.save()
        errors = None
        if self.calibration is not None and self.error_spread is not None:
            errors = pack(self.calibration, self.error_spread)
            record["calibration_sha256"] = hashlib.sha256(errors).hexdigest()
        with whole_folder(target) as made:
            (made / _WEIGHTS).write_bytes(weights)
            if described is not None:
                (made / _FAMILIARITY).write_bytes(described)
            if errors is not None:
                (made / _CALIBRATION).write_bytes(errors)
            (made / _RECORD).write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
            mark(made, _KIND, name=self.name, provenance=self.provenance)
        self.path = str(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a model that :meth:`save` wrote; see :func:`gdml.load`."""
        folder = Path(path).expanduser().absolute()
        record = _read_record(folder)
        module = _make_module(folder, record)
        raw = (folder / _WEIGHTS).read_bytes()
        if hashlib.sha256(raw).hexdigest() != record["weights_sha256"]:
            raise ValueError(
                f"{str(folder / _WEIGHTS)!r} is truncated or damaged (its checksum differs): save it again."
            )
        tensors = load_tensors(raw)
        expected = _own_tensors(module)
        if tensors.keys() != expected.keys() or any(tensors[k].shape != expected[k].shape for k in expected):
            raise ValueError(
                f"The weights in {str(folder)!r} don't fit the {record['model']!r} that {_RECORD} describes"
                + ("; it was saved by gdml 0.1, train it again." if record["format_version"] == 1 else ".")
            )
        module.load_state_dict(tensors, strict=False)
        calibration, spread = _read_calibration(folder, record)
        return cls(
            module=module.eval(),
            name=record["model"],
            panel=tuple(record["panel"]),
            normalization=record["normalization"],
            features=record["features"],
            tiles=record["tiles"],
            high_genes=tuple(record["high_genes"]),
            training=record["training"],
            history={k: np.array([np.nan if x is None else x for x in v]) for k, v in record["history"].items()},
            slides=record.get("slides"),
            provenance=record.get("provenance", ""),
            warrant=_read_warrant(folder, record),
            calibration=calibration,
            error_spread=spread,
            path=str(folder),
            familiarity=_read_familiarity(folder, record),
        )


def check_target(path: str | os.PathLike[str], *, overwrite: bool, name: str = "path") -> None:
    """Refuse a folder that a model must not be saved in.

    Parameters
    ----------
    path
        Folder to save in.
    overwrite
        Whether a model that is saved there may be replaced.
    name
        Name of the argument, for messages.

    Raises
    ------
    FileExistsError
        If the folder exists, and is not a saved model or ``overwrite`` is False.
    TypeError
        If ``path`` is no path.
    """
    check_path(name, path)
    target = Path(path).expanduser()
    _SAVED.check_target(target, mine=_is_model(target), overwrite=overwrite, name=name)


def _is_model(folder: Path) -> bool:
    """Whether gdml saved a model there; version 1 had no marker."""
    if (marked(folder) or {}).get("gdml") == _KIND:
        return True
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("format") == _FORMAT


def load(path: str | os.PathLike[str]) -> TrainedModel:
    """Read a trained model. No AnnData is needed, and no code is run from the file.

    Parameters
    ----------
    path
        Folder written by :meth:`gdml.training.TrainedModel.save`. Models of gdml 0.1 are read too; which slides they
        were trained on is not known.

    Returns
    -------
    The model, on the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or a file of it is missing.
    TypeError
        If ``path`` is no path.
    ValueError
        If it is not a gdml model, is damaged, or was written by a newer gdml.
    """
    check_path("path", path)
    return TrainedModel.load(path)


def weights_digest(module: SpotModel) -> str:
    """Short hash of a model's weights, hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_own_tensors(module).items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _own_tensors(module: SpotModel) -> dict[str, torch.Tensor]:
    """Weights and buffers by name; tensors with two names once, since safetensors refuses shared memory."""
    seen: set[int] = set()
    own = {}
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            own[name] = tensor
    return own


def _read_record(folder: Path) -> dict[str, Any]:
    """Read and check the JSON of a saved model."""
    record, where = _SAVED.read(folder), repr(str(folder))
    version = record.get("format_version")
    parts: dict[str, Any] = dict(_PARTS)
    for since, more in _SINCE.items():
        parts |= more if isinstance(version, int) and version >= since else {}
    wrong = [name for name, kind in parts.items() if name not in record or not isinstance(record[name], kind)]
    if wrong:
        raise ValueError(f"{where} is not a whole gdml model: {_RECORD} lacks {', '.join(wrong)}.")
    return record


def _read_warrant(folder: Path, record: dict[str, Any]) -> Warrant | None:
    """Read what the JSON says of each gene; models of earlier versions say nothing."""
    if record.get("warrant") is None:
        return None
    try:
        warrant = Warrant.from_dict(record["warrant"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(folder)!r}: the warrant in {_RECORD} is damaged ({error!r}).") from error
    if list(warrant.genes.index) != list(record["panel"]):
        raise ValueError(f"{str(folder)!r}: the warrant in {_RECORD} is that of other genes than the panel.")
    return warrant


def _read_familiarity(folder: Path, record: dict[str, Any]) -> Familiarity | None:
    """Read the description of the training features; None where the model was saved without one."""
    about, path = record.get("familiarity"), folder / _FAMILIARITY
    if about is None:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"`path` {str(folder)!r} is not a whole gdml model: {_FAMILIARITY} missing.")
    try:
        return Familiarity.load(path.read_bytes(), about, record["shape"]["dim"])
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{str(path)!r} {error}: save the model again.") from error


def _read_calibration(folder: Path, record: dict[str, Any]) -> tuple[Calibration, ErrorSpread] | tuple[None, None]:
    """Read what intervals are made from; models of earlier versions have nothing of the kind."""
    digest = record.get("calibration_sha256")
    if digest is None:
        return None, None
    path = folder / _CALIBRATION
    if not path.is_file():
        raise FileNotFoundError(f"`path` {str(folder)!r} is not a whole gdml model: {_CALIBRATION} missing.")
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != digest:
        raise ValueError(f"{str(path)!r} is truncated or damaged (its checksum differs): save it again.")
    calibration, spread = unpack(raw)
    if calibration.n_genes != len(record["panel"]):
        raise ValueError(f"{str(path)!r} is of {calibration.n_genes} genes, the panel of {len(record['panel'])}.")
    return calibration, spread


def _make_module(folder: Path, record: dict[str, Any]) -> SpotModel:
    """Make the untrained model that the JSON describes, without touching the user's random state."""
    try:
        model = get_model(record["model"])
        with torch.random.fork_rng(devices=[]):
            earlier = {} if "frame" in record else _BEFORE_3.get(record["model"], {})
            config = make_config(model, None, earlier | record["config"])
            frame = FrameConfig(**record["frame"]) if "frame" in record else FRAMES["raw"]
            module = make_module(model, config, Shape(**record["shape"]), frame)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(folder)!r}: {_RECORD} describes a model that this gdml can't make ({error}): the file was changed, or "
            "written by another version."
        ) from error
    if len(record["panel"]) != module.shape.n_genes:
        raise ValueError(
            f"{str(folder)!r}: {_RECORD} names {len(record['panel'])} panel genes for {module.shape.n_genes} outputs."
        )
    return module
