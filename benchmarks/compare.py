"""Every model on the five real HER2ST sections: three splits, three seeds, one encoder, one protocol.

    python benchmarks/compare.py                          # the table; finished runs are kept in results/runs
    python benchmarks/compare.py --models ridge triplex   # some of the models, for instance in a second process
    python benchmarks/compare.py --gain                   # what smoothing and selection on the test fold are worth

The sections are read from GDML_DATA_DIR or downloaded. A run is kept as soon as it is done and skipped when it is there,
so the script can be stopped and started again, and two processes can share the work.
"""

import argparse
import time
import warnings
from pathlib import Path

import torch

import gdml

SECTIONS = ["B4", "C2", "C3", "C4", "C6"]
SPLITS = {
    "B4, C2, C3, C4 to C6": (["B4", "C2", "C3", "C4"], ["C6"]),
    "B4 to C2, C3, C4, C6": (["B4"], ["C2", "C3", "C4", "C6"]),
    "C2, C3, C4, C6 to B4": (["C2", "C3", "C4", "C6"], ["B4"]),
}
MODELS = {
    "ridge": "ridge",
    "ridge, HEST": {"model": "ridge", "preset": "hest"},
    **{
        name: name
        for name in ("stnet", "histogene", "hist2st", "egn", "bleep", "triplex", "m2ost", "nh2st", "gene-dml")
    },
}
COLUMNS = {"pcc_a": "PCC(A)", "pcc_h": "PCC(H)", "pcc_h_best": "PCC(H), test-ranked", "mse": "MSE", "mae": "MAE"}
#: Steps from the nested protocol to the paper's.
GAIN = {
    "nested": {"protocol": "nested"},
    "nested, smoothed labels": {"protocol": "nested", "normalize": {"normalization": "paper"}},
    "paper: smoothed, selected on the test fold": {"protocol": "paper"},
}


def compare(adata, models: list[str], folder: Path, seeds: int, **options):
    """Run what is missing of the comparison; the first split has a patient on both sides, as its name says."""
    return gdml.tl.cross_validate(
        adata,
        {name: MODELS[name] for name in models},
        group_key="patient",
        folds=SPLITS,
        seeds=seeds,
        allow_shared_groups=True,
        save_to=folder,
        **options,
    )


def print_table(found) -> None:
    """Print a row for each model and split, then one for each model, with intervals over slides (or patients)."""
    table = found.intervals(by_fold=True).pivot(index=["fold", "model"], columns="metric")
    runs = found.runs.groupby(["fold", "model"])
    print("\n| split | model | " + " | ".join(COLUMNS.values()) + " | epochs | s a run |")
    print("|---|---|" + "---|" * (len(COLUMNS) + 2))
    for fold, model in found.summary(by_fold=True).index:
        row = table.loc[(fold, model)]
        cells = [_cell(row["mean", m], row["sd_seeds", m]) for m in COLUMNS]
        here = runs.get_group((fold, model))
        cells += [f"{here['epoch'].mean():.0f}", f"{here['seconds'].mean():.1f}"]
        print(f"| {fold} | {model} | " + " | ".join(cells) + " |")

    overall = found.intervals().pivot(index="model", columns="metric")
    difference = found.compare("ridge").set_index("model") if "ridge" in found.models else None
    seconds = found.runs.groupby("model")["seconds"].sum()
    print(
        "\n| model | "
        + " | ".join(COLUMNS.values())
        + " | PCC(A) less ridge | intervals over | parameters | all runs, s |"
    )
    print("|---|" + "---|" * (len(COLUMNS) + 4))
    for model in found.summary().index:
        row = overall.loc[model]
        cells = [_interval(row["mean", m], row["low", m], row["high", m]) for m in COLUMNS]
        less = "" if difference is None or model not in difference.index else difference.loc[model]
        cells.append(_interval(*less[["difference", "low", "high"]], sign=True) if len(less) else "")
        size = found.runs.loc[found.runs["model"] == model, "parameters"].max()
        over = f"{row['n_slides', 'pcc_a']} slides of {row['n_groups', 'pcc_a']} patients"
        cells += [over if row["interval_over", "pcc_a"] == "slides" else f"patients: {over}"]
        cells += [f"{size / 1e6:.2f} M", f"{seconds[model]:.0f}"]
        print(f"| {model} | " + " | ".join(cells) + " |")


def _cell(mean: float, sd: float) -> str:
    return f"{mean:.3f}" + ("" if sd != sd else f" ± {sd:.3f}")


def _interval(mean: float, low: float, high: float, *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def print_gain(adata, models: list[str], folder: Path, seeds: int) -> None:
    """Print what each step towards the paper's protocol adds."""
    print("\n| model | protocol | " + " | ".join(SPLITS) + " | mean PCC(A) |")
    print("|---|---|" + "---|" * (len(SPLITS) + 1))
    for name, options in GAIN.items():
        found = compare(adata, models, folder, seeds, **options)
        by_fold = found.intervals(by_fold=True)
        by_fold = by_fold[by_fold["metric"] == "pcc_a"].set_index(["model", "fold"])
        for model in found.models:
            values = [by_fold.loc[(model, fold)] for fold in SPLITS]
            mean = sum(value["mean"] for value in values) / len(values)
            cells = " | ".join(_cell(value["mean"], value["sd_seeds"]) for value in values)
            print(f"| {model} | {name} | {cells} | {mean:.3f} |", flush=True)


def matmul_rate(dtype: torch.dtype, n: int = 2048) -> float:
    """Rate of the machine's own matrix products, 1e9 operations a second."""
    a = torch.randn(n, n, dtype=dtype)
    a @ a
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    return 5 * 2 * n**3 / (time.perf_counter() - start) / 1e9


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--encoder", default="stain")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gain", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--csv", type=Path, help="write the scores of every gene there")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    adata = gdml.datasets.her2st(SECTIONS)
    gdml.pp.tile(adata)
    gdml.pp.embed(adata, options.encoder)
    start = time.perf_counter()
    if options.gain:
        models = options.models if options.models != list(MODELS) else ["ridge", "triplex", "gene-dml"]
        print_gain(adata, models, options.out / "runs", options.seeds)
        return
    found = compare(adata, options.models, options.out / "runs", options.seeds)
    print_table(found)
    rates = ", ".join(f"{str(t).split('.')[1]} {matmul_rate(t):.0f}" for t in (torch.bfloat16, torch.float32))
    print(
        f"\n{torch.get_num_threads()} threads, matrix products 1e9/s: {rates}; this call {time.perf_counter() - start:.0f} s"
    )
    failed = found.runs[found.runs["status"] == "failed"]
    for row in failed.itertuples():
        print(f"FAILED: {row.model}, {row.fold}, seed {row.seed}\n{row.error}")
    if options.csv:
        found.scores.to_csv(options.csv, index=False)


if __name__ == "__main__":
    main()
