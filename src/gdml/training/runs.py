"""Finished runs on disk: a comparison that was stopped continues with the runs that are missing."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdml._marker import CACHE_DIR, check_writable, mark

_RECORD, _VALUES = "run.json", "prediction.safetensors"
_FORMAT = "gdml-run"


@dataclass(frozen=True)
class Finished:
    """Result of a run.

    Parameters
    ----------
    prediction
        (n_test, M) float32, rows and columns as the fold has them.
    seconds
        Of training and prediction.
    epoch
        Epochs of the last training; 0 for a closed form.
    high_genes
        Columns of the genes that the validation split found best, best first.
    parameters
        Number of learnt and solved numbers in the model.
    """

    prediction: NDArray[np.float32]
    seconds: float
    epoch: int
    high_genes: tuple[int, ...]
    parameters: int


class RunStore:
    """Folders of finished runs, named by their provenance keys.

    A folder appears whole or not at all, so a run that was killed is done again.

    Parameters
    ----------
    root
        Folder of the folders; made where it does not exist.

    Raises
    ------
    OSError
        If ``root`` can't be written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        check_writable(root, "Finished runs", f"save_to=, or {CACHE_DIR}")

    def read(self, key: str, shape: tuple[int, int]) -> Finished | None:
        """Read a finished run; None where there is none, or it is damaged.

        Parameters
        ----------
        key
            Provenance key of the run.
        shape
            Of its prediction.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = self.root / key
        try:
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            raw = (folder / _VALUES).read_bytes()
            if record["format"] != _FORMAT or record["sha256"] != hashlib.sha256(raw).hexdigest():
                return None
            prediction = load(raw)["prediction"]
            found = Finished(
                prediction,
                float(record["seconds"]),
                int(record["epoch"]),
                tuple(map(int, record["high_genes"])),
                int(record["parameters"]),
            )
        except (
            FileNotFoundError,
            json.JSONDecodeError,
            UnicodeDecodeError,
            KeyError,
            TypeError,
            ValueError,
            SafetensorError,
        ):
            return None
        return found if prediction.shape == shape else None

    def write(self, key: str, run: Finished, about: Mapping[str, Any]) -> None:
        """Keep a finished run.

        Parameters
        ----------
        key
            Provenance key of the run.
        run
            Its result.
        about
            Everything that it depends on, for readers.
        """
        from safetensors.numpy import save

        raw = save({"prediction": np.ascontiguousarray(run.prediction, np.float32)})
        numbers = {k: v for k, v in asdict(run).items() if k != "prediction"}
        record = {"format": _FORMAT, **numbers, "about": dict(about), "sha256": hashlib.sha256(raw).hexdigest()}
        self.root.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=self.root))
        try:
            (made / _VALUES).write_bytes(raw)
            (made / _RECORD).write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
            mark(made, "runs", model=str(about.get("model")), provenance=key)
            made.chmod(0o755)
            shutil.rmtree(self.root / key, ignore_errors=True)
            os.replace(made, self.root / key)
        finally:
            shutil.rmtree(made, ignore_errors=True)
