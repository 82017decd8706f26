import copy
import io
import json
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import torch

import gdml
from gdml.training import FrameConfig, TrainingConfig
from gdml.training import loop as training_loop


def prediction(adata, model):
    return gdml.tl.predict(adata, model, copy=True).obsm["gdml"].to_numpy()


def written(adata):
    """Names of everything in an AnnData, and the values that verbs could overwrite."""
    return {
        "shape": adata.shape,
        "obs": list(adata.obs),
        "var": list(adata.var),
        "obsm": sorted(adata.obsm),
        "layers": sorted(map(str, adata.layers)),
        "uns": sorted(adata.uns),
        "gdml": sorted(adata.uns.get("gdml", {})),
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_predictions_bit_for_bit(ready, small, precision):
    fit = lambda seed: gdml.tl.fit(ready, group_key="patient", seed=seed, device="cpu", precision=precision, **small)
    first, second, other = fit(1), fit(1), fit(2)
    assert np.array_equal(prediction(ready, first), prediction(ready, second))
    assert not np.array_equal(prediction(ready, first), prediction(ready, other))
    np.testing.assert_array_equal(first.history["loss"], second.history["loss"])


def test_it_runs_the_steps_that_are_missing(synthetic_adata, small):
    # 40 genes are fewer than the default panel
    gdml.pp.select_genes(synthetic_adata, n_genes=20)
    model = gdml.tl.fit(synthetic_adata, **small)
    assert {"tiles", "features", "normalization", "fit"} <= set(synthetic_adata.uns["gdml"])
    assert {"X_stain", "gdml_measured", "gdml_neighbor_mask"} <= set(synthetic_adata.obsm)
    assert len(model.panel) == 20
    assert model.panel == tuple(synthetic_adata.var_names[synthetic_adata.var["gdml_panel"]])
    assert synthetic_adata.uns["gdml"]["normalization"]["log"] == "e"


def test_steps_that_were_run_are_kept(ready, small):
    measured, tiles = ready.obsm["gdml_measured"], ready.uns["gdml"]["tiles"]
    gdml.tl.fit(ready, **small)
    assert ready.obsm["gdml_measured"].equals(measured) and ready.uns["gdml"]["tiles"] == tiles


def test_a_presets_expression_is_the_papers(synthetic_adata):
    gdml.pp.select_genes(synthetic_adata, n_genes=20)
    small = {"config": {"n_groups": 4, "width": 16}, "training": {"max_epochs": 1, "batch_size": 64}}
    # the paper's 16 heads do not divide the 72 stain features
    with pytest.raises(ValueError, match="found 16 heads for width 72, which 12 divides"):
        gdml.tl.fit(synthetic_adata, preset="skinst", **small)
    small["config"] |= {"slide_heads": 12, "neighbor_heads": 12}
    model = gdml.tl.fit(synthetic_adata, preset="skinst", **small)
    assert model.normalization == {"order": "panel", "target_sum": 1e4, "log": "10", "smooth": True}
    config = model.module.config
    assert (config.slide_heads, config.targets, config.n_groups, config.width) == (12, "raw", 4, 16)
    settings = model.training["settings"]
    assert (settings["optimizer"], settings["batch_size"], settings["max_epochs"]) == ("adam", 64, 1)
    assert model.training["preset"] == "skinst"


@pytest.mark.parametrize("labels", ["scanpy", "paper"])
def test_what_is_each_genes_own_is_kept_unless_labels_are_the_papers(ready, small, labels):
    gdml.pp.normalize(ready, normalization=labels)
    share = gdml.tl.fit(ready, **small).module.config.gene_specific
    assert (0 < share < 1) if labels == "paper" else share == 1
    small["config"]["gene_specific"] = 0.25
    assert gdml.tl.fit(ready, **small).module.config.gene_specific == 0.25


def test_the_default_is_blended_with_its_floor(ready, small, tmp_path):
    del small["config"]["floor"]
    model = gdml.tl.fit(ready, group_key="patient", **small)
    shares = ready.uns["gdml"]["fit"]["shares"]
    assert list(shares) == ["ridge", "kernel", "network"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares == model.training["shares"]
    assert (model.training["gain"] >= 0.1) == (shares["ridge"] < 1)
    assert ready.uns["gdml"]["fit"]["gain"] == gdml.load(model.path).training["gain"] == model.training["gain"]
    np.testing.assert_allclose(model.module.floor.shares, list(shares.values()), atol=1e-6)
    assert model.module.frame.config == FrameConfig()
    split = ready.uns["gdml"]["fit"]["split"]
    # of two patients neither is held out, but slides are, and more is asked of the blend
    assert (split["n_splits"], split["by"]) == (4, "slide")
    assert sorted(split["held_out"].split(", ")) == ["S1", "S2", "S3", "S4"]
    expected = prediction(ready, model)
    ready.write_h5ad(tmp_path / "fitted.h5ad")
    assert dict(ad.read_h5ad(tmp_path / "fitted.h5ad").uns["gdml"]["fit"]["shares"]) == shares
    np.testing.assert_array_equal(prediction(ready, gdml.load(model.path)), expected)
    # three epochs teach the network nothing: its share is 0, and the seed does not matter
    assert shares["network"] == 0
    other = gdml.tl.fit(ready, group_key="patient", seed=3, **small)
    np.testing.assert_allclose(prediction(ready, other), expected, atol=1e-5)


def test_what_a_model_carries(ready, small):
    model = gdml.tl.fit(ready, group_key="patient", seed=5, **small)
    assert model.panel == tuple(ready.obsm["gdml_measured"].columns)
    assert model.normalization == {"order": "all", "target_sum": 1e4, "log": "e", "smooth": False}
    assert model.tiles == {"tile_um": 112.0, "tile_px": 224, "n_side": 5}
    assert model.features["encoder"] == "stain" and model.features["tokens"] == "grid7"
    assert set(model.high_genes) <= set(model.panel) and len(model.high_genes) == 30
    assert model.training["seed"] == 5 and model.training["n_spots"] == ready.n_obs
    assert 1 <= model.best_epoch == ready.uns["gdml"]["fit"]["best_epoch"]
    assert model.training["slides"] == ["S1", "S2", "S3", "S4"]
    assert set(model.training["versions"]) >= {"gdml", "torch", "python"}
    json.dumps(model.training, allow_nan=False)
    assert not model.module.training


def test_what_uns_records(ready, small, tmp_path):
    model = gdml.tl.fit(ready, group_key="patient", save_to=tmp_path / "model", **small)
    record = ready.uns["gdml"]["fit"]
    assert record["model"] == str(tmp_path / "model") == model.path
    assert record["name"] == "gene-dml" and record["preset"] == "default"
    assert record["split"]["by"] == "group" and record["split"]["groups"] == "patient"
    assert record["split"]["held_out"] in ("P1", "P2")
    assert record["split"]["n_train"] + record["split"]["n_validation"] == ready.n_obs
    assert 1 <= record["best_epoch"] <= 3 and record["n_epochs"] == record["best_epoch"]
    history = record["history"]
    assert {"epoch", "loss", "loss_pred", "val_pcc", "val_mse"} <= set(history)
    assert {len(v) for v in history.values()} == {3} and all(v.dtype == np.float64 for v in history.values())
    for write, read in ((ready.write_h5ad, ad.read_h5ad), (ready.write_zarr, ad.read_zarr)):
        write(tmp_path / read.__name__)
        again = read(tmp_path / read.__name__).uns["gdml"]["fit"]
        np.testing.assert_array_equal(again["history"]["val_pcc"], history["val_pcc"])
        assert again["config"] == record["config"] and list(again["slides"]) == list(record["slides"])


def test_without_a_folder_the_model_goes_to_the_cache(ready, cache_dir):
    model = gdml.tl.fit(ready, "ridge")
    assert Path(model.path).parent == cache_dir / "models" and gdml.load(model.path).name == "ridge"
    gdml.tl.fit(ready, "ridge")  # the same model once more is no error


def test_the_users_random_state_is_untouched(ready, small):
    torch.manual_seed(7)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    gdml.tl.fit(ready, **small)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


# splits


@pytest.mark.parametrize(
    ("validation", "groups", "by"),
    [
        ("auto", "patient", "slide"),
        ("auto", None, "slide"),
        ("group", None, "group"),
        ("group", "patient", "group"),
        ("block", "patient", "block"),
        (None, "patient", "none"),
    ],
)
def test_how_spots_are_held_out(ready, validation, groups, by):
    model = gdml.tl.fit(ready, "ridge", group_key=groups, validation=validation)
    split = model.training["split"]
    assert split["by"] == by
    if by in ("group", "slide"):
        patients = by == "group" and groups
        assert sorted(split["held_out"].split(", ")) == (["P1", "P2"] if patients else ["S1", "S2", "S3", "S4"])
    assert bool(model.high_genes) == (validation is not None)


def test_one_slide_is_split_by_block(ready):
    one = ready[ready.obs["library_id"] == "S1"].copy()
    model = gdml.tl.fit(one, "stnet", validation_fraction=0.3, max_epochs=1)
    split = model.training["split"]
    # a margin of half a region and half a tile: 3 tiles of 112 um, spots 200 um apart
    assert split["by"] == "block" and split["n_validation"] == round(0.3 * one.n_obs)
    assert 0 < split["n_train"] < one.n_obs - split["n_validation"]


def test_the_refit_learns_from_all_spots(ready, small):
    runs = []
    real = training_loop.Trainer

    class Spy(real):
        def __init__(self, model, data, rows, *args):
            runs.append(rows.tolist())
            super().__init__(model, data, rows, *args)

    training_loop.Trainer = Spy
    try:
        whole = gdml.tl.fit(ready, group_key="patient", **small)
        part = gdml.tl.fit(ready, group_key="patient", **small | {"training": {**small["training"], "refit": False}})
    finally:
        training_loop.Trainer = real
    first, again, alone = runs
    assert again == list(range(ready.n_obs)) and first == alone and len(first) < len(again)
    np.testing.assert_array_equal(whole.history["val_pcc"], part.history["val_pcc"])
    assert whole.training["n_epochs"] == part.training["n_epochs"] == whole.training["best_epoch"]
    assert not np.array_equal(prediction(ready, whole), prediction(ready, part))


def test_no_validation_trains_all_epochs(ready, small):
    model = gdml.tl.fit(ready, validation=None, max_epochs=2, **small)
    assert model.training["n_epochs"] == 2 and model.training["split"] == {"by": "none"}
    assert "val_pcc" not in model.history and model.high_genes == ()


def test_settings_of_the_loop_as_an_object(ready, small):
    given = TrainingConfig(max_epochs=2, batch_size=50, refit=False, learning_rate=1e-3)
    model = gdml.tl.fit(ready, config=small["config"], training=given)
    assert model.training["settings"] == vars(given)
    model = gdml.tl.fit(ready, config=small["config"], training=given, max_epochs=1)
    assert model.training["settings"] == vars(replace(given, max_epochs=1))


# interruptions


def stop_after(epochs, monkeypatch):
    """Ctrl-C in the epoch after so many, of both trainings together."""
    real, count = training_loop.Trainer.epoch, []

    def epoch(self):
        count.append(1)
        if len(count) > epochs:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(training_loop.Trainer, "epoch", epoch)


def test_interrupted_while_the_epoch_is_chosen(ready, small, monkeypatch):
    stop_after(2, monkeypatch)
    model = gdml.tl.fit(ready, group_key="patient", **small)
    assert len(model.history["epoch"]) == 2 and model.training["n_epochs"] == model.training["best_epoch"] <= 2
    assert np.isfinite(prediction(ready, model)).all()


def test_only_fit_tells_that_an_interrupted_model_is_kept(ready, small, monkeypatch, tmp_path):
    log = io.StringIO()
    monkeypatch.setattr(type(sc.settings), "logfile", property(lambda self: log), raising=False)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_after(2, patched)
        gdml.tl.cross_validate(ready, {"a": {"model": "gene-dml", **small}}, group_key="patient", save_to=tmp_path)
    assert "is kept" not in log.getvalue()
    stop_after(2, monkeypatch)
    gdml.tl.fit(ready, group_key="patient", **small)
    assert "fit: interrupted; the best epoch is kept" in log.getvalue()


@pytest.mark.parametrize("more", [0, 1])
def test_interrupted_while_learning_from_all_spots(ready, small, monkeypatch, more):
    # the model of the chosen epoch is whole, one half-way through the refit is not
    small["training"] |= {"learning_rate": 1e-3, "refit": False}
    expected = gdml.tl.fit(ready, group_key="patient", **small)
    small["training"]["refit"] = True
    stop_after(3 + min(more, expected.training["best_epoch"] - 1), monkeypatch)
    model = gdml.tl.fit(ready, group_key="patient", **small)
    assert np.array_equal(prediction(ready, model), prediction(ready, expected))


def test_interrupted_before_anything_was_learnt(synthetic_adata, small, monkeypatch):
    gdml.pp.select_genes(synthetic_adata, n_genes=20)
    before = written(synthetic_adata)
    stop_after(0, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        gdml.tl.fit(synthetic_adata, **small)
    assert written(synthetic_adata) == before


# other places, other rows


def test_another_key(synthetic_adata, small):
    gdml.pp.tile(synthetic_adata, key_added="mine")
    gdml.pp.embed(synthetic_adata, "stain", key_added="mine")
    gdml.pp.normalize(synthetic_adata, n_genes=20, key_added="mine")
    model = gdml.tl.fit(synthetic_adata, key_added="mine", **small)
    assert "fit" in synthetic_adata.uns["mine"] and "gdml" not in synthetic_adata.uns
    gdml.tl.predict(synthetic_adata, key_added="mine")
    assert list(synthetic_adata.obsm["mine"].columns) == list(model.panel)
    assert {"mine", "X_mine"} <= set(synthetic_adata.obsm) and "mine" in synthetic_adata.layers
    assert not [k for k in (*synthetic_adata.obsm, *synthetic_adata.layers, *synthetic_adata.uns) if "gdml" in str(k)]


def test_some_of_the_embedded_spots(ready, small):
    some = ready[ready.obs["library_id"].isin(["S2", "S4"])].copy()
    some = some[np.random.default_rng(0).permutation(some.n_obs)[:50]].copy()
    model = gdml.tl.fit(some, **small)
    assert model.training["n_spots"] == 50 and set(model.training["slides"]) == {"S2", "S4"}
    gdml.tl.predict(ready, model)
    assert np.isfinite(ready.obsm["gdml"]).all(axis=None)


def test_array_positions_are_not_needed(ready, small):
    del ready.obs["array_row"], ready.obs["array_col"]
    assert np.isfinite(prediction(ready, gdml.tl.fit(ready, **small))).all()


def test_a_read_file_can_be_fitted(ready, small, tmp_path):
    ready.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    one, two = (gdml.tl.fit(a, group_key="patient", **small) for a in (ready, again))
    assert np.array_equal(prediction(ready, one), prediction(again, two))
    json.dumps(two.features), json.dumps(two.tiles), json.dumps(two.normalization)


def test_ridge(fitted):
    adata, model = fitted
    assert model.history == {} and model.training["best_epoch"] == 0
    gdml.tl.predict(adata, model)
    assert "X_gdml" not in adata.obsm
    scores = gdml.tl.evaluate(adata)
    learnable = adata.var["learnable"] & adata.var["gdml_panel"]
    assert scores.loc["all", "pcc_a"] > 0.2 and adata.var.loc[learnable, "gdml_pcc"].mean() > 0.5


# what is refused, before anything is computed or written


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"model": "gene_dml"}, ValueError, "`model` is 'gene_dml', which is not known. Did you mean 'gene-dml'"),
        (
            {"group_key": "patients"},
            KeyError,
            "`group_key` is 'patients', which is no column of obs. Did you mean 'patient'",
        ),
        ({"preset": "her2"}, ValueError, "`preset` is 'her2'. Did you mean 'her2st'"),
        ({"model": "ridge", "preset": "her2st"}, ValueError, "`preset` is 'her2st'. .*'hest'"),
        ({"model": "stnet", "preset": "her2st"}, ValueError, "`preset` is 'her2st', but the model 'stnet' has none"),
        ({"config": {"widht": 3}}, ValueError, "`config` has no field 'widht'. Did you mean 'width'"),
        ({"config": {"group_target": "x"}}, ValueError, "`group_target` is 'x'"),
        ({"training": {"lr": 3}}, ValueError, "`training` has no field 'lr'"),
        ({"max_epochs": 0}, ValueError, "`max_epochs` must be a whole number of at least 1"),
        ({"max_epochs": "5"}, ValueError, "`max_epochs` must be a whole number of at least 1, found '5'"),
        ({"config": {"width": "512"}}, TypeError, "`width` must be a number, found '512'"),
        ({"config": {"average_scales": "no"}}, TypeError, "`average_scales` must be True or False, found 'no'"),
        ({"training": {"learning_rate": "fast"}}, TypeError, "`learning_rate` must be a number, found 'fast'"),
        ({"training": {"refit": "no"}}, TypeError, "`refit` must be True or False, found 'no'"),
        ({"devices": "two"}, TypeError, "`devices` must be a number of devices.*found 'two'"),
        ({"num_nodes": "two"}, TypeError, "`num_nodes` must be a whole number of at least 1, found 'two'"),
        ({"save_to": 5}, TypeError, "`save_to` must be the path of a folder, found 5"),
        ({"key_added": 5}, TypeError, "`key_added` must be a name such as 'gdml', found 5"),
        ({"validation": "spots"}, ValueError, "`validation` is 'spots'"),
        ({"validation_fraction": 0}, ValueError, "`validation_fraction` must lie between 0 and 1"),
        ({"validation_fraction": 1.0}, ValueError, "`validation_fraction` must lie between 0 and 1"),
        ({"device": "gpu"}, ValueError, "`device` is 'gpu'"),
        ({"device": "cuda:99"}, ValueError, "`device` is 'cuda:99', but torch sees"),
        ({"precision": "fp16"}, ValueError, "`precision` is 'fp16'"),
    ],
)
def test_arguments_are_checked_first(synthetic_adata, monkeypatch, arguments, error, match):
    for step in ("tile_spots", "embed_spots", "normalize_spots"):
        monkeypatch.setattr(f"gdml.tl._features.{step}", lambda *a, **k: pytest.fail("a step was run"))
    before = written(synthetic_adata)
    with pytest.raises(error, match=match):
        gdml.tl.fit(synthetic_adata, **arguments)
    assert written(synthetic_adata) == before


