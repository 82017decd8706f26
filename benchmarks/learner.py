"""What each model earns over the floor, on slides that no choice has seen.

    python benchmarks/learner.py development --seeds 3      # the set that all settings were chosen on
    python benchmarks/learner.py report --seeds 3           # looked at with what was chosen; every look is logged
    python benchmarks/learner.py report --table             # the tables of finished runs

Development: HER2ST B4, C2, C3, C4 and the left half of visium_colon. Report: C6, learnt from the other four; st_mob, one
replicate left out; the right half of visium_colon, learnt from the left one; and six stripes of it, each learnt from the
others. Between parts of one slide there is a margin of four tiles. Features are the stain statistics. Every run is appended to
a CSV when it is finished and skipped if it is in it; ``--part 0/2`` and ``--part 1/2`` share the work. A call that
computes runs of the report set adds a line to ``benchmarks/report_looks.csv``.
"""

import argparse
import csv
import subprocess
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import stats

import gdml
from gdml import settings
from gdml.training import TrainingConfig

LOOKS = Path(__file__).with_name("report_looks.csv")
MARGIN_TILES = 4
#: As Gene-DML has them without a preset.
OWN_TRAINING = TrainingConfig(balance=True)
SCALED = {"features": "standardize", "targets": "standardize"}
#: Model and options of fit; whether seeds matter.
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "ridge, pooled": ("ridge", {"preset": "pooled"}, False),
    "ridge": ("ridge", {}, False),
    "kernel, raw": ("kernel", {"frame": "raw"}, False),
    "kernel": ("kernel", {}, False),
    "Gene-DML": ("gene-dml", {}, True),
    "Gene-DML, raw": ("gene-dml", {"frame": "raw"}, True),
    "Gene-DML, network alone, raw": ("gene-dml", {"config": {"floor": "none"}, "frame": "raw"}, True),
    "Gene-DML, network alone": ("gene-dml", {"config": {"floor": "none"}}, True),
    "Gene-DML, paper": ("gene-dml", {"preset": "her2st", "max_epochs": 60}, True),
    "Gene-DML, paper, in the frame": ("gene-dml", {"preset": "her2st", "max_epochs": 60, "frame": "slide"}, True),
    # of few spots, the paper's recipe takes a step or two an epoch, and stops before it has learnt the mean expression from 0
    "Gene-DML, paper's network": ("gene-dml", {"preset": "her2st", "config": SCALED, "training": OWN_TRAINING}, True),
    "TRIPLEX, raw": ("triplex", {}, True),
    "TRIPLEX": ("triplex", {"frame": "slide"}, True),
    "M2OST, raw": ("m2ost", {}, True),
    "M2OST": ("m2ost", {"frame": "slide"}, True),
    # one switch of the frame at a time, with ridge regression
    "ridge, features raw": ("ridge", {"frame": {"features": "raw"}}, False),
    "ridge, targets raw": ("ridge", {"frame": {"targets": "raw"}}, False),
    "ridge, all components": ("ridge", {"frame": {"components": "all"}}, False),
    "ridge, equal weights": ("ridge", {"frame": {"weights": "equal"}}, False),
    "ridge, frame raw": ("ridge", {"frame": "raw"}, False),
    "ridge, means alone": ("ridge", {"config": {"inputs": "local+neighbors"}}, False),
}
LABELS: dict[str, dict[str, Any]] = {
    "measured": {"smooth": False},
    "smoothed": {"smooth": True},
    "paper": {"normalization": "paper"},
}
DEFAULT = ["ridge, pooled", "ridge", "kernel", "Gene-DML", "TRIPLEX"]
METRICS = ["pcc_a", "pcc_h", "mse", "mae"]

Split = tuple[ad.AnnData, ad.AnnData]


def embedded(adata: ad.AnnData, encoder: str) -> ad.AnnData:
    """Tile and embed."""
    gdml.pp.tile(adata)
    gdml.pp.embed(adata, encoder)
    return adata


def on(adata: ad.AnnData, slides: list[str]) -> ad.AnnData:
    """Spots of some slides."""
    return adata[adata.obs["library_id"].isin(slides)].copy()


def colon(encoder: str) -> ad.AnnData:
    """Read the Visium slide."""
    return embedded(gdml.io.read_visium(settings.data_dir / "visium_colon"), encoder)


def parts(adata: ad.AnnData, along: np.ndarray, n: int) -> list[Split]:
    """Cut a slide into n parts of equal number; each is predicted from the others, less a margin."""
    (about,) = adata.uns["gdml"]["tiles"]["slides"].values()
    margin = MARGIN_TILES * float(about["side_px"])
    part = along.argsort(kind="stable").argsort(kind="stable") * n // len(along)
    found = []
    for k in range(n):
        held = part == k
        learnt = (along < along[held].min() - margin) | (along > along[held].max() + margin)
        found.append((adata[learnt].copy(), adata[held].copy()))
    return found


