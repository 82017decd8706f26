"""What fit keeps, what predict writes and says of slides that a model does not know, and leaks that it warns of."""

import io
import json
import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from PIL import Image

import gdml
from gdml.tl._unfamiliar import say_of_many

UNLIKE = "unlike anything that the model has learnt from"


def inverted_image(adata):
    return 255 - np.asarray(Image.open(adata.uns["spatial"]["S1"]["metadata"]["source_image_path"]))


@pytest.fixture
def inverted(fitted):
    """The spots of one slide on its image with inverted colours, and the model."""
    adata, model = fitted
    slide = adata[adata.obs["library_id"] == "S1"].copy()
    image = inverted_image(slide)
    del slide.uns["gdml"]
    gdml.pp.tile(slide, image={"S1": image})
    gdml.pp.embed(slide, "stain", image={"S1": image})
    return slide, model


def said(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(one.message) for one in caught]


def test_scores_are_written_and_survive_a_file(fitted, tmp_path):
    adata, model = fitted
    assert not any(UNLIKE in line for line in said(lambda: gdml.tl.predict(adata, model)))
    scores, table = adata.obs["gdml_ood"], adata.uns["gdml"]["predict"]["ood"]
    assert scores.dtype == np.float32 and scores.between(0, 1).all()
    assert list(table.index) == ["S1", "S2", "S3", "S4"]
    assert (table["verdict"] == "like the training slides").all() and (table["shift"] < 1e-3).all()
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad").uns["gdml"]["predict"]["ood"]
    np.testing.assert_array_equal(again["shift"], table["shift"])


def test_an_unlike_slide_is_named_with_its_features(inverted):
    slide, model = inverted
    (line,) = [line for line in said(lambda: gdml.tl.predict(slide, model)) if UNLIKE in line]
    table = slide.uns["gdml"]["predict"]["ood"]
    assert (
        table.loc["S1", "verdict"] == "unlike the training slides"
        and table.loc["S1", "shift"] > table.loc["S1", "limit"]
    )
    first = table.loc["S1", "features"].split()[0]
    assert first in list(slide.uns["gdml"]["features"]["names"])
    assert "'S1'" in line and first in line and f"{table.loc['S1', 'shift']:.1f}" in line
    assert (slide.obs["gdml_ood"] > 0.95).mean() > 0.5


@pytest.mark.parametrize(("share", "is_said"), [(0.0, False), (0.05, True)])
def test_many_unusual_spots_on_a_familiar_slide_are_said(fitted, monkeypatch, share, is_said):
    adata, model = fitted
    slide = adata[adata.obs["library_id"] == "S1"].copy()
    image = np.asarray(Image.open(slide.uns["spatial"]["S1"]["metadata"]["source_image_path"])).copy()
    top = np.quantile(slide.obsm["spatial"][:, 1], share) if share else 0
    image[: int(top)] = (0.2 * image[: int(top)] + 0.8 * np.array([30, 50, 160])).astype(np.uint8)  # blue pen
    del slide.uns["gdml"]
    gdml.pp.tile(slide, image={"S1": image})
    gdml.pp.embed(slide, "stain", image={"S1": image})
    log = io.StringIO()
    monkeypatch.setattr(type(sc.settings), "logfile", property(lambda self: log), raising=False)
    assert not any(UNLIKE in line for line in said(lambda: gdml.tl.predict(slide, model)))
    unusual = slide.uns["gdml"]["predict"]["ood"].loc["S1", "unusual_spots"]
    assert unusual == pytest.approx(share, abs=0.08)
    assert (f"{unusual:.0%} of 'S1'" in log.getvalue()) == is_said


def test_scores_follow_the_order_of_the_spots(fitted):
    adata, model = fitted
    order = np.random.default_rng(0).permutation(adata.n_obs)
    mixed = adata[order].copy()
    gdml.tl.predict(adata, model)
    gdml.tl.predict(mixed, model)
    np.testing.assert_allclose(mixed.obs["gdml_ood"], adata.obs["gdml_ood"].iloc[order], atol=0.002)


def test_key_added(fitted):
    adata, model = fitted
    gdml.tl.predict(adata, model, key_added="gdml_b")
    assert "gdml_b_ood" in adata.obs and "ood" in adata.uns["gdml_b"]["predict"] and "gdml_ood" not in adata.obs


def test_images_are_judged_too(fitted):
    adata, model = fitted
    path = adata.uns["spatial"]["S1"]["metadata"]["source_image_path"]
    slide = gdml.tl.predict(path, model, um_per_px=1.0)
    assert slide.obs["gdml_ood"].between(0, 1).all() and len(slide.uns["gdml"]["predict"]["ood"]) == 1


