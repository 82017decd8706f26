"""What decides scores with the paper's labels: the part of the expression that all genes share.

    python benchmarks/common_part.py              # stain statistics
    python benchmarks/common_part.py --yardstick  # random ViT-tiny features

Ridge regression, in the frame and without one, on the HER2ST sections of the development set. On the scale of the training
spots, the common part of a spot is the mean over the genes, and the own part of a gene is the rest. Prints the correlation of
both with those measured, and PCC(A) by the share of the own part that a prediction keeps (``gene_specific`` of Gene-DML), by split
and averaged over the splits.
"""

import argparse
import warnings

import numpy as np
from learner import LABELS, on
from numpy.typing import NDArray
from real_sections import prepare

import gdml
from gdml.metrics import pearson_per_gene

SPLITS = {
    "B4 to C2, C3, C4": (["B4"], ["C2", "C3", "C4"]),
    "C2, C3, C4 to B4": (["C2", "C3", "C4"], ["B4"]),
    "B4, C2, C3 to C4": (["B4", "C2", "C3"], ["C4"]),
}
FRAMES = ("slide", "raw")
KEPT = (0.0, 0.25, 0.5, 0.75, 1.0)


def in_parts(x: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cut scaled expression (n, M) into the common part (n, 1) and the own parts (n, M)."""
    common = x.mean(1, keepdims=True)
    return common, x - common


def one_row(adata, split, frame: str) -> list[float]:
    """Correlation of the common and of the own part, then PCC(A) by what is kept; means over slides."""
    train, new = (on(adata, names) for names in split)
    gdml.pp.normalize(train, n_genes=250, **LABELS["paper"])
    model = gdml.tl.fit(train, "ridge", group_key="patient", frame=frame)
    gdml.tl.predict(new, model, clip=False)
    gdml.tl.evaluate(new)
    learnt = train.obsm["gdml_measured"].to_numpy(float)
    scaled = lambda table: (table.to_numpy(float) - learnt.mean(0)) / learnt.std(0)
    predicted, measured = scaled(new.obsm["gdml"]), scaled(new.obsm["gdml_evaluated"])
    rows = []
    for slide in new.obs["library_id"].unique():
        here = (new.obs["library_id"] == slide).to_numpy()
        (common, own), (y_common, y_own) = in_parts(predicted[here]), in_parts(measured[here])
        pairs = [(y_common, common), (y_own, own), *((measured[here], common + share * own) for share in KEPT)]
        rows.append([np.nanmean(pearson_per_gene(y, p)) for y, p in pairs])
    return np.mean(rows, 0).tolist()


def main() -> None:
    """Print a line for each split and frame."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yardstick", action="store_true", help="the features of real_sections.py --yardstick")
    warnings.filterwarnings("ignore")
    adata = prepare(parser.parse_args().yardstick)
    print("| split | frame | common | own |", " | ".join(f"{share:.0%} kept" for share in KEPT), "|")
    print("|---|---|" + "---:|" * (2 + len(KEPT)))
    show = lambda name, frame, row: print(f"| {name} | {frame} |", " | ".join(f"{x:.3f}" for x in row), "|", flush=True)
    found: dict[str, list[list[float]]] = {frame: [] for frame in FRAMES}
    for name, split in SPLITS.items():
        for frame, rows in found.items():
            rows.append(one_row(adata, split, frame))
            show(name, frame, rows[-1])
    for frame, rows in found.items():
        show("mean", frame, np.mean(rows, 0))


if __name__ == "__main__":
    main()
