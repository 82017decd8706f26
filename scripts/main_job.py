"""The main job: train on some sections, predict an unseen one, score it, plot it.

Uses the real HER2ST sections if they are available locally (GDML_DATA_DIR) or can be downloaded, else synthetic
slides, and prints which. Prints the score table, how far each gene can be trusted, and the paths of the figure and the predicted .h5ad.
"""

import argparse
import os
import time
import warnings
from pathlib import Path

# idle threads release their core instead of slowing down others; read when torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pandas as pd
import scanpy as sc

import gdml

TRAIN, TEST = ["B4", "C2", "C3", "C4"], "C6"


def load(source: str):
    """Return training slides, the unseen slide, the genes to plot, and a description."""
    if source in ("auto", "her2st"):
        try:
            train, new = gdml.datasets.her2st(TRAIN), gdml.datasets.her2st(TEST)
        except (ConnectionError, FileNotFoundError) as error:
            if source == "her2st":
                raise
            print(f"HER2ST is not available locally and cannot be downloaded ({type(error).__name__}).")
        else:
            what = f"real HER2ST sections (Andersson et al. 2021): train on {', '.join(TRAIN)}, predict {TEST}"
            return train, new, ["FASN", "GNAS"], what
    slides = gdml.datasets.synthetic(n_slides=4, n_patients=4)
    last = slides.obs["library_id"].cat.categories[-1]
    unseen = slides.obs["library_id"] == last
    genes = list(slides.var_names[slides.var["learnable"]][:2])
    return slides[~unseen].copy(), slides[unseen].copy(), genes, f"synthetic slides: predict the unseen slide {last}"


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", choices=["auto", "her2st", "synthetic"], default="auto")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the figure and the .h5ad")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sc.settings.verbosity = 3
    warnings.filterwarnings("ignore", category=FutureWarning)
    start = time.perf_counter()

    train, new, genes, what = load(options.source)
    print(f"Data: {what}.")
    for adata in (train, new):
        gdml.pp.tile(adata)
        gdml.pp.embed(adata)
    gdml.pp.normalize(train)

    scores = {}
    for name in ("ridge", "gene-dml"):  # the predictions of the last model are kept
        model = gdml.tl.fit(train, name, group_key="patient", seed=options.seed)
        gdml.tl.predict(new, model)
        scores[name] = gdml.tl.evaluate(new).loc["all"]

    options.out.mkdir(parents=True, exist_ok=True)
    figure = gdml.pl.spatial_pred(new, genes, img=True, return_fig=True, show=False)
    figure.savefig(options.out / "spatial_pred.png", dpi=300)
    new.write_h5ad(options.out / "predicted.h5ad")
    model.save(options.out / "model", overwrite=True)

    table = pd.DataFrame(scores).T[["pcc_a", "pcc_attainable", "pcc_h", "pcc_h_best", "mse", "mae"]]
    print(f"\nScores on the unseen slide ({what}):\n{table.round(3).to_string()}")
    print("pcc_h: the 50 genes that were best on the validation split; pcc_h_best: best on this slide (optimistic).\n")
    genes = new.uns["gdml"]["predict"]["genes"].sort_values("pcc_expected", ascending=False)
    genes = genes.assign(pcc_found=new.var["gdml_pcc"].reindex(genes.index))
    shown = pd.concat([genes.head(10), genes.tail(5)])
    shown = shown[["warrant", "pcc_expected", "pcc_low", "pcc_high", "pcc_attainable", "pcc_found"]]
    unseen = new.uns["gdml"]["predict"]["unseen"]
    print(
        f"The ten best and the five worst genes by what was found on held-out spots ({unseen}) of the training slides:"
    )
    print(f"{shown.round(2).to_string()}\n")
    print(f"Figure:           {(options.out / 'spatial_pred.png').resolve()}")
    print(f"Predicted slide:  {(options.out / 'predicted.h5ad').resolve()}")
    print(f"Model:            {(options.out / 'model').resolve()}")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
