"""What benchmarks/learner.py says of its runs."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

# by split, slide and model: PCC(A) of seeds
RUNS = {
    ("B4 to C2, C3", "C2"): {"ridge": [0.2], "new": [0.3, 0.2]},
    ("B4 to C2, C3", "C3"): {"ridge": [0.3], "new": [0.3, 0.4]},
    ("MOB, to rep01", "rep01"): {"ridge": [0.4], "new": [0.55, 0.55]},
    ("MOB, to rep02", "rep02"): {"ridge": [0.4]},
    ("colon, stripe 1", "colon_d0"): {"ridge": [0.4], "new": [0.9, 0.9]},
}


@pytest.fixture
def learner(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("learner")


def test_differences_are_over_slides_and_not_over_seeds_or_stripes(learner, tmp_path, capsys):
    rows = {}
    for (split, slide), models in RUNS.items():
        for model, seeds in models.items():
            for seed, pcc in enumerate(seeds):
                rows.setdefault((split, "measured", model, seed), []).append(f"{slide}:{pcc}")
    table = pd.DataFrame([(*key, " ".join(found)) for key, found in rows.items()])
    table.columns = ["split", "labels", "model", "seed", "by_slide"]
    table.to_csv(tmp_path / "runs.csv", index=False)
    learner.differences(tmp_path / "runs.csv")
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| new")]
    n, *found = (float(cell) for cell in row.split("|")[2:-1])
    above = [0.05, 0.05, 0.15]
    expected = np.mean(above), *stats.ttest_1samp(above, 0).confidence_interval(0.95)
    assert n == 3
    np.testing.assert_allclose(found, expected, atol=6e-4)