def development(encoder: str) -> dict[str, Callable[[], Split]]:
    """Make the splits among the development slides."""
    sections = embedded(gdml.datasets.her2st(["B4", "C2", "C3", "C4"]), encoder)
    known = {
        "B4 to C2, C3, C4": (["B4"], ["C2", "C3", "C4"]),
        "C2, C3, C4 to B4": (["C2", "C3", "C4"], ["B4"]),
        "B4, C2, C3 to C4": (["B4", "C2", "C3"], ["C4"]),
    }
    found = {name: lambda a=a, b=b: (on(sections, a), on(sections, b)) for name, (a, b) in known.items()}
    slide = colon(encoder)
    x = slide.obsm["spatial"][:, 0]
    left = slide[x < np.median(x)].copy()
    for k, split in enumerate(parts(left, left.obsm["spatial"][:, 1], 3)):
        found[f"colon, left half, third {k + 1}"] = lambda split=split: split
    return found


def report(encoder: str) -> dict[str, Callable[[], Split]]:
    """Make the splits that are looked at with what was chosen."""
    sections = embedded(gdml.datasets.her2st(["B4", "C2", "C3", "C4", "C6"]), encoder)
    found = {"B4, C2, C3, C4 to C6": lambda: (on(sections, ["B4", "C2", "C3", "C4"]), on(sections, ["C6"]))}
    bulb = embedded(read_mob(), encoder)
    names = list(bulb.obs["library_id"].unique())
    for name in names:
        found[f"MOB, to {name}"] = lambda name=name: (on(bulb, [n for n in names if n != name]), on(bulb, [name]))
    slide = colon(encoder)
    x = slide.obsm["spatial"][:, 0]
    found["colon, left half to right half"] = lambda: parts(slide, -x, 2)[0]
    for k, split in enumerate(parts(slide, x, 6)):
        found[f"colon, stripe {k + 1}"] = lambda split=split: split
    return found


def read_mob() -> ad.AnnData:
    """Replicates 1, 2 and 11 of the mouse olfactory bulb, as one AnnData."""
    folder, found = settings.data_dir / "st_mob", {}
    for path in sorted(folder.glob("*_spots.csv")):
        name = path.name.removesuffix("_spots.csv")
        spots = pd.read_csv(path, index_col=0)
        counts = pd.read_csv(folder / f"{name}_counts.tsv.gz", sep="\t", index_col=0)
        both = counts.index.intersection(spots.index)
        one = ad.AnnData(counts.loc[both].astype(np.float32))
        one.obsm["spatial"] = spots.loc[both, ["pixel_x", "pixel_y"]].to_numpy(float)
        grid = np.array([label.split("x") for label in both], float).round().astype(int)
        one.obs["array_row"], one.obs["array_col"] = grid[:, 1], grid[:, 0]
        found[name] = one
    both = ad.concat(found, label="library_id", join="inner", index_unique="-")
    both.uns["spatial"] = {
        name: {"metadata": {"source_image_path": str(folder / f"{name}_he.jpg"), "spot_pitch_um": 200.0}}
        for name in found
    }
    return both


def one_run(split: Split, labels: str, model: str, seed: int) -> dict[str, Any]:
    """Train, predict, score: one row of the CSV."""
    train, new = (part.copy() for part in split)
    gdml.pp.normalize(train, n_genes=250, **LABELS[labels])
    name, options, _ = MODELS[model]
    start = time.perf_counter()
    group_key = "patient" if "patient" in train.obs else None
    trained = gdml.tl.fit(train, name, group_key=group_key, seed=seed, **options)
    seconds = time.perf_counter() - start
    gdml.tl.predict(new, trained)
    table = gdml.tl.evaluate(new)
    scores = table.loc["all"]
    by_slide = table.drop(index="all")["pcc_a"]
    return {
        **{m: round(float(scores[m]), 5) for m in METRICS},
        "by_slide": " ".join(f"{slide}:{pcc:.4f}" for slide, pcc in by_slide.items()),
        "shares": " ".join(f"{k}:{v:.1f}" for k, v in trained.training.get("shares", {}).items()),
        "gain": round(trained.training.get("gain", float("nan")), 3),
        "epochs": trained.training["n_epochs"],
        "seconds": round(seconds, 1),
    }


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a CSV, so that it is kept whatever happens next."""
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def log_look(runs: int, models: str, *, encoder: str = "stain", labels: str = "measured") -> None:
    """Log that the report set is looked at."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    look = {"when_utc": when, "commit": commit.stdout.strip(), "encoder": encoder, "runs": runs}
    append(LOOKS, look | {"labels": labels, "models": models})


