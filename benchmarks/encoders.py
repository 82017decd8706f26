"""Encoders compared on the development set: scores of ridge regression on their features, and whether they tell patients.

    python benchmarks/encoders.py                                                # stain statistics, an untrained network
    python benchmarks/encoders.py --encoders stain box=box.safetensors stain+box=box.safetensors
    python benchmarks/encoders.py --models Gene-DML --seeds 2

``NAME=FILE`` is an encoder with a file of weights; ``A+B`` the features of both, side by side. Choices are made on
these sections and not on those that the README reports: from patient B to patient C of HER2ST and back, and between
three stripes of the left half of a Visium slide of mouse colon, where GDML_DATA_DIR has it. The second table is the
balanced accuracy of a linear probe that tells the patient of a pooled feature, on stripes of the sections that it was
not fitted on: 0.5 is chance. Every run is appended to a CSV, and skipped if it is in it.
"""

import argparse
import os
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from real_sections import LABELS, MODELS, append
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gdml
from gdml.encoders import Encoder, get_encoder
from gdml.encoders.box import MEAN, STD

SECTIONS = {"B": ["B4"], "C": ["C2", "C3", "C4"]}
STRIPES = 3
MARGIN_UM = 4 * 112.0  # between stripes: neighbour regions reach 2.5 tiles, twice
COLUMNS = ["encoder", "neighbors", "labels", "model", "split", "seed"]


class SideBySide:
    """Features of several encoders of one number of tokens, side by side."""

    def __init__(self, name: str, encoders: list[Encoder]) -> None:
        self.name, self.encoders = name, encoders
        self.identity = " beside ".join(encoder.identity for encoder in encoders)
        self.dim, self.tile_px = sum(encoder.dim for encoder in encoders), encoders[0].tile_px
        self.n_prefix = encoders[0].n_prefix
        self.full_precision = any(getattr(encoder, "full_precision", False) for encoder in encoders)

    def encode(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, T, D) and pooled (B, D)."""
        tokens, pooled = zip(*(encoder.encode(tiles) for encoder in self.encoders), strict=True)
        return torch.cat(tokens, -1), torch.cat(pooled, -1)

    def to(self, device: torch.device | str) -> "SideBySide":
        """Move all to ``device``."""
        self.encoders = [encoder.to(device) for encoder in self.encoders]
        return self


def make_encoder(text: str) -> Encoder:
    """Make the encoder of a row of the table."""
    made = []
    for part in text.split("+"):
        name, _, weights = part.partition("=")
        if name == "untrained":
            options = {"name": name, "pretrained": False, "seed": 0, "mean": MEAN, "std": STD}
            made.append(get_encoder("timm:resnet18", **options))
        else:
            made.append(get_encoder(name, **({"weights": weights} if weights else {})))
    return made[0] if len(made) == 1 else SideBySide("both", made)


def her2st() -> AnnData:
    """Sections of two patients."""
    return gdml.datasets.her2st([*SECTIONS["B"], *SECTIONS["C"]])


def colon() -> AnnData | None:
    """Left half of the Visium slide, or None."""
    folder = Path(os.environ.get("GDML_DATA_DIR", "")) / "visium_colon"
    if not folder.is_dir():
        return None
    adata = gdml.io.read_visium(folder)
    x = adata.obsm["spatial"][:, 0]
    return adata[x < np.median(x)].copy()


def splits(adata: AnnData) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, training spots and test spots of each split."""
    library = adata.obs["library_id"]
    if library.isin(SECTIONS["B"]).any():
        yield "B4 to C2, C3, C4", library.isin(SECTIONS["B"]).to_numpy(), library.isin(SECTIONS["C"]).to_numpy()
        yield "C2, C3, C4 to B4", library.isin(SECTIONS["C"]).to_numpy(), library.isin(SECTIONS["B"]).to_numpy()
        return
    y = adata.obsm["spatial"][:, 1]
    (slide,) = adata.uns["gdml"]["tiles"]["slides"].values()
    margin = MARGIN_UM / slide["um_per_px"]
    for i in range(STRIPES):
        test = stripes(y) == i
        yield f"colon, stripe {i + 1}", (y < y[test].min() - margin) | (y > y[test].max() + margin), test