def test_saved_and_read_again(fitted, tmp_path):
    adata, model = fitted
    model.save(tmp_path / "model")
    again = gdml.load(tmp_path / "model")
    a, b = (gdml.tl.predict(adata, one, copy=True).obs["gdml_ood"] for one in (model, again))
    np.testing.assert_array_equal(a, b)
    (tmp_path / "model" / "familiarity.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"familiarity.safetensors.*checksum"):
        gdml.load(tmp_path / "model")
    (tmp_path / "model" / "familiarity.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="familiarity.safetensors missing"):
        gdml.load(tmp_path / "model")


def test_models_without_it_predict_and_say_so(fitted, tmp_path, monkeypatch):
    adata, model = fitted
    gdml.tl.predict(adata, model)
    replace(model, familiarity=None).save(tmp_path / "old")
    assert "familiarity" not in json.loads((tmp_path / "old" / "model.json").read_text())
    log = io.StringIO()
    monkeypatch.setattr(type(sc.settings), "logfile", property(lambda self: log), raising=False)
    gdml.tl.predict(adata, gdml.load(tmp_path / "old"))
    assert log.getvalue().count("cannot tell unusual slides") == 1
    # scores of the model before do not stay
    assert "gdml_ood" not in adata.obs and "ood" not in adata.uns["gdml"]["predict"]


def test_nothing_is_written_where_prediction_fails(fitted, monkeypatch):
    adata, model = fitted
    monkeypatch.setattr(type(model.familiarity), "score", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        gdml.tl.predict(adata, model)
    assert "gdml_ood" not in adata.obs and "gdml" not in adata.obsm and "predict" not in adata.uns["gdml"]


def test_a_corpus_warns_once_of_unlike_slides(fitted, tmp_path):
    adata, model = fitted
    Image.fromarray(inverted_image(adata)).save(tmp_path / "odd.png")
    slides = pd.DataFrame({"path": [str(tmp_path / "odd.png")], "um_per_px": [1.0]})
    call = lambda: gdml.tl.predict_slides(slides, model, out=tmp_path / "out", devices="cpu", tissue=False)
    assert sum(UNLIKE in line and "'odd'" in line for line in said(call)) == 1


def test_the_same_image_in_two_groups(ready):
    """Spots of one slide under two names."""
    adata = ready
    name = adata.obs["library_id"].astype(str).to_numpy()
    at = np.flatnonzero(name == "S1")[::2]
    name[at] = "S1b"
    twin = ad.AnnData(adata.X, obs=adata.obs.assign(library_id=name, patient=[*name]), var=adata.var)
    twin.obsm["spatial"] = adata.obsm["spatial"]
    twin.uns["spatial"] = {**adata.uns["spatial"], "S1b": adata.uns["spatial"]["S1"]}
    gdml.pp.tile(twin, n_side=1)
    gdml.pp.embed(twin, "stain")
    for key in (None, "patient"):
        heard = said(lambda key=key: gdml.tl.cross_validate(twin, "ridge", group_key=key, normalize={"n_genes": 10}))
        (line,) = [one for one in heard if "show the same image" in one]
        assert "'S1'" in line and "'S1b'" in line and 'group_key="block"' in line
    # the call that mends it
    twin.obs["block"] = twin.obs["patient"].astype(str).replace({"S1b": "S1"})
    heard = said(lambda: gdml.tl.cross_validate(twin, "ridge", group_key="block", normalize={"n_genes": 10}))
    assert not any("show the same image" in one for one in heard)
    assert any("show the same image" in one for one in said(lambda: gdml.tl.fit(twin, "ridge")))


def test_independent_slides_are_not_warned_of(ready):
    heard = said(lambda: gdml.tl.cross_validate(ready, "ridge", group_key="patient", normalize={"n_genes": 10}))
    assert not any(word in line for line in heard for word in ("same image", "same counts", "halves", "names suggest"))


@pytest.mark.parametrize(
    ("verdicts", "unusual", "said"),
    [
        (
            ["like", "unlike"],
            [0.1, 0.9],
            "; 1 with many unusual spots (pen, folds, another tissue?); 1 unlike the training slides",
        ),
        (["like", "like"], [0.099, 0.0], "; 0 unlike the training slides"),
        (["", "unlike"], [float("nan"), 1.0], "; 1 unlike the training slides"),
        (["", ""], [float("nan")] * 2, ""),
    ],
)
def test_the_line_of_a_corpus_counts_slides(verdicts, unusual, said):
    named = [f"{verdict} the training slides" if verdict else "" for verdict in verdicts]
    assert say_of_many(pd.DataFrame({"verdict": named, "unusual_spots": unusual})) == said
