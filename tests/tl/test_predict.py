import copy
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import gdml
from gdml.training import TrainedModel


def values(adata, model=None, **kwargs):
    return gdml.tl.predict(adata, model, copy=True, **kwargs).obsm["gdml"]


@pytest.fixture
def deep(ready, small):
    """A Gene-DML of a few epochs, and the spots that it was fitted on."""
    return ready, gdml.tl.fit(ready, group_key="patient", precision="fp32", **small)


@pytest.fixture
def bare(synthetic_adata):
    """One slide with nothing but its coordinates and image: no genes, no tiles, no features."""
    one = synthetic_adata[synthetic_adata.obs["library_id"] == "S3"]
    obs = one.obs[["library_id", "array_row", "array_col"]]
    uns = {"spatial": {"S3": one.uns["spatial"]["S3"]}}
    return ad.AnnData(obs=obs.copy(), obsm={"spatial": one.obsm["spatial"].copy()}, uns=uns)


def test_what_is_written(deep):
    adata, model = deep
    x = adata.X.copy()
    assert gdml.tl.predict(adata) is None
    predicted, layer = adata.obsm["gdml"], adata.layers["gdml"]
    assert isinstance(predicted, pd.DataFrame) and (predicted.dtypes == np.float32).all()
    assert tuple(predicted.columns) == model.panel and predicted.index.equals(adata.obs_names)
    assert layer.shape == adata.shape and layer.dtype == np.float32
    of_panel = adata.var["gdml_panel"].to_numpy()
    np.testing.assert_array_equal(layer[:, of_panel], predicted[adata.var_names[of_panel]])
    assert np.isnan(layer[:, ~of_panel]).all()
    assert adata.obsm["X_gdml"].shape == (adata.n_obs, 16)
    np.testing.assert_allclose(np.linalg.norm(adata.obsm["X_gdml"], axis=1), 1, rtol=1e-5)
    record = adata.uns["gdml"]["predict"]
    assert record["model"] == model.path and record["name"] == "gene-dml" and record["n_matched"] == 30
    assert tuple(record["panel"]) == model.panel and tuple(record["high_genes"]) == model.high_genes
    assert record["normalization"] == model.normalization
    assert (adata.X != x).nnz == 0 and {"tiles", "features", "fit"} <= set(adata.uns["gdml"])


def test_evaluation_is_deterministic(deep):
    adata, model = deep
    assert values(adata, model).equals(values(adata, model))


@pytest.fixture
def too_low(_fitted):
    """A ridge that predicts differences from the level of each gene, half of them below 0."""
    model = copy.deepcopy(_fitted[1])
    model.module.frame.level.zero_()
    return model


def test_predictions_below_zero_are_set_to_zero_unless_told_otherwise(fitted, too_low):
    adata, before = fitted[0], values(*fitted, clip=False)
    raw = values(adata, too_low, clip=False)
    np.testing.assert_allclose(raw, before - fitted[1].module.frame.level.numpy(), atol=1e-4)
    assert (raw < 0).any(axis=None) and (raw > 0).any(axis=None)
    gdml.tl.predict(adata, too_low)
    found, record = adata.obsm["gdml"], dict(adata.uns["gdml"]["predict"])
    assert found.equals(raw.clip(lower=0)) and (found.dtypes == np.float32).all()
    np.testing.assert_array_equal(adata[:, found.columns].layers["gdml"], found)
    gdml.tl.predict(adata, too_low, clip=False)
    assert record["clip"] is True and adata.uns["gdml"]["predict"]["clip"] is False
    assert record["provenance"] != adata.uns["gdml"]["predict"]["provenance"]


def test_images_are_clipped_too(fitted, too_low):
    path = fitted[0].uns["spatial"]["S4"]["metadata"]["source_image_path"]
    clipped, raw = (gdml.tl.predict(path, too_low, um_per_px=1.0, clip=clip).obsm["gdml"] for clip in (True, False))
    assert (raw < 0).any(axis=None) and clipped.equals(raw.clip(lower=0))


@pytest.mark.parametrize("clip", [1, None, "no"])
def test_clip_is_a_switch(fitted, clip):
    adata, model = fitted
    before = sorted(adata.obsm)
    with pytest.raises(TypeError, match="`clip` must be True or False"):
        gdml.tl.predict(adata, model, clip=clip)
    assert sorted(adata.obsm) == before


