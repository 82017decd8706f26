"""What a blend gains on held-out spots, and what blends score on new spots: the figures that the rule for shares rests on.

    python benchmarks/shares.py --labels measured smoothed

Of each split of the development set, prints the gain of the best blend on the held-out parts of the training slides
(:func:`gdml.training.shares.certain_gain`, with the network in every split), and PCC(A) on the new spots of ridge regression, of
equal shares, and of each member alone. The report set is not touched. A split takes some four minutes on one core.
"""

import argparse
import warnings
from unittest.mock import patch

import torch
from learner import LABELS, Split, development

import gdml
from gdml.training import fitting, shares

BLENDS = {"ridge": (1, 0, 0), "equal": (1 / 3, 1 / 3, 1 / 3), "kernel": (0, 1, 0), "network": (0, 0, 1)}


def one_split(split: Split, labels: str, seed: int) -> dict[str, float]:
    """Fit the default once, and score blends of its members: one row."""
    train, new = (part.copy() for part in split)
    gdml.pp.normalize(train, n_genes=250, **LABELS[labels])
    gains = []

    def note(found: shares.Products, **options: bool) -> float:
        gains.append(shares.certain_gain(found, **options))
        return gains[-1]

    # the network is not given up, so that all splits say what it gains
    with patch.object(fitting, "is_hopeless", lambda *_: False), patch.object(fitting, "certain_gain", note):
        model = gdml.tl.fit(train, group_key="patient" if "patient" in train.obs else None, seed=seed)
    row = {"gain": gains[0]}
    for name, parts in BLENDS.items():
        model.module.take_shares(torch.tensor(parts, dtype=torch.float32))
        gdml.tl.predict(new, model)
        row[name] = float(gdml.tl.evaluate(new).loc["all", "pcc_a"])
    return row


def main() -> None:
    """Print a line for each split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", nargs="+", choices=list(LABELS), default=["measured"])
    parser.add_argument("--splits", nargs="+", default=[""], help="starts of names of splits")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    print("| split | labels | gain |", *(f"{name} |" for name in BLENDS))
    print("|---|---|" + "---:|" * (1 + len(BLENDS)))
    for name, make in development("stain").items():
        for labels in options.labels if name.startswith(tuple(options.splits)) else ():
            row = one_split(make(), labels, options.seed)
            print(f"| {name} | {labels} |", *(f"{value:.3f} |" for value in row.values()), flush=True)


if __name__ == "__main__":
    main()