def stripes(along: np.ndarray) -> np.ndarray:
    """Return the number of the stripe of each spot; all have as many spots."""
    return np.argsort(np.argsort(along)) * STRIPES // len(along)


def one_run(adata: AnnData, train: np.ndarray, test: np.ndarray, labels: str, model: str, seed: int) -> dict:
    """Train, predict, score: the mean over test sections."""
    train, new = adata[train].copy(), adata[test].copy()
    gdml.pp.normalize(train, **LABELS[labels])
    name, options, _ = MODELS[model]
    groups = {"group_key": "patient"} if "patient" in train.obs else {}
    gdml.tl.predict(new, gdml.tl.fit(train, name, seed=seed, **groups, **options))
    scores = gdml.tl.evaluate(new).loc["all"]
    return {metric: round(float(scores[metric]), 5) for metric in ("pcc_a", "pcc_h")}


def tells_patients(adata: AnnData, features: np.ndarray) -> float:
    """Balanced accuracy of the probe on held-out stripes."""
    patient, stripe = adata.obs["patient"].to_numpy(), np.empty(adata.n_obs, int)
    for rows in adata.obs.groupby("library_id", observed=True).indices.values():
        stripe[rows] = stripes(adata.obsm["spatial"][rows, 0])
    scores = []
    for i in range(STRIPES):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced"))
        probe.fit(features[stripe != i], patient[stripe != i])
        scores.append(balanced_accuracy_score(patient[stripe == i], probe.predict(features[stripe == i])))
    return float(np.mean(scores))


def report(path: Path) -> None:
    """Print PCC(A) of each encoder by split; stripes are averaged."""
    runs = pd.read_csv(path)
    runs["split"] = runs["split"].str.replace(r", stripe \d", ", left half", regex=True)
    for (labels, model), part in runs.groupby(["labels", "model"], sort=False):
        print(f"\nPCC(A), {labels} labels, {model}, {part['seed'].nunique()} seed(s)\n")
        table = part.pivot_table("pcc_a", ["encoder", "neighbors"], "split", sort=False)
        print("| encoder | neighbours | " + " | ".join(table) + " | mean |")
        print("|---|---|" + "---:|" * (table.shape[1] + 1))
        for names, row in zip(table.index, table.to_numpy(), strict=True):
            print("| " + " | ".join([*names, *(f"{value:.3f}" for value in (*row, row.mean()))]) + " |")


def main() -> None:
    """Run what is missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=["stain", "untrained"], metavar="NAME[=FILE][+...]")
    parser.add_argument("--neighbors", nargs="+", choices=["exact", "lattice"], default=["lattice"])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["ridge"])
    parser.add_argument("--labels", nargs="+", choices=list(LABELS), default=["unsmoothed"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/encoders.csv"))
    parser.add_argument("--report", action="store_true", help="print the tables of finished runs and stop")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", "The model was trained on 1 slide")  # stripes of one slide, with a margin
    if options.report:
        report(options.out)
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    probes = {}
    for adata in filter(None, (her2st(), colon())):
        gdml.pp.tile(adata)
        for text, neighbors in product(options.encoders, options.neighbors):
            encoder = make_encoder(text)
            gdml.pp.embed(adata, encoder, neighbors=neighbors)
            if "patient" in adata.obs:
                probes[text] = tells_patients(adata, adata.obsm[f"X_{encoder.name}"])
            for (split, train, test), labels, model in product(splits(adata), options.labels, options.models):
                for seed in range(options.seeds if MODELS[model][2] else 1):
                    row = dict(zip(COLUMNS, (text, neighbors, labels, model, split, seed), strict=True))
                    if not _is_done(options.out, row):
                        append(options.out, row | one_run(adata, train, test, labels, model, seed))
    report(options.out)
    print("\n| encoder | tells the patient |\n|---|---:|")
    print("\n".join(f"| {text} | {score:.3f} |" for text, score in probes.items()))


def _is_done(path: Path, row: dict) -> bool:
    return path.exists() and bool((pd.read_csv(path)[COLUMNS] == pd.Series(row)).all(axis=1).any())


if __name__ == "__main__":
    main()