def test_a_folder_that_is_no_model_is_refused_first(synthetic_adata, tmp_path):
    with pytest.raises(FileExistsError, match="`save_to` .* exists and is no saved model; choose another folder"):
        gdml.tl.fit(synthetic_adata, save_to=tmp_path)
    assert "gdml" not in synthetic_adata.uns


def refused(adata, error, match, **arguments):
    before = written(adata)
    with pytest.raises(error, match=match):
        gdml.tl.fit(adata, **arguments)
    assert written(adata) == before


def test_what_later_steps_refuse_undoes_the_earlier(synthetic_adata):
    """Tiles are laid before the panel is found too large, and are gone again."""
    refused(synthetic_adata, ValueError, "`n_genes` is 250, but only")


def test_one_group(ready):
    ready.obs["patient"] = "P1"
    refused(
        ready,
        ValueError,
        '`validation="group"` needs two groups or more; .patient. gives one .*"block"',
        group_key="patient",
        validation="group",
    )
    one = ready[ready.obs["library_id"] == "S1"].copy()
    refused(one, ValueError, "needs two groups or more", validation="group")


def test_a_slide_of_two_groups(ready):
    ready.obs["patient"] = np.where(np.arange(ready.n_obs) % 2, "A", "B")
    refused(ready, ValueError, r"Slide 'S1' has spots of several groups in obs\['patient'\]", group_key="patient")


