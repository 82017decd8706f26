"""Gene-DML and ridge regression on the five real HER2ST sections, with the yardstick's features or stain statistics.

    python benchmarks/real_sections.py                # stain statistics, both kinds of labels
    python benchmarks/real_sections.py --yardstick    # random ViT-tiny features, the paper's labels

Three splits, five seeds. The test sections are used for scoring only. Every run is appended to a CSV when it is
finished, and skipped if it is in it, so that the script can be interrupted. Two processes share the work with
``--part 0/2`` and ``--part 1/2``; ``--report`` prints the tables of finished runs.
"""

import argparse
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from learner import append, log_look

import gdml

SECTIONS = ["B4", "C2", "C3", "C4", "C6"]
SPLITS = {
    "B4, C2, C3, C4 to C6": (["B4", "C2", "C3", "C4"], ["C6"]),
    "B4 to C2, C3, C4, C6": (["B4"], ["C2", "C3", "C4", "C6"]),
    "C2, C3, C4, C6 to B4": (["C2", "C3", "C4", "C6"], ["B4"]),
}
METRICS = ["pcc_a", "pcc_h", "pcc_h_best", "mse", "mae"]
NAMES = {"pcc_a": "PCC(A)", "pcc_h": "PCC(H)", "pcc_h_best": "PCC(H), test-ranked", "mse": "MSE", "mae": "MAE"}
LABELS = {"unsmoothed": {"smooth": False}, "smoothed": {"smooth": True}, "paper": {"normalization": "paper"}}
#: The recipes that are compared: name in the table, model, options of fit, seeds matter.
MODELS = {
    "ridge": ("ridge", {"preset": "pooled", "config": {"selection": "gcv"}}, False),
    "ridge, penalty by stripes": ("ridge", {"preset": "pooled"}, False),
    "Gene-DML": ("gene-dml", {}, True),
    "Gene-DML, network alone, raw": ("gene-dml", {"frame": "raw", "config": {"floor": "none"}}, True),
    "Gene-DML, paper's recipe": ("gene-dml", {"preset": "her2st", "max_epochs": 60}, True),
}


def yardstick_encoder():
    """ViT-tiny with random weights, as in the project's notes on yardsticks."""
    return gdml.encoders.get_encoder(
        "timm:vit_tiny_patch16_224",
        name="vit-tiny-random",
        pretrained=False,
        seed=0,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def prepare(yardstick: bool):
    """All five sections, tiled and embedded."""
    adata = gdml.datasets.her2st(SECTIONS)
    if yardstick:
        gdml.pp.tile(adata, tile_um=None)  # 224 px at native resolution
        gdml.pp.embed(adata, yardstick_encoder(), precision="fp32")
    else:
        gdml.pp.tile(adata)
        gdml.pp.embed(adata, "stain")
    return adata


def panel_of_all(adata) -> list[str]:
    """Choose the yardstick's panel on all five sections, as stated with it."""
    gdml.pp.select_genes(adata, 250, key_added="all")
    return list(adata.var_names[adata.var["all_panel"]])


def one_run(adata, split: str, labels: str, model: str, seed: int, panel: list[str] | None) -> dict:
    """Train, predict, score: one row of the CSV."""
    on = lambda names: adata[adata.obs["library_id"].isin(names)].copy()
    train, new = (on(names) for names in SPLITS[split])
    gdml.pp.normalize(train, genes=panel, **LABELS[labels])
    name, options, _ = MODELS[model]
    start = time.perf_counter()
    trained = gdml.tl.fit(train, name, group_key="patient", seed=seed, **options)
    seconds = time.perf_counter() - start
    gdml.tl.predict(new, trained)
    scores = gdml.tl.evaluate(new).loc["all"]
    return {
        "split": split,
        "labels": labels,
        "model": model,
        "seed": seed,
        **{m: round(float(scores[m]), 5) for m in METRICS},
        "epoch": trained.training["n_epochs"],
        "seconds": round(seconds, 1),
    }


def report(path: Path) -> None:
    """Print a table per kind of labels: mean and standard deviation over seeds."""
    runs = pd.read_csv(path)
    for labels, part in runs.groupby("labels", sort=False):
        print(f"\n{labels} labels, mean ± standard deviation over {part['seed'].nunique()} seeds\n")
        print("| split | model | " + " | ".join(NAMES[m] for m in METRICS) + " | epochs | s |")
        print("|---|---|" + "---|" * (len(METRICS) + 2))
        for split in SPLITS:
            for model in MODELS:
                rows = part[(part["split"] == split) & (part["model"] == model)]
                if rows.empty:
                    continue
                cells = [
                    f"{rows[m].mean():.3f}" + ("" if len(rows) < 2 else f" ± {rows[m].std():.3f}") for m in METRICS
                ]
                cells += [f"{rows['epoch'].mean():.0f}", f"{rows['seconds'].mean():.0f}"]
                print(f"| {split} | {model} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yardstick", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS)[:3])
    parser.add_argument("--labels", nargs="+", choices=list(LABELS))
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--part", default="0/1", help="i/n: every n-th run, from i")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="print the tables and stop")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if options.threads:
        torch.set_num_threads(options.threads)
    path = options.out / ("yardstick.csv" if options.yardstick else "real_sections.csv")
    if options.report:
        report(path)
        return
    labels = options.labels or (["paper"] if options.yardstick else ["unsmoothed", "smoothed"])
    wanted = [
        (split, label, model, seed)
        for seed in range(options.seeds)
        for label in labels
        for model in options.models
        for split in SPLITS
        if seed == 0 or MODELS[model][2]
    ]
    part, parts = map(int, options.part.split("/"))
    options.out.mkdir(parents=True, exist_ok=True)
    adata = prepare(options.yardstick)
    panel = panel_of_all(adata) if options.yardstick else None
    keys = ["split", "labels", "model", "seed"]
    done = set(map(tuple, pd.read_csv(path)[keys].to_numpy().tolist())) if path.exists() else set()
    missing = [run for run in wanted[part::parts] if run not in done]
    looks = sum("C6" in SPLITS[split][1] for split, *_ in missing)  # C6 is of the report set
    if looks:
        encoder = "vit-tiny-random" if options.yardstick else "stain"
        log_look(looks, "; ".join(options.models), encoder=encoder, labels=" ".join(labels))
    for run in missing:
        append(path, one_run(adata, *run, panel))
    report(path)


if __name__ == "__main__":
    main()
