"""A trained model with all that it needs to predict, in memory and on disk."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from gdml.models.base import Shape, SpotModel, config_record, get_model, make_config

_FORMAT = "gdml-model"
_FORMAT_VERSION = 1
_WEIGHTS = "model.safetensors"
_RECORD = "model.json"
#: What the JSON must hold.
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


@dataclass
class TrainedModel:
    """A trained model: predict with :func:`gdml.tl.predict`, keep with its ``save``, read with :func:`gdml.load`.

    Parameters
    ----------
    module
        The network (or solved regression), in evaluation mode, on the CPU.
    name
        Name of the model, as ``model=`` takes it.
    panel
        Panel genes, in the order of the predictions.
    normalization
        Fields of the :class:`gdml.expression.Normalization` that the predictions are on the scale of.
    features
        Encoder of the features: ``encoder``, ``identity``, ``precision``, ``tokens``, ``n_tokens``, ``dim``.
    tiles
        Geometry: ``tile_um`` (None where tiles are of ``tile_px`` native pixels), ``tile_px``, ``n_side``.
    high_genes
        The 50 panel genes with the best PCC on the validation split, best first; empty without one.
    training
        Settings, seed, split, best epoch and versions of the run.
    history
        Quantities by epoch.
    path
        Folder that it was last saved in or read from; None before.
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
    path: str | None = None

    def __repr__(self) -> str:
        n = sum(p.numel() for p in self.module.parameters())
        return (
            f"TrainedModel({self.name!r}, {len(self.panel)} genes, encoder {self.features['encoder']!r}, "
            f"{n / 1e6:.1f} M parameters)"
        )

    @property
    def best_epoch(self) -> int:
        """Epoch that the validation split chose, from 1; 0 for a model solved in closed form."""
        return int(self.training.get("best_epoch", 0))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model to a folder: weights as safetensors, everything else as JSON.

        The folder appears whole or not at all.

        Parameters
        ----------
        path
            Folder to make.
        overwrite
            Replace a model that is there already.

        Raises
        ------
        FileExistsError
            If ``path`` exists, and is no saved model or ``overwrite`` is False.
        """
        target = Path(path).expanduser().absolute()
        if target.exists():
            if not (target / _RECORD).is_file():
                raise FileExistsError(f"`path` {str(target)!r} exists and is no saved model; choose another one.")
            if not overwrite:
                raise FileExistsError(
                    f"`path` {str(target)!r} holds a saved model; choose another one or pass overwrite=True."
                )
        target.parent.mkdir(parents=True, exist_ok=True)
        weights = save_tensors({k: v.contiguous() for k, v in _own_tensors(self.module).items()})
        record = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "model": self.name,
            "citation": self.module.citation,
            "config": config_record(self.module.config),
            "shape": asdict(self.module.shape),
            "panel": list(self.panel),
            "normalization": self.normalization,
            "features": self.features,
            "tiles": self.tiles,
            "high_genes": list(self.high_genes),
            "training": self.training,
            "history": {k: [float(x) if np.isfinite(x) else None for x in v] for k, v in self.history.items()},
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            (made / _WEIGHTS).write_bytes(weights)
            (made / _RECORD).write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
            made.chmod(0o755)
            if target.exists():
                _exchange(made, target)
            else:
                os.replace(made, target)
        finally:
            shutil.rmtree(made, ignore_errors=True)
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
                f"The weights in {str(folder)!r} don't fit the {record['model']!r} that {_RECORD} describes."
            )
        module.load_state_dict(tensors, strict=False)
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
            path=str(folder),
        )


def load(path: str | os.PathLike[str]) -> TrainedModel:
    """Read a trained model; no AnnData is needed, and no code comes from the file.

    Parameters
    ----------
    path
        Folder that :meth:`gdml.training.TrainedModel.save` wrote.

    Returns
    -------
    The model, on the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or a file of it is missing.
    ValueError
        If it is not a gdml model, is damaged, or was written by a newer gdml.
    """
    return TrainedModel.load(path)


def weights_digest(module: SpotModel) -> str:
    """Short hash of a model's weights, hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(_own_tensors(module).items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _own_tensors(module: SpotModel) -> dict[str, torch.Tensor]:
    """Weights and buffers by name, those that two names share once (safetensors refuses shared memory)."""
    seen: set[int] = set()
    own = {}
    for name, tensor in module.state_dict().items():
        if tensor.data_ptr() not in seen or not tensor.numel():
            seen.add(tensor.data_ptr())
            own[name] = tensor
    return own


def _read_record(folder: Path) -> dict[str, Any]:
    """Read and check the JSON of a saved model."""
    where = repr(str(folder))
    if not folder.exists():
        raise FileNotFoundError(f"`path` {where} does not exist; model.save(path) writes one.")
    missing = [name for name in (_RECORD, _WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"`path` {where} is not a whole gdml model: {' and '.join(missing)} missing.")
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: {_RECORD} is truncated or not JSON ({error}).") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise ValueError(f"{where} is not a gdml model: {_RECORD} does not say so.")
    version = record.get("format_version")
    if isinstance(version, int) and version > _FORMAT_VERSION:
        raise ValueError(
            f"{where} was written by a newer gdml (format {version}, this one reads {_FORMAT_VERSION}): "
            "pip install --upgrade gdml."
        )
    wrong = [name for name, kind in _PARTS.items() if not isinstance(record.get(name), kind)]
    if wrong:
        raise ValueError(f"{where} is not a whole gdml model: {_RECORD} lacks {', '.join(wrong)}.")
    return record


def _make_module(folder: Path, record: dict[str, Any]) -> SpotModel:
    """Make the untrained model that the JSON describes; the user's random state is untouched."""
    try:
        model = get_model(record["model"])
        with torch.random.fork_rng(devices=[]):
            module = model(make_config(model, None, record["config"]), Shape(**record["shape"]))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{str(folder)!r}: {_RECORD} describes a model that this gdml can't make ({error}): it was changed, or "
            "written by another version."
        ) from error
    if len(record["panel"]) != module.shape.n_genes:
        raise ValueError(
            f"{str(folder)!r}: {_RECORD} names {len(record['panel'])} panel genes for {module.shape.n_genes} outputs."
        )
    return module


def _exchange(made: Path, target: Path) -> None:
    """Put a folder in the place of another, which is back in its place where that fails."""
    old = made.with_name(made.name + "-old")
    os.replace(target, old)
    try:
        os.replace(made, target)
    except BaseException:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
