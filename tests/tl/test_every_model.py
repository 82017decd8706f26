"""Every model of the registry, from fit to a saved copy that predicts another slide, on each kind of grid."""

import anndata as ad
import numpy as np
import pytest

import gdml

#: Sizes that train in a second; what is not named keeps its default.
SMALL = {
    "bleep": {"width": 16, "n_neighbors": 5},
    "egn": {"width": 16, "depth": 2, "heads": 2, "n_exemplars": 3},
    "gene-dml": {
        "width": 16, "branch_width": 16, "neighbor_depth": 1, "neighbor_heads": 2, "slide_depth": 1, "slide_heads": 2,
        "fusion_heads": 2, "n_groups": 4,
    },
    "hist2st": {"width": 16, "depth": 1, "heads": 2, "graph_depth": 1},
    "histogene": {"width": 16, "depth": 1, "heads": 2},
    "m2ost": {"width": 16, "depth": 1, "heads": 2},
    "nh2st": {"width": 16, "graph_width": 16, "depth": 1, "heads": 2},
    "kernel": {"n_landmarks": 16},
    "ridge": {},
    "stnet": {},
    "triplex": {
        "width": 16, "neighbor_depth": 1, "neighbor_heads": 2, "global_depth": 2, "global_heads": 2, "fusion_heads": 2,
    },
}  # fmt: skip
#: Models that read single tokens of a tile.
OF_TOKENS = ("egn", "triplex")


def test_every_model_is_here():
    assert set(SMALL) == set(gdml.models.list_models())


@pytest.fixture(params=["square", "hexagonal", "none"])
def slides(request, ready):
    """Four slides: as they are, every second spot as Visium's coordinates have it, or without any grid."""
    if request.param == "hexagonal":
        ready = ready[(ready.obs["array_row"] + ready.obs["array_col"]) % 2 == 0].copy()
    elif request.param == "none":
        del ready.obs["array_row"], ready.obs["array_col"]
    return ready


@pytest.mark.parametrize("name", SMALL)
def test_it_trains_is_saved_and_predicts_another_slide(slides, name, tmp_path):
    new = (slides.obs["library_id"] == "S4").to_numpy()
    train, test = slides[~new].copy(), slides[new].copy()
    model = gdml.tl.fit(train, name, config=SMALL[name], max_epochs=2, save_to=tmp_path / name)
    gdml.tl.predict(test, model)
    predicted = test.obsm["gdml"].copy()
    assert np.isfinite(predicted.to_numpy()).all() and np.ptp(predicted.to_numpy(), axis=0).max() > 0
    gdml.tl.predict(test, gdml.load(tmp_path / name))
    np.testing.assert_array_equal(test.obsm["gdml"], predicted)
    assert gdml.tl.evaluate(test).loc["all", "n_spots"] == test.n_obs


@pytest.mark.parametrize("name", SMALL)
def test_it_predicts_an_image_alone_as_it_does_spots_with_counts(ready, name):
    """No model reads counts, genes or an array to predict: what it keeps of them is in the model."""
    path = ready.uns["spatial"]["S4"]["metadata"]["source_image_path"]
    train = ready[(ready.obs["library_id"] != "S4").to_numpy()].copy()
    model = gdml.tl.fit(train, name, config=SMALL[name], max_epochs=2)
    slide = gdml.tl.predict(path, model, um_per_px=1.0)
    assert slide.n_vars == 0 and slide.n_obs > 100  # spots of S4: fewer than 49
    measured = ad.AnnData(
        np.random.default_rng(0).poisson(3, (slide.n_obs, 30)).astype(np.float32),
        obs=slide.obs,
        obsm={"spatial": slide.obsm["spatial"]},
        uns={"spatial": slide.uns["spatial"]},
    )
    measured.var_names = list(model.panel)
    gdml.tl.predict(measured, model, um_per_px=1.0)
    np.testing.assert_array_equal(slide.obsm["gdml"], measured.obsm["gdml"])
    assert np.isfinite(slide.obsm["gdml"]).all(axis=None) and np.ptp(slide.obsm["gdml"], axis=0).max() > 0


@pytest.mark.parametrize("name", OF_TOKENS)
def test_tokens_that_were_not_embedded_are_asked_for(ready, name, tmp_path):
    gdml.pp.embed(ready, "stain", tokens="pooled")
    before = sorted(ready.uns["gdml"])
    with pytest.raises(ValueError, match=r'gdml.pp.embed\(adata, tokens="grid7"\)'):
        gdml.tl.fit(ready, name)
    with pytest.raises(ValueError, match=f"`model` '{name}'.*" + r'gdml.pp.embed\(adata, tokens="grid7"\)'):
        gdml.tl.cross_validate(ready, ["ridge", name], groups="patient", save_to=tmp_path / "runs")
    assert sorted(ready.uns["gdml"]) == before and not (tmp_path / "runs").exists()


def test_neighbours_that_were_not_tiled_are_asked_for(ready, tmp_path):
    gdml.pp.tile(ready, n_side=3)
    gdml.pp.embed(ready, "stain")
    with pytest.raises(ValueError, match=r"`model` 'm2ost'.*gdml.pp.tile\(adata, n_side=5\)"):
        gdml.tl.cross_validate(ready, "m2ost", groups="patient", save_to=tmp_path / "runs")