@pytest.mark.parametrize("read", [ad.read_h5ad, ad.read_zarr])
def test_after_a_round_trip_through_a_file(deep, tmp_path, read):
    adata, model = deep
    gdml.tl.predict(adata)
    expected = adata.obsm["gdml"]
    (adata.write_h5ad if read is ad.read_h5ad else adata.write_zarr)(tmp_path / "adata")
    again = read(tmp_path / "adata")
    pd.testing.assert_frame_equal(again.obsm["gdml"], expected, check_exact=True, check_names=False)
    assert list(again.uns["gdml"]["predict"]["panel"]) == list(model.panel)
    pd.testing.assert_frame_equal(gdml.tl.evaluate(again), gdml.tl.evaluate(adata))
    del again.obsm["gdml"], again.layers["gdml"]
    gdml.tl.predict(again)  # with the model that was fitted on it, from its folder
    pd.testing.assert_frame_equal(again.obsm["gdml"], expected, check_exact=True)


def test_predictions_without_validation_can_be_written(fitted, tmp_path):
    adata, _ = fitted
    gdml.tl.fit(adata, "ridge", validation=None)  # no high_genes, no history
    gdml.tl.predict(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert np.isnan(gdml.tl.evaluate(again).loc["all", "pcc_h"])
    gdml.tl.predict(again)


def test_a_new_slide_without_genes(deep, bare):
    adata, model = deep
    gdml.tl.predict(bare, model)
    assert tuple(bare.obsm["gdml"].columns) == model.panel and "gdml" not in bare.layers
    assert bare.uns["gdml"]["predict"]["n_matched"] == 0
    assert {"tiles", "features", "predict"} == set(bare.uns["gdml"]) and "X_stain" in bare.obsm
    # the same as beside the other slides
    here = adata.obs["library_id"] == "S3"
    np.testing.assert_allclose(bare.obsm["gdml"], values(adata, model)[here.to_numpy()], atol=1e-5)


def test_a_saved_model_by_its_folder(deep, bare, tmp_path):
    _, model = deep
    model.save(tmp_path / "model")
    one, two = values(bare, model), values(bare, tmp_path / "model")
    assert one.equals(two) and values(bare, str(tmp_path / "model")).equals(two)
    written = gdml.tl.predict(bare, tmp_path / "model", copy=True)
    assert written.uns["gdml"]["predict"]["model"] == str(tmp_path / "model")


def test_the_record_names_the_model_that_was_used(fitted, tmp_path):
    adata, model = fitted
    other = gdml.tl.fit(adata.copy(), "ridge", validation=None, save_to=tmp_path / "other")
    gdml.tl.predict(adata, other)
    assert adata.uns["gdml"]["predict"]["model"] == str(tmp_path / "other") != model.path
    gdml.tl.predict(adata, TrainedModel(**{**vars(other), "path": None}))
    assert adata.uns["gdml"]["predict"]["model"] == "in memory"


def test_the_models_geometry_is_used(ready, bare, small):
    gdml.pp.tile(ready, tile_um=90, n_side=3)
    gdml.pp.embed(ready, "stain")
    model = gdml.tl.fit(ready, "ridge")
    gdml.tl.predict(bare, model)
    tiles = bare.uns["gdml"]["tiles"]
    assert (tiles["tile_um"], tiles["n_side"]) == (90, 3) and bare.obsm["gdml_neighbor_mask"].shape == (bare.n_obs, 9)
    # tiles of another size are laid anew, and their features with them
    other = bare.copy()
    gdml.pp.tile(other)
    gdml.pp.embed(other, "stain")
    assert values(other, model).equals(bare.obsm["gdml"])


def test_native_pixels(ready, bare):
    ready, bare = ready[::5].copy(), bare[:8].copy()
    gdml.pp.tile(ready, tile_um=None)
    gdml.pp.embed(ready, "stain")
    model = gdml.tl.fit(ready, "ridge")
    assert model.tiles["tile_um"] is None
    model = gdml.load(model.path)
    gdml.tl.predict(bare, model)
    assert np.isnan(bare.uns["gdml"]["tiles"]["tile_um"])


def test_features_of_another_encoder_are_made_anew(fitted):
    adata, model = fitted
    adata = adata[::10].copy()
    expected = values(adata, model)
    gdml.pp.embed(adata, mean_colour, encoder_name="colour", tokens="pooled")
    assert adata.uns["gdml"]["features"]["encoder"] == "colour"
    gdml.tl.predict(adata, model)
    assert adata.obsm["gdml"].equals(expected) and adata.uns["gdml"]["features"]["encoder"] == "stain"


# rows and genes


@pytest.mark.parametrize("model", ["gene-dml", "ridge"])
def test_the_order_of_rows_does_not_matter(ready, small, model):
    trained = gdml.tl.fit(ready, model, **(small if model == "gene-dml" else {}))
    order = np.random.default_rng(0).permutation(ready.n_obs)
    shuffled = ready[order].copy()
    one, two = (values(a, trained, precision="fp32") for a in (ready, shuffled))
    assert two.index.equals(shuffled.obs_names)
    np.testing.assert_allclose(two.loc[one.index], one, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_size_of_batches_does_not_matter(deep, batch_size):
    adata, model = deep
    a, b = (values(adata, model, precision="fp32", batch_size=size) for size in (batch_size, 512))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_genes_are_matched_by_name(fitted):
    adata, model = fitted
    other = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    other = other[:, other.var_names != model.panel[3]].copy()
    other.var_names = [f"new-{i}" if name not in model.panel else name for i, name in enumerate(other.var_names)]
    expected = values(adata, model)
    gdml.tl.predict(other, model)
    assert other.obsm["gdml"].equals(expected) and other.uns["gdml"]["predict"]["n_matched"] == 29
    for gene in other.var_names:
        column = other.layers["gdml"][:, other.var_names.get_loc(gene)]
        if gene in model.panel:
            np.testing.assert_array_equal(column, expected[gene])
        else:
            assert np.isnan(column).all()
    scores = gdml.tl.evaluate(other)
    assert scores.loc["all", "n_genes"] == 29 and scores.loc["all", "n_absent"] == 1


def test_other_genes_altogether(fitted):
    adata, model = fitted
    adata.var_names = [f"ENSG{i}" for i in range(adata.n_vars)]
    adata.layers["gdml"] = np.zeros(adata.shape, np.float32)  # of an earlier prediction
    gdml.tl.predict(adata, model)
    assert "gdml" not in adata.layers and adata.uns["gdml"]["predict"]["n_matched"] == 0
    assert np.isfinite(adata.obsm["gdml"]).all(axis=None)
    with pytest.raises(ValueError, match="None of the 30 panel genes"):
        gdml.tl.evaluate(adata)


def test_a_layer_that_would_be_too_large(fitted, monkeypatch, caplog):
    adata, model = fitted
    adata.layers["gdml"] = np.zeros(adata.shape, np.float32)
    size = adata.n_obs * adata.n_vars * 4 / 1e9
    monkeypatch.setattr(gdml.settings, "max_layer_gb", size * 0.99)
    gdml.tl.predict(adata, model)
    assert "gdml" not in adata.layers and len(adata.obsm["gdml"]) == adata.n_obs
    assert adata.uns["gdml"]["predict"]["n_matched"] == 30
    monkeypatch.setattr(gdml.settings, "max_layer_gb", size * 1.01)
    gdml.tl.predict(adata, model)
    assert "gdml" in adata.layers


# copies, images, encoders


def snapshot(adata):
    return {part: sorted(map(str, getattr(adata, part))) for part in ("obs", "var", "obsm", "layers", "uns")} | {
        "gdml": {k: id(v) for k, v in adata.uns.get("gdml", {}).items()}
    }


def test_a_copy_leaves_the_original(deep, bare):
    _, model = deep
    before = snapshot(bare)
    copied = gdml.tl.predict(bare, model, copy=True)
    assert snapshot(bare) == before and "gdml" in copied.obsm
    view = bare[:20]
    assert gdml.tl.predict(view, model, copy=True).n_obs == 20


def test_an_image_given_by_hand(fitted, bare):
    adata, model = fitted
    path = bare.uns["spatial"]["S3"]["metadata"].pop("source_image_path")
    before = snapshot(bare)
    with pytest.raises(ValueError, match="full-resolution image is needed. Pass its path: image="):
        gdml.tl.predict(bare, model)
    assert snapshot(bare) == before
    gdml.tl.predict(bare, model, image=path)
    here = (adata.obs["library_id"] == "S3").to_numpy()
    np.testing.assert_allclose(bare.obsm["gdml"], values(adata, model)[here], atol=1e-5)


def mean_colour(tiles):
    return torch.cat([tiles.mean((2, 3)), tiles.std((2, 3))], 1)


def test_a_model_of_the_users_own_encoder(ready, bare):
    ready, bare = ready[::5].copy(), bare[:8].copy()
    gdml.pp.embed(ready, mean_colour, tokens="pooled")
    model = gdml.load(gdml.tl.fit(ready, "ridge").path)
    before = snapshot(bare)
    with pytest.raises(ValueError, match=r"encoder is 'mean_colour', which is not built in: pass .*encoder=\.\.\."):
        gdml.tl.predict(bare, model)
    assert snapshot(bare) == before
    with pytest.raises(ValueError, match="The model's encoder is 'custom .*', found 'custom .*': pass the encoder"):
        gdml.tl.predict(bare, model, encoder=lambda tiles: tiles.mean((2, 3)))
    assert snapshot(bare) == before
    gdml.tl.predict(bare, model, encoder=mean_colour)
    assert np.isfinite(bare.obsm["gdml"]).all(axis=None)
    # where the features are there already, no encoder is needed
    gdml.tl.predict(ready, model)


# what is refused


def test_no_model(ready):
    before = snapshot(ready)
    with pytest.raises(KeyError, match=r"No `model` is given.*call gdml.tl.fit\(adata\) first"):
        gdml.tl.predict(ready)
    assert snapshot(ready) == before


def test_a_model_that_is_gone(fitted, tmp_path):
    adata, model = fitted
    model.save(tmp_path / "model")
    adata.uns["gdml"]["fit"] = {**adata.uns["gdml"]["fit"], "model": str(tmp_path / "model")}
    gdml.tl.predict(adata, copy=True)
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"records, .*model', does not exist: .*gdml.tl.fit\(adata\)"):
        gdml.tl.predict(adata)
    model.save(tmp_path / "model")


@pytest.mark.parametrize("model", [3, torch.nn.Linear(2, 2), ["gene-dml"]])
def test_what_is_no_model(ready, model):
    with pytest.raises(TypeError, match="`model` must be a trained model or the folder of one, found"):
        gdml.tl.predict(ready, model)


@pytest.mark.parametrize(("argument", "value"), [("device", "gpu"), ("precision", "half")])
def test_arguments_are_checked_first(fitted, argument, value):
    adata, model = fitted
    before = snapshot(adata)
    with pytest.raises(ValueError, match=f"`{argument}` is '{value}'"):
        gdml.tl.predict(adata, model, **{argument: value})
    assert snapshot(adata) == before


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_an_impossible_batch_size(fitted, batch_size):
    adata, model = fitted
    before = snapshot(adata)
    with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1"):
        gdml.tl.predict(adata, model, batch_size=batch_size)
    assert snapshot(adata) == before


# devices


class Elsewhere:
    """A device that marks what was moved to it."""

    def __init__(self, real):
        self._real = real

    def __getattr__(self, name):
        return getattr(self._real, name)

    def to_device(self, module):
        module.place = "elsewhere"


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_returns_to_the_cpu_also_after_an_error(fitted, monkeypatch, fails):
    adata, model = fitted
    from gdml.training import fabric

    real = fabric.make_fabric
    monkeypatch.setattr(fabric, "make_fabric", lambda *a, **k: Elsewhere(real(*a, **k)))
    monkeypatch.setattr(type(model.module), "cpu", lambda self: setattr(self, "place", "cpu"))
    before = snapshot(adata)
    if fails:

        def forward(self, batch):
            assert self.place == "elsewhere"
            raise RuntimeError("out of memory")

        monkeypatch.setattr(type(model.module), "forward", forward)
        with pytest.raises(RuntimeError, match="out of memory"):
            gdml.tl.predict(adata, model)
        assert snapshot(adata) == before
    else:
        gdml.tl.predict(adata, model)
    assert model.module.place == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_leaves_the_gpu(deep, monkeypatch, fails):
    adata, model = deep
    if fails:

        def forward(self, batch):
            assert next(self.parameters()).is_cuda
            raise RuntimeError("out of memory")

        monkeypatch.setattr(type(model.module), "forward", forward)
        with pytest.raises(RuntimeError, match="out of memory"):
            gdml.tl.predict(adata, model, device="cuda")
    else:
        gdml.tl.predict(adata, model, device="cuda")
    assert all(not tensor.is_cuda for tensor in (*model.module.parameters(), *model.module.buffers()))


def test_the_models_kind_of_neighbour_tiles_is_used(ready, bare):
    gdml.pp.embed(ready, "stain", neighbors="lattice")
    model = gdml.load(gdml.tl.fit(ready, "ridge").path)
    assert model.features["neighbors"] == "lattice"
    here = (ready.obs["library_id"] == "S3").to_numpy()
    expected = values(ready, model)[here]
    gdml.tl.predict(bare, model)
    assert bare.uns["gdml"]["features"]["neighbors"] == "lattice"
    np.testing.assert_allclose(bare.obsm["gdml"], expected, atol=1e-5)
    # features with exact neighbours are those of another kind
    other = bare.copy()
    gdml.pp.embed(other, "stain", neighbors="exact")
    assert values(other, model).equals(bare.obsm["gdml"])
