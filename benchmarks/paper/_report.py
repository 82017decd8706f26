"""Tables of measured and published scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from _published import METRICS

Row = Sequence[float | tuple[float, float]]
_OPTIMISTIC = "the epoch selected on the test fold, as published: OPTIMISTIC"
PROTOCOLS = {"paper": _OPTIMISTIC, "nested": "the epoch chosen on held-out training patients"}


def measured(found: Any) -> dict[str, list[tuple[float, float]]]:
    """Mean, and standard deviation over folds, of each score of :data:`METRICS`, by model."""
    table = found.intervals(n_bootstrap=1).pivot(index="model", columns="metric")
    return {model: [(table["mean", m][model], table["sd_folds", m][model]) for m in METRICS] for model in table.index}


def print_table(first: str, names: Sequence[Any], ours: Mapping[Any, Row], theirs: Mapping[Any, Row]) -> None:
    """Print a row per name with measured and published scores."""
    print(f"| {first} | " + " | ".join(f"{m}, measured | published" for m in METRICS.values()) + " |")
    print("|---|" + "---|" * (2 * len(METRICS)))
    for name in names:
        pairs = zip(_cells(ours.get(name)), _cells(theirs.get(name)), strict=True)
        print(f"| {name} | " + " | ".join(f"{a} | {b}" for a, b in pairs) + " |")


def _cells(row: Row | None) -> list[str]:
    return ["-"] * len(METRICS) if row is None else [cell(value) for value in row]


def cell(value: float | tuple[float, float]) -> str:
    """Format a number, with its standard deviation if it has one."""
    mean, spread = value if isinstance(value, tuple) else (value, float("nan"))
    if mean != mean:
        return "-"
    return f"{mean:.3f}" + ("" if spread != spread else f" ± {spread:.2f}")


def print_caveats(n_slides: int, n_all: int, options: Any, found: Any, note: str = "") -> None:
    """Print how the measured scores differ from the published ones."""
    tiles = "224 px as they are" if options.paper_tiles else "112 um"
    print(
        f"Measured: {n_slides} of {n_all} slides, encoder {options.encoder}, tiles of {tiles}, {PROTOCOLS[found.protocol]}."
    )
    print("Published: all slides, encoder UNI, the epoch selected on the test fold; PCC(H) ranked on the test folds,")
    print("and so is ours here. ± is the standard deviation over folds; the paper does not define its own.")
    print_if_another(n_slides < n_all, options)
    print(" ".join(filter(None, (found.note, note))))


def print_if_another(other_slides: bool, options: Any) -> None:
    """Print a warning if slides, encoder or tiles differ from those of the paper."""
    differ = {"slides": other_slides, "encoder": options.encoder != "uni", "tiles": not options.paper_tiles}
    if any(differ.values()):
        names = " and ".join(name for name, other in differ.items() if other)
        print(f"NOT THE SAME EXPERIMENT ({names} differ): differences from the paper do not describe the model.")


def print_failed(found: Any) -> None:
    """Print the runs that failed."""
    for row in found.runs[found.runs["status"] == "failed"].itertuples():
        print(f"FAILED: {row.model}, {row.fold}, seed {row.seed}: {str(row.error).strip().splitlines()[-1]}")
