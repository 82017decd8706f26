"""What a fit and a prediction record of themselves."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from gdml import metrics

if TYPE_CHECKING:
    from gdml.training.loop import Run
    from gdml.training.split import Split

_N_HIGH = 50


def high_genes(run: "Run", panel: Any) -> tuple[str, ...]:
    if run.validation_pcc is None:
        return ()
    return tuple(str(panel[i]) for i in metrics.top_genes(run.validation_pcc[None], _N_HIGH))


def split_record(split: "Split | None", groups: str | None) -> dict[str, Any]:
    if split is None:
        return {"by": "none"}
    return {
        "by": split.by,
        "groups": groups or "slide",
        "held_out": ", ".join(split.held_out),
        "n_train": len(split.train),
        "n_validation": len(split.validation),
    }


def tile_geometry(tiles: Any) -> dict[str, Any]:
    um = float(tiles["tile_um"])
    return {
        "tile_um": um if np.isfinite(um) else None,
        "tile_px": int(tiles["tile_px"]),
        "n_side": int(tiles["n_side"]),
    }


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Python numbers and strings in place of numpy's, which h5ad gives back and JSON refuses."""
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in record.items()}


def summary(run: "Run", split: "Split | None", n_epochs: int) -> str:
    if split is None or "val_pcc" not in run.history:
        return f"{n_epochs} epochs" if n_epochs else "solved"
    best = run.history["val_pcc"][run.best_epoch - 1]
    return f"validation PCC(A) {best:.3f} at epoch {run.best_epoch} (split by {split.by})"


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {name: version(name) for name in ("gdml", "anndata", "numpy", "torch", "timm")}
    return {"python": platform.python_version(), **found}
