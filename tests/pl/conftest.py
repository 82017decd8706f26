import os
from pathlib import Path

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
import pytest

BASELINE = Path(__file__).parent / "baseline"


@pytest.fixture(autouse=True)
def _plain_matplotlib():
    """No window, the library's own style, and no figure left open."""
    import matplotlib.pyplot as plt

    with matplotlib.rc_context():
        matplotlib.use("Agg")
        matplotlib.rcdefaults()
        yield
    plt.close("all")


@pytest.fixture
def looks_the_same(tmp_path):
    """Compare a figure with its baseline, leaving texts aside: fonts differ between machines.

    GDML_WRITE_BASELINES=1 writes the baselines anew; look at them before they are committed.
    """
    from matplotlib.testing.compare import compare_images
    from matplotlib.text import Text

    def check(figure, name, tol=5.0):
        figure.canvas.draw()
        for text in figure.findobj(Text):
            text.set_visible(False)
        figure.set_layout_engine("none")
        if os.environ.get("GDML_WRITE_BASELINES"):
            figure.savefig(BASELINE / f"{name}.png", dpi=50)
        figure.savefig(tmp_path / f"{name}.png", dpi=50)
        assert compare_images(str(BASELINE / f"{name}.png"), str(tmp_path / f"{name}.png"), tol) is None

    return check


@pytest.fixture
def adata():
    """Two slides on a square grid, pitch 200 px = 200 um: gene A predicted well, gene B the wrong way round."""
    row, col = (x.ravel() for x in np.mgrid[:6, :8])
    obs = pd.DataFrame(
        {"library_id": np.repeat(["s1", "s2"], 48), "array_row": np.tile(row, 2), "array_col": np.tile(col, 2)}
    )
    obs.index = [f"spot{i}" for i in range(96)]
    made = ad.AnnData(obs=obs)
    made.obsm["spatial"] = np.column_stack([obs["array_col"], obs["array_row"]]) * 200.0 + 300
    wave = np.sin(obs["array_col"] / 2).to_numpy()
    measured = pd.DataFrame({"A": wave, "B": wave, "only-measured": wave}, index=obs.index)
    noise = np.random.default_rng(0).normal(0, 0.05, 96)
    made.obsm["gdml_measured"] = measured
    made.obsm["gdml"] = pd.DataFrame({"A": wave / 2 + noise, "B": 3 - wave, "only-predicted": wave}, index=obs.index)
    hires = np.full((70, 100, 3), 240, np.uint8)
    hires[10:60, 10:90] = (200, 120, 170)
    made.uns["spatial"] = {
        name: {
            "images": {"hires": hires},
            "scalefactors": {"tissue_hires_scalef": 0.05, "spot_diameter_fullres": 100.0},
            "metadata": {"spot_pitch_um": 200.0},
        }
        for name in ("s1", "s2")
    }
    return made


class FakeResult:
    """What pl reads from a result of gdml.tl.cross_validate, made up.

    Three splits (two slides, four, one), three seeds; the first of ``models`` is the best, the last the worst.
    """

    group_key = "patient"
    groups = None  # number of patients; None: a result without the columns on intervals

    def __init__(self, models, optimistic=False, slides=None, n_genes=60):
        rng = np.random.default_rng(0)
        folds = slides or {"B4+C to C6": ["C6", "C5"], "B4 to C": ["C2", "C3", "C4", "C6"], "C to B4": ["B4"]}
        genes = [f"GENE{i}" for i in range(n_genes)]
        base = np.sort(rng.uniform(-0.2, 0.75, n_genes))[::-1]
        level = {slide: rng.normal(0, 0.06) for fold in folds for slide in folds[fold]}
        tables = []
        for i, model in enumerate(models):
            for fold, names in folds.items():
                for seed in range(3):
                    for slide in names:
                        pcc = base + level[slide] - 0.03 * i + rng.normal(0, 0.05, n_genes)
                        pcc[7] = np.nan
                        tables.append(pd.DataFrame({"model": model, "fold": fold, "seed": seed, "slide": slide, "gene": genes, "pcc": pcc}))  # fmt: skip
        scores = pd.concat(tables, ignore_index=True)
        scores["mse"], scores["mae"] = 0.4 - 0.2 * scores["pcc"].fillna(0), 0.5 - 0.2 * scores["pcc"].fillna(0)
        scores["spearman"], scores["high"] = 0.9 * scores["pcc"], scores["gene"].isin(genes[:10])
        self.scores, self.optimistic = scores, optimistic
        self.protocol = "paper" if optimistic else "nested"
        self.note = "OPTIMISTIC: the epoch is selected on the test fold (protocol 'paper')." if optimistic else ""

    def slides(self):
        keys = ["model", "fold", "slide"]
        by = self.scores.groupby(keys, sort=False)
        table = by[["pcc", "spearman", "mse", "mae"]].mean().rename(columns={"pcc": "pcc_a"})
        table["pcc_h"] = self.scores[self.scores["high"]].groupby(keys, sort=False)["pcc"].mean()
        table["pcc_h_best"], table["n_spots"] = table["pcc_h"] + 0.03, 100
        return table.reset_index()

    def intervals(self, by_fold=False):
        metrics = ["pcc_a", "pcc_h", "pcc_h_best", "spearman", "mse", "mae"]
        keys = ["model", "fold", "metric"] if by_fold else ["model", "metric"]
        long = self.slides().melt(["model", "fold", "slide"], metrics, var_name="metric")
        by = long.groupby(keys, sort=False)["value"]
        half = 1.96 * by.std() / np.sqrt(by.size())  # NaN for a single slide
        table = pd.DataFrame({"mean": by.mean(), "low": by.mean() - half, "high": by.mean() + half, "sd_seeds": 0.01})
        if self.groups is not None:
            table["n_groups"], table["n_slides"] = self.groups, by.size()
            over = "groups" if self.groups >= 5 else "slides"
            table["interval_over"] = pd.Series(over, table.index).where(by.size() > 1)
        return table.reset_index()


class FakeAblation(FakeResult):
    """What pl reads from a result of gdml.tl.ablate, made up: two fields of numbers, one of a switch."""

    def __init__(self, optimistic=False):
        names = ["default", "k=6", "k=26", "k=12", "tau=0.05", "tau=0.1", "gates=False"]
        super().__init__(names, optimistic)
        self.variants = pd.DataFrame(
            {
                "k": [18, 6, 26, 12, 18, 18, 18],
                "tau": [0.07, 0.07, 0.07, 0.07, 0.05, 0.1, 0.07],
                "gates": [True] * 6 + [False],
                "default": [True] + [False] * 6,
                "field": ["", "k", "k", "k", "tau", "tau", "gates"],
            },
            index=names,
        )


MODELS = ["triplex", "gene-dml", "egn", "stnet", "bleep", "ridge", "m2ost", "nh2st", "hist2st", "histogene"]


@pytest.fixture
def compared():
    return FakeResult(MODELS)


@pytest.fixture
def compared_optimistically():
    return FakeResult(MODELS, optimistic=True)


@pytest.fixture
def ablated():
    return FakeAblation()


@pytest.fixture
def ablated_optimistically():
    return FakeAblation(optimistic=True)
