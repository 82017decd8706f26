"""Which parts of the training slides penalties are chosen by: stripes of each slide, whole slides, or whole patients.

    python benchmarks/penalties.py --labels measured smoothed paper

Each of the HER2ST sections B4, C2, C3 and C4 is predicted from the three others by ridge and kernel ridge regression in the
frame; PCC(A), and the mean difference from stripes. The report set is not touched. All rows take some five minutes on one core.
"""

import argparse
import warnings
from collections.abc import Callable
from unittest.mock import patch

import anndata as ad
import pandas as pd
import torch
from learner import LABELS, embedded, on
from torch import Tensor

import gdml
from gdml.models import ridge
from gdml.models.batch import Batch

SECTIONS = {"B4": "B", "C2": "C", "C3": "C", "C4": "C"}


def folds(learnt: list[str]) -> dict[str, Callable[[Batch], Tensor]]:
    """Make the functions that give the fold of each spot of a batch, by what is held out whole."""
    patients = [SECTIONS[name] for name in learnt]
    of_slide = torch.tensor([patients.index(patient) for patient in patients])
    found = {"stripes": ridge.learnt_stripes, "slides": lambda batch: batch.slide}
    return found | ({"patients": lambda batch: of_slide[batch.slide]} if len(set(patients)) > 1 else {})


def one_row(adata: ad.AnnData, section: str, labels: str, model: str) -> dict[str, float]:
    """Predict a section with each choice of the folds."""
    learnt = [name for name in SECTIONS if name != section]
    train, found = on(adata, learnt), {}
    gdml.pp.normalize(train, n_genes=250, **LABELS[labels])
    for held_out, fold in folds(learnt).items():
        new = on(adata, [section])
        with patch.object(ridge, "learnt_stripes", fold):
            gdml.tl.predict(new, gdml.tl.fit(train, model, group_key="patient"))
        found[held_out] = float(gdml.tl.evaluate(new).loc["all", "pcc_a"])
    return found


def main() -> None:
    """Print a line for each section, kind of labels and model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="+", choices=list(LABELS), default=["measured"])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    adata = embedded(gdml.datasets.her2st(list(SECTIONS)), "stain")
    print("| to | labels | model | stripes | slides | patients |\n|---|---|---|---:|---:|---:|")
    rows = []
    for section in SECTIONS:
        for labels in options.labels:
            for model in ("ridge", "kernel"):
                row = one_row(adata, section, labels, model)
                rows.append({"model": model, **row})
                cells = [f"{row[k]:.3f}" if k in row else "" for k in ("stripes", "slides", "patients")]
                print("| " + " | ".join([section, labels, model, *cells]) + " |", flush=True)
    found = pd.DataFrame(rows).set_index("model")
    above = found[["slides", "patients"]].sub(found["stripes"], axis=0)
    print("\nabove stripes, mean\n", above.groupby("model", sort=False).mean().to_markdown(floatfmt=".3f"), sep="\n")


if __name__ == "__main__":
    main()
