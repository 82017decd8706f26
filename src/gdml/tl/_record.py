"""What a fit records about itself."""

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

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


def split_record(splits: "Sequence[Split]", group_key: str | None) -> dict[str, Any]:
    """How spots were held out to choose the epoch and the shares; sizes are those of the first split."""
    if not splits:
        return {"by": "none"}
    first = splits[0]
    held = first.held_out if first.by == "block" else [name for split in splits for name in split.held_out]
    return {
        "by": first.by,
        "groups": group_key or "slide",
        "n_splits": len(splits),
        "held_out": ", ".join(held),
        "n_train": len(first.train),
        "n_validation": len(first.validation),
    }


def summary(run: "Run", splits: "Sequence[Split]", n_epochs: int, members: Sequence[str] = ()) -> str:
    """Describe a run by its validation score, its epochs, and the shares of what it blends."""
    if not splits or run.validation_pcc is None:
        return f"{n_epochs} epochs" if n_epochs else "solved in closed form"
    said = f"validation PCC(A) {metrics.pcc_a(run.validation_pcc):.3f} (held out by {splits[0].by})"
    if n_epochs:
        said += f", {n_epochs} epochs"
    if run.shares:
        said += ", shares " + ", ".join(f"{name} {share:.1f}" for name, share in zip(members, run.shares, strict=True))
        if math.isfinite(run.gain):
            from gdml.training.shares import least_gain

            said += f" (best blend {run.gain:+.0%} on {members[0]} alone, needed {least_gain(splits[0]):+.0%})"
    return said


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {name: version(name) for name in ("gdml", "anndata", "numpy", "torch", "timm")}
    return {"python": platform.python_version(), **found}
