"""What a fit records about itself."""

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
    """Genes with the best correlation on the validation split, best first; empty without a split."""
    if run.validation_pcc is None:
        return ()
    return tuple(str(panel[i]) for i in metrics.top_genes(run.validation_pcc[None], _N_HIGH))


def split_record(split: "Split | None", group_key: str | None) -> dict[str, Any]:
    """How spots were held out to select the epoch."""
    if split is None:
        return {"by": "none"}
    return {
        "by": split.by,
        "groups": group_key or "slide",
        "held_out": ", ".join(split.held_out),
        "n_train": len(split.train),
        "n_validation": len(split.validation),
    }


def tile_geometry(tiles: Any) -> dict[str, Any]:
    """Geometry of tiles that a model depends on; ``tile_um`` is None for native pixels."""
    um = float(tiles["tile_um"])
    return {
        "tile_um": um if np.isfinite(um) else None,
        "tile_px": int(tiles["tile_px"]),
        "n_side": int(tiles["n_side"]),
    }


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Python numbers, strings and lists instead of numpy's, which h5ad returns and JSON refuses."""
    return {k: v.tolist() if isinstance(v, np.generic | np.ndarray) else v for k, v in record.items()}


def summary(run: "Run", split: "Split | None", n_epochs: int) -> str:
    """Describe a run by its validation score and epochs."""
    if split is None or "val_pcc" not in run.history:
        return f"{n_epochs} epochs" if n_epochs else "solved in closed form"
    best = run.history["val_pcc"][run.best_epoch - 1]
    return f"validation PCC(A) {best:.3f} at epoch {run.best_epoch} (split by {split.by})"


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {name: version(name) for name in ("gdml", "anndata", "numpy", "torch", "timm")}
    return {"python": platform.python_version(), **found}
