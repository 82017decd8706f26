"""Cross-validation within a slide, repeated folds, and what is kept of a comparison."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import gdml
from gdml import _keys
from gdml._marker import marked
from gdml.tl import Comparison, load_comparison

PART = "unseen part of a known slide"
BLOCKS = {"folds": "blocks", "n_folds": 3}


@pytest.fixture(scope="module")
def _one_slide(cache_dir):
    """A single slide of 16 x 16 spots at most, with regions of 3 x 3 tiles."""
    adata = gdml.datasets.synthetic(n_slides=1, n_patients=1, grid=16, n_genes=20, seed=0)
    gdml.pp.tile(adata, n_side=3)
    gdml.pp.embed(adata, "stain")
    gdml.pp.normalize(adata, n_genes=12)
    return adata


@pytest.fixture
def one_slide(_one_slide):
    return _one_slide.copy()


def blocks_of(adata, n=3, smooth=False):
    """Rows to learn from and to score of each block."""
    from gdml.spots.data import spot_data
    from gdml.spots.resolve import Spots
    from gdml.training.blocks import make_blocks

    (slide,) = spot_data(Spots.resolve(adata))[0].slides
    return [fold.cut[slide.name] for fold in make_blocks([slide], n, smooth=smooth)]


def test_one_slide_gets_a_score_that_is_named_for_what_it_is(one_slide, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr("gdml.tl._cross_validate.tell", told.append)
    found = gdml.tl.cross_validate(one_slide, "ridge", **BLOCKS, save_to=tmp_path)
    assert found.held_out == PART and one_slide.uns["gdml_ridge"]["predict"]["held_out"] == PART
    assert f"scored on an {PART}" in told[0] and PART in repr(found)
    assert one_slide.obsm["gdml_ridge"].notna().any(axis=1).all()  # every spot was scored
    assert found.runs["n_test"].sum() == one_slide.n_obs
    assert (found.runs["n_train"] + found.runs["n_test"] < one_slide.n_obs).all()  # margins are in neither
    assert (found.scores.groupby("fold")["pcc"].mean() > 0.1).all()
    table = found.intervals().set_index("metric").loc["pcc_a"]
    assert table.interval_over == "blocks" and table.low <= table["mean"] <= table.high
    assert "nothing about another slide" in repr(found)


def enough_blocks(adata):
    """Give the number of blocks that leave enough to learn from where labels are smoothed, as the error says."""
    try:
        return len(blocks_of(adata, 3, smooth=True))
    except ValueError as error:
        return int(re.search(r"n_folds=(\d+)", str(error))[1])


@pytest.mark.parametrize("smooth", [False, True])
def test_nothing_of_a_held_out_block_is_read(one_slide, small, tmp_path, smooth):
    models = (
        {"ridge": "ridge"} if smooth else {"ridge": "ridge", "net": {"model": "gene-dml", **small, "max_epochs": 1}}
    )
    n = enough_blocks(one_slide) if smooth else 3
    options = {"folds": "blocks", "n_folds": n, "normalize": {"smooth": smooth}}
    gdml.tl.cross_validate(one_slide, models, **options, save_to=tmp_path / "before")
    held = blocks_of(one_slide, n, smooth)[1][1]
    other = one_slide.copy()
    counts = other.X.toarray()
    counts[held] = np.random.default_rng(0).permutation(counts[held].ravel()).reshape(counts[held].shape)
    other.X = counts
    gdml.tl.cross_validate(other, models, **options, save_to=tmp_path / "after")
    for label in models:
        before, after = (adata.obsm[f"gdml_{label}"] for adata in (one_slide, other))
        pd.testing.assert_frame_equal(
            before.iloc[held].dropna(axis=1), after.iloc[held].dropna(axis=1), check_exact=True
        )
        rest = np.setdiff1d(np.arange(len(before)), held)
        both = before.columns.intersection(after.columns)
        assert not np.allclose(before[both].iloc[rest], after[both].iloc[rest], equal_nan=True)  # learnt from there


def test_a_block_is_what_fit_and_predict_give_on_its_spots(one_slide, tmp_path):
    ridge = {"model": "ridge", "frame": "raw"}  # units of a slide are those of its known part
    gdml.tl.cross_validate(one_slide, {"ridge": ridge}, **BLOCKS, save_to=tmp_path)
    for learnt, held in blocks_of(one_slide):
        train, new = one_slide[learnt].copy(), one_slide[held].copy()
        del train.var["gdml_panel"], train.uns["gdml"]["panel"]
        gdml.pp.normalize(train, n_genes=12)
        model = gdml.tl.fit(train, "ridge", frame="raw", save_to=tmp_path / "model", overwrite=True)
        with pytest.warns(UserWarning, match="trained on 1 slide"):  # another part of it
            gdml.tl.predict(new, model)
        ours = one_slide.obsm["gdml_ridge"].loc[new.obs_names, list(model.panel)]
        np.testing.assert_allclose(ours, new.obsm["gdml"], rtol=1e-4, atol=1e-5)


def test_repeats_are_carried_by_the_scores(one_slide, tmp_path):
    found = gdml.tl.cross_validate(one_slide, "ridge", **BLOCKS, n_repeats=2, seeds=[4], save_to=tmp_path)
    assert found.scores.groupby("repeat")["seed"].unique().map(list).to_dict() == {0: [4], 1: [5]}
    assert found.runs["repeat"].tolist() == [0, 0, 0, 1, 1, 1]
    once = gdml.tl.cross_validate(one_slide, "ridge", **BLOCKS, seeds=[4], save_to=tmp_path)
    first = found.scores[found.scores["repeat"] == 0].drop(columns="fold").reset_index(drop=True)
    pd.testing.assert_frame_equal(first, once.scores.drop(columns="fold"))
    # blocks of two repeats overlap: their interval is no narrower for it
    width = lambda result: result.intervals().set_index("metric").loc["pcc_a", ["low", "high"]].diff().iloc[-1]
    assert width(found) > 0.5 * width(once)


def test_groups_are_dealt_evenly_and_repeated(ready, tmp_path):
    with pytest.warns(UserWarning, match="group_key='patient'"):
        found = gdml.tl.cross_validate(ready, "ridge", folds=2, n_repeats=3, save_to=tmp_path)
    assert found.held_out == "unseen slide" and found.runs["repeat"].nunique() == 3
    for _, part in found.runs.groupby("repeat"):
        assert part["n_test"].sum() == ready.n_obs
    named = gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path)
    assert named.held_out == "unseen patient"


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"folds": "block"}, ValueError, "`folds` is 'block': .* 'blocks' for parts of each slide"),
        ({"n_folds": 3}, ValueError, "`n_folds` is 3, the number of blocks of folds='blocks', but `folds` is None"),
        ({"folds": "blocks", "n_folds": 1}, ValueError, "`n_folds` must be a whole number of at least 2"),
        ({"folds": "blocks"}, ValueError, "too small for 5 blocks"),
        ({"folds": 2, "n_repeats": 0}, ValueError, "`n_repeats` must be a whole number of at least 1"),
        ({"folds": 2, "n_repeats": 3, "seeds": 2}, ValueError, "2 `seeds` for 3 repeats"),
        ({"n_repeats": 2}, ValueError, "leave one group out is the same every time"),
        ({"folds": 2, "keep_models": 3}, TypeError, "`keep_models` must be the path of a folder"),
    ],
)
def test_bad_arguments(ready, tmp_path, options, error, match):
    del ready.obs["patient"]
    with pytest.raises(error, match=match):
        gdml.tl.cross_validate(ready, "ridge", **options, save_to=tmp_path / "runs")
    assert "gdml_ridge" not in ready.obsm and not (tmp_path / "runs").exists()


def test_models_of_folds_are_kept_on_request(ready, trained, tmp_path):
    call = lambda **options: gdml.tl.cross_validate(
        ready, {"ridge, α/β": "ridge"}, group_key="patient", save_to=tmp_path / "runs", **options
    )
    assert (call().runs["saved"] == "").all()
    assert len(trained) == 2
    found = call(keep_models=tmp_path / "kept")
    assert len(trained) == 4  # they were finished without their models
    predicted = ready.obsm[_keys.of_model("ridge, α/β", "gdml")].copy()
    for _, run in found.runs.iterrows():
        model = gdml.load(run["saved"])
        assert (tmp_path / "kept").resolve() in Path(run["saved"]).resolve().parents
        assert model.training["fold"]["name"] == run["fold"]
        new = ready[(ready.obs["patient"] == run["fold"]).to_numpy()].copy()
        gdml.tl.predict(new, model)
        np.testing.assert_array_equal(predicted.loc[new.obs_names, list(model.panel)], new.obsm["gdml"])
        assert not set(model.training["slides"]) & set(new.obs["library_id"])
    again = call(keep_models=tmp_path / "kept")
    assert len(trained) == 4
    pd.testing.assert_frame_equal(again.runs.drop(columns="seconds"), found.runs.drop(columns="seconds"))
    assert all(str(gdml.settings.cache_dir) in path for path in call(keep_models=True).runs["saved"])


def test_a_model_that_can_not_be_kept_costs_no_scores(ready, monkeypatch, tmp_path):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    told = []
    monkeypatch.setattr("gdml.training.trained.TrainedModel.save", full)
    monkeypatch.setattr("gdml.training.kept.tell", told.append)
    options = {"group_key": "patient", "save_to": tmp_path / "runs", "keep_models": tmp_path / "kept"}
    found = gdml.tl.cross_validate(ready, "ridge", **options)
    assert (found.runs["status"] == "done").all() and (found.runs["saved"] == "").all() and len(told) == 2


def same(a, b):
    for name in ("scores", "runs", "variants", "genes"):
        pd.testing.assert_frame_equal(getattr(a, name), getattr(b, name), check_exact=True)
    for name in ("protocol", "note", "optimistic", "group_key", "held_out"):
        assert getattr(a, name) == getattr(b, name)
    pd.testing.assert_frame_equal(a.summary(), b.summary(), check_exact=True)


def test_a_comparison_survives_the_disk(ready, tmp_path):
    grid = {"n_components": [4], "few": {"2": {"n_components": 2}}}
    found = gdml.tl.ablate(ready, "ridge", grid, group_key="patient", save_to=tmp_path / "runs")
    found.scores.loc[3, "pcc"] = np.nan
    found.runs.loc[0, "error"] = 'Trace "a",\r\n b\n'
    found.variants["mixed"] = [None, (1, "two"), True]
    found.save(tmp_path / "a" / "b")
    assert marked(tmp_path / "a" / "b")["gdml"] == "comparison"
    back = load_comparison(tmp_path / "a" / "b")
    same(found, back)
    back.save(tmp_path / "again")
    same(back, load_comparison(tmp_path / "again"))


@pytest.fixture
def compared():
    scores = pd.DataFrame({"model": ["a"], "fold": ["1"], "repeat": [0], "seed": [0], "slide": ["NA"], "group": ["01"],
                           "gene": ["g"], "n_spots": [9], "pcc": [0.1 + 0.2], "spearman": [np.nan], "mse": [1 / 3],
                           "mae": [1e-300], "high": [True]})  # fmt: skip
    runs = pd.DataFrame({"model": ["a"], "fold": ["1"], "seed": [0], "status": ["done"], "seconds": [0.1]})
    return Comparison(scores, runs, "nested", "", False, held_out=PART)


def test_a_failed_exchange_puts_the_old_comparison_back(compared, tmp_path, monkeypatch):
    target = tmp_path / "x"
    compared.save(target)
    calls, real = [], os.replace

    def second_fails(a, b):
        calls.append((a, b))
        if len(calls) == 2:
            raise OSError("no space left")
        return real(a, b)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr(os, "replace", second_fails)
        compared.save(target, overwrite=True)
    same(compared, load_comparison(target))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_folder_of_a_comparison_follows_the_habits_of_the_house(compared, tmp_path):
    target = tmp_path / "x"
    compared.save(target)
    same(compared, load_comparison(str(target)))
    with pytest.raises(FileExistsError, match="holds a saved comparison; .* overwrite=True"):
        compared.save(target)
    compared.note = "new"
    compared.save(target, overwrite=True)
    assert load_comparison(target).note == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]  # nothing is left beside it
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no saved comparison"):
        compared.save(own, overwrite=True)
    assert (own / "thesis.txt").read_text() == "mine"
    with pytest.raises(TypeError, match="`path` must be the path"):
        compared.save(3)


def test_what_is_no_comparison_is_refused(compared, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; found.save"):
        load_comparison(tmp_path / "none")
    target = tmp_path / "x"
    compared.save(target)
    record = json.loads((target / "comparison.json").read_text())
    for change, match in (
        ({"format": "other"}, "does not say so"),
        ({"format_version": 99}, "newer gdml"),
        ({"protocol": 3}, "lacks protocol"),
    ):
        (target / "comparison.json").write_text(json.dumps(record | change))
        with pytest.raises(ValueError, match=match):
            load_comparison(target)
    (target / "comparison.json").write_text(json.dumps(record)[:50])
    with pytest.raises(ValueError, match="truncated or not JSON"):
        load_comparison(target)
    (target / "comparison.json").write_text(json.dumps(record))
    raw = (target / "scores.parquet").read_bytes()
    (target / "scores.parquet").write_bytes(raw[:-40])
    with pytest.raises(ValueError, match="damaged table"):
        load_comparison(target)
    (target / "scores.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="scores.parquet missing"):
        load_comparison(target)
