"""Coverage and width of prediction intervals on sections that the model has not seen.

    python benchmarks/intervals.py development
    python benchmarks/intervals.py report       # logged as a look at the report set

The splits are those of ``benchmarks/learner.py``. Of each, and of everything that an interval can be for: the share of
measured values within their interval and its full width, over spots and genes; the middle four fifths of genes; and the
coverage that slides differ by. A level that does not exist is replaced by the highest one that does. In the rows "measured
spots" intervals are calibrated on a random tenth of the new slide's own spots, and scored on the others.
"""

import argparse
import warnings
from typing import Any

import numpy as np
import pandas as pd
from learner import Split, log_look, without_stripes

import gdml
from gdml.conformal import TARGETS

LEVELS = (0.8, 0.9)
TENTH = "measured_tenth"


def rows(split: Split) -> pd.DataFrame:
    """Score the intervals of ridge regression on the other side of a split."""
    train, new = (part.copy() for part in split)
    gdml.pp.normalize(train, n_genes=250)
    trained = gdml.tl.fit(train, "ridge", group_key="patient" if "patient" in train.obs else None)
    draw = np.random.default_rng(0).permutation(new.n_obs)
    new.obs[TENTH] = draw < new.n_obs // 10
    found = []
    for target in TARGETS:
        if target not in trained.calibration.units:
            continue
        highest = np.floor(trained.calibration.highest_level(target) * 1000) / 1000
        for level in sorted({min(level, highest) for level in LEVELS}):
            found.append({"for": target, **score(new, trained, interval=level, interval_for=target)})
    for level in LEVELS:
        found.append({"for": "measured spots", **score(new, trained, interval=level, calibrate_on=TENTH)})
    return pd.DataFrame(found)


def score(new: Any, trained: Any, **options: Any) -> dict[str, Any]:
    """Predict with intervals, and score these."""
    gdml.tl.predict(new, trained, **options)
    table = gdml.tl.evaluate(new)
    about, genes = new.uns["gdml"]["predict"]["interval"], new.var["gdml_coverage"].dropna()
    low, high = genes.quantile([0.1, 0.9])
    return {
        "units": about["n_units"],
        "highest": f"{about['highest_level']:.1%}",
        "level": f"{about['level']:.1%}",
        "coverage": f"{table.loc['all', 'coverage']:.1%}",
        "genes": f"{low:.0%} to {high:.0%}",
        "width": f"{table.loc['all', 'width']:.2f}",
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=["development", "report"])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    splits = without_stripes(options.set)
    if options.set == "report":
        log_look(len(splits), "ridge (intervals)")
    tables = {name: rows(make()) for name, make in splits.items()}
    print(pd.concat(tables, names=["split"]).reset_index("split").to_markdown(index=False))


if __name__ == "__main__":
    main()