def test_a_spot_without_group(ready):
    ready.obs["patient"] = ready.obs["patient"].astype(object)
    ready.obs.iloc[3, ready.obs.columns.get_loc("patient")] = None
    refused(ready, ValueError, "is missing for 1 spots of slide 'S1'", group_key="patient")


def test_fewer_spots_than_groups_of_spots(ready, small):
    few = ready[ready.obs["library_id"] == "S1"][:30].copy()
    small["config"]["n_groups"] = 40
    refused(few, ValueError, r"`n_groups` is 40, but a batch can have \d+ spots only .*pass config=", **small)


def test_a_small_slide_among_many(ready, small):
    # alone in a batch, the slide of 5 spots could not be grouped; together with another it can
    small["config"]["n_groups"] = 8
    keep = (ready.obs["library_id"] != "S1") | (np.arange(ready.n_obs) < 5)
    few = ready[keep.to_numpy()].copy()
    small["training"] |= {"slides_per_batch": 1, "balance": False}  # balanced, its spots are drawn twice
    refused(few, ValueError, r"`n_groups` is 8, but a batch can have 5 spots only", validation=None, **small)
    small["training"]["slides_per_batch"] = 2
    gdml.tl.fit(few, validation=None, **small)


def test_a_block_split_without_room(ready):
    few = ready[ready.obs["library_id"] == "S1"][:9].copy()
    refused(
        few,
        ValueError,
        "to learn from and .* to validate on: use more spots, another `validation_fraction`",
        model="ridge",
    )


