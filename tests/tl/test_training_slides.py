"""Training slides are recognised by what they are, not by their names; keys change with everything that matters."""

import json
import shutil
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest

import gdml
from gdml.training import TrainedModel


@pytest.fixture(scope="session")
def _split(_ready):
    """A ridge of slides S1 to S3, and all slides."""
    train = _ready[_ready.obs["library_id"] != "S4"].copy()
    return _ready, gdml.tl.fit(train, "ridge")


@pytest.fixture
def split(_split):
    return _split[0].copy(), _split[1]


def of(adata, *slides):
    return adata[adata.obs["library_id"].isin(slides)].copy()


def test_predicting_and_scoring_training_slides_warns(split):
    adata, model = split
    part = of(adata, "S3", "S4")
    with pytest.warns(UserWarning, match=r"trained on 1 slide of `adata` \(S3\).*cross_validate"):
        gdml.tl.predict(part, model)
    assert list(part.uns["gdml"]["predict"]["in_training"]) == ["S3"]
    with pytest.warns(UserWarning, match=r"trained on 1 slide that is scored \(S3\)"):
        table = gdml.tl.evaluate(part)
    assert table["in_training"].to_dict() == {"S3": True, "S4": False, "all": True}


def test_a_new_slide_is_predicted_and_scored_silently(split):
    adata, model = split
    new = of(adata, "S4")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        gdml.tl.predict(new, model)
        table = gdml.tl.evaluate(new)
    assert not table["in_training"].any() and table["in_training"].notna().all()


def test_a_renamed_subset_is_the_same_slide(split):
    adata, model = split
    part = of(adata, "S2")[5:25].copy()
    part.obs["library_id"] = "biopsy 7"
    part.uns["spatial"] = {"biopsy 7": part.uns["spatial"]["S2"]}
    del part.uns["gdml"]
    part.X = part.X + 1.0 * (part.X > 0)  # other counts too
    with pytest.warns(UserWarning, match=r"trained on 1 slide of `adata` \(biopsy 7\)"):
        gdml.tl.predict(part, model)


def test_another_slide_of_the_same_name_is_new(split):
    adata, model = split
    part = of(adata, "S4")
    part.obs["library_id"] = "S1"
    part.uns["spatial"] = {"S1": part.uns["spatial"]["S4"]}
    del part.uns["gdml"]
    gdml.tl.predict(part, model)
    assert len(part.uns["gdml"]["predict"]["in_training"]) == 0


def test_an_image_in_memory_is_recognised(ready):
    one = of(ready, "S1")
    pixels = gdml.slides.open_slide(one.uns["spatial"]["S1"]["metadata"]["source_image_path"])
    image = pixels.read_region(0, 0, *pixels.size, pixels.size)
    gdml.pp.tile(one, image=image, um_per_px=float(one.uns["gdml"]["tiles"]["slides"]["S1"]["um_per_px"]))
    gdml.pp.embed(one, "stain", image=image)
    model = gdml.tl.fit(one, "ridge", validation=None)
    with pytest.warns(UserWarning, match="trained on 1 slide"):
        gdml.tl.predict(one, model)


def test_it_is_known_after_a_save_too(split, tmp_path):
    adata, model = split
    model.save(tmp_path / "model")
    again = gdml.load(tmp_path / "model")
    assert again.slides == model.slides and again.provenance == model.provenance != ""
    assert set(again.slides) == {"S1", "S2", "S3"} and all(one["image"] for one in again.slides.values())
    with pytest.warns(UserWarning, match="trained on 3 slides"):
        gdml.tl.predict(adata, tmp_path / "model")
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    with pytest.warns(UserWarning, match="trained on 3 slides"):
        assert list(gdml.tl.evaluate(back)["in_training"]) == [True, True, True, False, True]
    back.write_h5ad(tmp_path / "b.h5ad")


def test_a_file_of_version_1_is_read_and_its_slides_are_unknown(split, tmp_path):
    adata, model = split
    folder = shutil.copytree(model.path, tmp_path / "old")
    (folder / "gdml.json").unlink()
    record = json.loads((folder / "model.json").read_text())
    assert record.pop("slides") and record.pop("provenance")
    (folder / "model.json").write_text(json.dumps(record | {"format_version": 1}))
    old = gdml.load(folder)
    assert old.slides is None and old.provenance == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        gdml.tl.predict(adata, old)
        table = gdml.tl.evaluate(adata)
    assert "in_training" not in adata.uns["gdml"]["predict"] and table["in_training"].isna().all()
    old.save(folder, overwrite=True)  # a model, though without marker
    assert json.loads((folder / "model.json").read_text())["format_version"] == 3


def test_the_key_of_a_model_follows_what_it_depends_on(ready):
    train = of(ready, "S1", "S2", "S3")
    keys = [gdml.tl.fit(train, "ridge", validation="block").provenance for _ in range(2)]
    keys.append(gdml.tl.fit(train, "ridge", validation="block", config={"n_alphas": 5}).provenance)
    keys.append(gdml.tl.fit(of(ready, "S1", "S2"), "ridge", validation="block").provenance)
    # the same values at other spots: misaligned counts
    shuffled = train.copy()
    order = np.random.default_rng(0).permutation(train.n_obs)
    shuffled.obsm["gdml_measured"][:] = train.obsm["gdml_measured"].to_numpy()[order]
    keys.append(gdml.tl.fit(shuffled, "ridge", validation="block").provenance)
    assert keys[0] == keys[1] == gdml.tl.fit(train.copy(), "ridge", validation="block").provenance
    assert len(set(keys[1:])) == len(keys) - 1
    assert train.uns["gdml"]["fit"]["provenance"] in keys


def test_the_key_of_predictions_follows_model_and_slides(split):
    adata, model = split
    new = of(adata, "S4")
    key = lambda a, m: gdml.tl.predict(a, m, copy=True).uns["gdml"]["predict"]["provenance"]
    assert key(new, model) == key(new.copy(), model)
    moved = new.copy()
    moved.obsm["spatial"] = moved.obsm["spatial"] + 3
    gdml.pp.tile(moved)
    gdml.pp.embed(moved, "stain")
    other = gdml.tl.fit(of(adata, "S1", "S2"), "ridge")
    keys = {key(new, model), key(new[5:].copy(), model), key(moved, model), key(new, other)}
    assert len(keys) == 4
    relabelled = TrainedModel(**{**vars(model), "provenance": "x"})
    assert key(new, relabelled) not in keys
    assert replace(relabelled, provenance="y").provenance == "y"
