"""The main job from images and counts to scores, on slides that the model has not seen."""

import numpy as np
import pytest

import gdml


@pytest.mark.real
@pytest.mark.slow
def test_a_real_section(data_dir):
    train, test = (gdml.datasets.her2st([section]) for section in ("C2", "C6"))
    gdml.pp.normalize(train, n_genes=100)
    gdml.pp.embed(train, neighbors="lattice")  # a fifth of the tiles to encode
    config = {"width": 64, "branch_width": 64, "neighbor_depth": 1, "slide_depth": 1, "n_groups": 10}
    model = gdml.tl.fit(train, config=config, training={"max_epochs": 8, "batch_size": 128, "learning_rate": 1e-3})
    gdml.tl.predict(test, model)
    scores = gdml.tl.evaluate(test)
    assert np.isfinite(test.obsm["gdml"]).all(axis=None)
    assert scores.loc["all", "pcc_a"] > 0.1 and scores.loc["all", "pcc_h"] > scores.loc["all", "pcc_a"]
    assert scores.loc["all", "n_genes"] == 100


@pytest.mark.slow
def test_what_can_be_learnt_is_learnt_and_noise_is_not():
    """All defaults but the number of epochs: a model of the slides of one patient, and of one slide of the other, on the last slide."""
    adata = gdml.datasets.synthetic(grid=9)
    new = adata.obs["library_id"] == "S4"
    train, test = adata[~new].copy(), adata[new].copy()
    gdml.pp.normalize(train, genes=train.var_names)
    model = gdml.tl.fit(train, max_epochs=8)
    gdml.tl.predict(test, model)
    gdml.tl.evaluate(test)
    pcc = test.var["gdml_pcc"]
    assert pcc[test.var["learnable"]].mean() > 0.8
    assert abs(pcc[~test.var["learnable"]].mean()) < 0.1