def test_a_damaged_normalisation(ready):
    ready.obsm["gdml_measured"].iloc[3, 2] = np.nan
    refused(ready, ValueError, r"has NaN or infinite values in 1 genes; call gdml.pp.normalize\(adata\) again")


def test_a_store_that_is_gone(ready, small, tmp_path):
    features = copy.deepcopy(ready.uns["gdml"]["features"])
    features["stores"]["own"] = {name: str(tmp_path / "gone") for name in features["stores"]["own"]}
    ready.uns["gdml"] = {**ready.uns["gdml"], "features": features}
    refused(ready, FileNotFoundError, r"call gdml.pp.embed\(adata, encoder='stain'\) again", **small)


def test_heads_that_do_not_divide_the_width(ready, small):
    small["config"]["slide_heads"] = 3
    refused(ready, ValueError, "heads` must divide .*3 heads for width 16", **small)


def test_spots_that_share_a_grid_position(ready, small):
    ready.obs.iloc[1, ready.obs.columns.get_indexer(["array_row", "array_col"])] = ready.obs.iloc[
        0, ready.obs.columns.get_indexer(["array_row", "array_col"])
    ]
    refused(ready, ValueError, "Slide 'S1': 2 spots share a grid position", **small)


def test_a_preset_that_is_no_recipe_of_a_data_set_leaves_the_scale_alone(synthetic_adata):
    gdml.pp.select_genes(synthetic_adata, 20)
    gdml.tl.fit(synthetic_adata, "ridge", preset="hest")
    assert synthetic_adata.uns["gdml"]["normalization"]["order"] == "all"
    assert not synthetic_adata.uns["gdml"]["normalization"]["smooth"]
