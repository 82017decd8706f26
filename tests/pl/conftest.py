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
