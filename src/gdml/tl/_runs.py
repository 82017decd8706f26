"""Finished runs on disk: a comparison that was stopped goes on where it was."""

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

_RECORD, _VALUES = "run.json", "prediction.safetensors"
_FORMAT = "gdml-run"


@dataclass(frozen=True)
class Finished:
    """What a run leaves.

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


def run_digest(record: Mapping[str, Any]) -> str:
    """Short hash of everything that a run's result depends on, hex."""
    text = json.dumps(record, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


class RunStore:
    """Folders of finished runs, named by the digest of what they depend on.

    A folder appears whole or not at all, so a run that was killed is done again.

    Parameters
    ----------
    root
        Folder that holds them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, digest: str, shape: tuple[int, int]) -> Finished | None:
        """Give a finished run, or None where there is none, or it is damaged.

        Parameters
        ----------
        digest
            Of the run.
        shape
            That its prediction must have.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = self.root / digest
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

    def write(self, digest: str, run: Finished, about: Mapping[str, Any]) -> None:
        """Keep a finished run.

        Parameters
        ----------
        digest
            Of the run.
        run
            Its result.
        about
            What it depends on, for readers.
        """
        from safetensors.numpy import save

        raw = save({"prediction": np.ascontiguousarray(run.prediction, np.float32)})
        numbers = {k: v for k, v in asdict(run).items() if k != "prediction"}
        record = {"format": _FORMAT, **numbers, "about": dict(about), "sha256": hashlib.sha256(raw).hexdigest()}
        self.root.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{digest}-", dir=self.root))
        try:
            (made / _VALUES).write_bytes(raw)
            (made / _RECORD).write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
            made.chmod(0o755)
            shutil.rmtree(self.root / digest, ignore_errors=True)
            os.replace(made, self.root / digest)
        finally:
            shutil.rmtree(made, ignore_errors=True)
