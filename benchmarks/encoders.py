"""Tables of the model card of the encoder ``"box"``.

    python recipes/box/train.py --sections B4 C2 C3 C4 --out weights/no_c6.safetensors
    python recipes/box/train.py --sections B4 --out weights/b_only.safetensors
    python recipes/box/train.py --sections C2 C3 C4 C6 --out weights/no_b.safetensors
    python benchmarks/encoders.py --weights weights                  # ridge
    python benchmarks/encoders.py --weights weights --models Gene-DML --seeds 2

The three splits of ``real_sections.py``, on five real HER2ST sections. "Held out" encoders were trained without the
images of the test sections; "as shipped" has seen them. Stain statistics and the same network with random weights are
listed for comparison. Every run is appended to a CSV, and skipped if it is in it.
"""

import argparse
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from real_sections import LABELS, MODELS, SECTIONS, SPLITS, append

import gdml
from gdml.encoders import get_encoder
from gdml.encoders.box import MEAN, STD

#: For each split, the weights that were trained on its training sections.
HELD_OUT = dict(zip(SPLITS, ("no_c6", "b_only", "no_b"), strict=True))
ENCODERS = ["stain", "ResNet-18, untrained", "box, held out", "box, as shipped"]


def encoder(name: str, split: str, weights: Path):
    """Make the encoder of a row of the table."""
    if name == "stain":
        return get_encoder("stain")
    if name == "ResNet-18, untrained":
        return get_encoder("timm:resnet18", name="untrained", pretrained=False, seed=0, mean=MEAN, std=STD)
    held_out = name == "box, held out"
    return get_encoder("box", **({"weights": weights / f"{HELD_OUT[split]}.safetensors"} if held_out else {}))


def one_run(adata, labels: str, model: str, split: str, seed: int) -> dict:
    """Train, predict, score."""
    on = lambda names: adata[adata.obs["library_id"].isin(names)].copy()
    train, new = (on(names) for names in SPLITS[split])
    gdml.pp.normalize(train, **LABELS[labels])
    name, options, _ = MODELS[model]
    trained = gdml.tl.fit(train, name, group_key="patient", seed=seed, **options)
    gdml.tl.predict(new, trained)
    return {m: round(float(gdml.tl.evaluate(new).loc["all", m]), 5) for m in ("pcc_a", "pcc_h")}


def report(path: Path) -> None:
    """Print PCC(A) of each encoder by split, and its mean."""
    runs = pd.read_csv(path)
    for (labels, model), part in runs.groupby(["labels", "model"], sort=False):
        print(f"\nPCC(A), {labels} labels, {model}, {part['seed'].nunique()} seed(s)\n")
        print("| encoder | neighbours | " + " | ".join(SPLITS) + " | mean |")
        print("|---|---|" + "---|" * (len(SPLITS) + 1))
        for (name, neighbors), rows in part.groupby(["encoder", "neighbors"], sort=False):
            means = [rows.loc[rows["split"] == split, "pcc_a"].mean() for split in SPLITS]
            print(f"| {name} | {neighbors} | " + " | ".join(f"{m:.3f}" for m in [*means, np.mean(means)]) + " |")


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--neighbors", nargs="+", choices=["exact", "lattice"], default=["exact", "lattice"])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["ridge"])
    parser.add_argument("--labels", nargs="+", choices=list(LABELS), default=["unsmoothed", "smoothed"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/encoders.csv"))
    parser.add_argument("--report", action="store_true", help="print the tables and stop")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if options.report:
        report(options.out)
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    adata = gdml.datasets.her2st(SECTIONS)
    gdml.pp.tile(adata)
    for name in options.encoders:
        for split in SPLITS:
            for neighbors in options.neighbors:
                start = time.perf_counter()
                gdml.pp.embed(adata, encoder(name, split, options.weights), neighbors=neighbors)
                print(f"{name}, {neighbors}: features in {time.perf_counter() - start:.0f} s", flush=True)
                run = partial(_run_missing, adata, options.out, name, neighbors)
                for labels in options.labels:
                    for model in options.models:
                        for seed in range(options.seeds if MODELS[model][2] else 1):
                            run(labels, model, split, seed)
    report(options.out)


def _run_missing(adata, path: Path, *what) -> None:
    columns = ["encoder", "neighbors", "labels", "model", "split", "seed"]
    if path.exists() and (pd.read_csv(path)[columns] == np.array(what, dtype=object)).all(axis=1).any():
        return
    row = dict(zip(columns, what, strict=True)) | one_run(adata, *what[2:])
    append(path, row)


if __name__ == "__main__":
    main()