def without_stripes(which: str) -> dict[str, Callable[[], Split]]:
    """Make the splits of a set but for the stripes of the colon; a use of the report set is logged by the caller."""
    splits = (development if which == "development" else report)("stain")
    return {name: make for name, make in splits.items() if "stripe" not in name}


def table(path: Path) -> None:
    """Print PCC(A) by model and split: mean over seeds, and its spread; folds of one data set are averaged."""
    runs = pd.read_csv(path)
    runs["of"] = runs["split"].str.replace(r", (third|stripe) \d+$", r", \1s", regex=True)
    runs["of"] = runs["of"].str.replace(r"^MOB, to .*", "MOB, three folds", regex=True)
    for labels, some in runs.groupby("labels", sort=False):
        per_seed = some.groupby(["model", "of", "seed"], sort=False)["pcc_a"].mean()
        found = per_seed.groupby(["model", "of"], sort=False)
        cells = found.mean().map("{:.3f}".format) + found.std().map(lambda s: f" ± {s:.3f}" if s == s else "")
        seconds = (
            some.groupby("model", sort=False)["seconds"].sum() / some.groupby("model", sort=False)["seed"].nunique()
        )
        print(f"\n{labels} labels: PCC(A), mean ± standard deviation over seeds; seconds of all fits of a seed\n")
        print(cells.unstack().assign(seconds=seconds.round().astype(int)).to_markdown())


def differences(path: Path, reference: str = "ridge", level: float = 0.95) -> None:
    """Print by how much models are above the reference, over the slides that both predicted, with a t interval.

    Stripes of a slide are left out, seeds of a slide averaged.
    """
    runs = pd.read_csv(path)
    runs = runs[~runs["split"].str.contains("stripe|third")]
    slides = runs["by_slide"].str.split().explode().str.rsplit(":", n=1, expand=True)
    pcc = runs.join(slides.set_axis(["slide", "pcc"], axis=1)).astype({"pcc": float})
    for labels, some in pcc.groupby("labels", sort=False):
        by_slide = some.groupby(["split", "slide", "model"], sort=False)["pcc"].mean().unstack()
        if reference not in by_slide:
            continue
        above = by_slide.drop(columns=reference).sub(by_slide[reference], axis=0)
        n = above.count()
        mean, reach = above.mean(), above.sem() * stats.t.ppf((1 + level) / 2, n - 1)
        found = pd.DataFrame({"slides": n, "mean": mean, "low": mean - reach, "high": mean + reach})[n > 1]
        print(f"\n{labels} labels: PCC(A) above {reference}, over slides, with the interval at {level:.0%}\n")
        print(found.to_markdown(floatfmt=("", ".0f", ".3f", ".3f", ".3f")))


def main() -> None:
    """Do the runs that are missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=["development", "report"])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=DEFAULT)
    parser.add_argument("--splits", nargs="+", help="starts of names of splits")
    parser.add_argument("--labels", nargs="+", choices=list(LABELS), default=["measured"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--encoder", default="stain")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--part", default="0/1", help="i/n: every n-th run, from i")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print the tables and stop")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    suffix = "" if options.encoder == "stain" else f"-{options.encoder}"
    path = options.out / f"learner-{options.set}{suffix}.csv"
    if not options.table:
        options.out.mkdir(parents=True, exist_ok=True)
        splits = (development if options.set == "development" else report)(options.encoder)
        if options.splits:
            splits = {name: make for name, make in splits.items() if name.startswith(tuple(options.splits))}
        run_missing(path, splits, options)
    table(path)
    differences(path)


def run_missing(path: Path, splits: dict[str, Callable[[], Split]], options: argparse.Namespace) -> None:
    """Do what is not in the CSV; log that the report set is looked at."""
    wanted = [
        (split, labels, model, seed)
        for seed in range(options.seeds)
        for labels in options.labels
        for model in options.models
        for split in splits
        if seed == 0 or MODELS[model][2]
    ]
    keys = ["split", "labels", "model", "seed"]
    done = set(map(tuple, pd.read_csv(path)[keys].to_numpy().tolist())) if path.exists() else set()
    part, of = map(int, options.part.split("/"))
    missing = [run for run in wanted[part::of] if run not in done]
    if missing and options.set == "report":
        models = list(dict.fromkeys(model for _, _, model, _ in missing))
        log_look(len(missing), "; ".join(models), encoder=options.encoder, labels=" ".join(options.labels))
    for run in missing:
        row = one_run(splits[run[0]](), *run[1:])
        append(path, dict(zip(keys, run, strict=True)) | row)
        print(run, row, flush=True)


if __name__ == "__main__":
    main()
