"""What the frame does on a slide with few spots, or with one kind of spots.

    python benchmarks/few_spots.py

Ridge regression, in the frame and in the frame "raw", on splits of the development set (see ``learner.py``). The test slides are cut
at random into parts of n spots, or by k-means on their features into two kinds of spots, and each part is predicted as
if it were the whole slide. "stitched" is the PCC(A) over the whole slide of the predictions of all parts; "within" is the mean
of the PCC(A) of the parts, of those with 30 spots or more.
"""

import warnings

import numpy as np
from learner import development
from sklearn.cluster import KMeans

import gdml
from gdml import metrics

SPLITS = ("B4 to C2, C3, C4", "B4, C2, C3 to C4", "colon, left half, third 1")
SIZES = (5, 10, 20, 50)
LEAST = 30


def cuts(slide, rng):
    """Parts of a slide, by name: rows of each part."""
    n = slide.n_obs
    yield "whole", [np.arange(n)]
    for size in SIZES:
        yield f"{size} spots", np.array_split(rng.permutation(n), max(1, round(n / size)))
    kind = KMeans(2, n_init=10, random_state=0).fit_predict(slide.obsm["X_stain"])
    yield "one kind", [np.flatnonzero(kind == k) for k in range(2)]


def scores(slide, parts, model):
    """PCC(A) of the stitched predictions, and the mean of that within parts."""
    predicted = np.empty((slide.n_obs, len(model.panel)), np.float32)
    for rows in parts:
        part = slide[rows].copy()
        gdml.tl.predict(part, model)
        predicted[rows] = part.obsm["gdml"].to_numpy()
    whole = slide.copy()
    gdml.tl.predict(whole, model)
    gdml.tl.evaluate(whole)
    measured = whole.obsm["gdml_evaluated"][list(model.panel)].to_numpy()
    pcc = lambda rows: metrics.pcc_a(metrics.pearson_per_gene(measured[rows], predicted[rows]))
    large = [pcc(rows) for rows in parts if len(rows) >= LEAST]
    return pcc(np.arange(slide.n_obs)), np.mean(large) if large else np.nan


def main() -> None:
    """Print a table."""
    warnings.filterwarnings("ignore")
    splits, rng = development("stain"), np.random.default_rng(0)
    print("| split | parts | in the frame: stitched | within | raw: stitched | within |\n|---|---|---|---|---|---|")
    for name in SPLITS:
        train, test = splits[name]()
        gdml.pp.normalize(train, n_genes=250)
        models = [gdml.tl.fit(train, "ridge", frame=frame) for frame in ("slide", "raw")]
        slides = [test[test.obs["library_id"] == s].copy() for s in test.obs["library_id"].unique()]
        found: dict[str, list] = {}
        for slide in slides:
            for label, parts in cuts(slide, rng):
                found.setdefault(label, []).append([x for model in models for x in scores(slide, parts, model)])
        for label, rows in found.items():
            cells = ["" if np.isnan(x) else f"{x:.3f}" for x in np.mean(rows, 0)]
            print(f"| {name} | {label} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
