"""What ``fit`` learns of each gene from held-out spots, and what ``predict`` writes of it."""

import json

import pandas as pd
import pytest

import gdml

COLUMNS = ["warrant", "pcc_expected", "pcc_low", "pcc_high", "pcc_attainable", "pcc_reached"]


def test_predict_writes_the_warrant_of_each_gene(fitted, ready):
    _, model = fitted
    # a gene of the panel that was not measured, and one more that is not in it
    new = ready[:, [name for name in ready.var_names if name != model.panel[0]]].copy()
    gdml.tl.predict(new, model)
    record = new.uns["gdml"]["predict"]
    genes = record["genes"]
    assert list(genes.index) == list(model.panel)
    assert list(genes.columns) == COLUMNS
    assert record["unseen"] == "unseen slide"
    assert record["n_unseen"] == 4
    pd.testing.assert_frame_equal(genes, model.warrant.genes)
    inside = new.var_names.isin(model.panel)
    measured = new.var_names[inside]
    for column, part in [
        ("gdml_warrant", "warrant"),
        ("gdml_pcc_expected", "pcc_expected"),
        ("gdml_attainable", "pcc_attainable"),
    ]:
        assert new.var[column][inside].tolist() == genes[part][measured].tolist()
    assert (new.var["gdml_warrant"][~inside] == "").all()
    assert new.var["gdml_pcc_expected"][~inside].isna().all()


def test_key_added_names_the_columns(fitted, ready):
    _, model = fitted
    gdml.tl.predict(ready, model, key_added="other")
    assert {"other_warrant", "other_pcc_expected", "other_attainable"} <= set(ready.var)
    assert "gdml_warrant" not in ready.var


def test_a_slide_without_genes_has_the_table(fitted, ready):
    _, model = fitted
    image_only = ready[:, []].copy()
    gdml.tl.predict(image_only, model)
    assert list(image_only.uns["gdml"]["predict"]["genes"].index) == list(model.panel)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("index", ["object", "category"])
def test_it_is_saved_and_written(fitted, ready, tmp_path, kind, index):
    import anndata as ad

    _, model = fitted
    model.save(tmp_path / "model")
    again = gdml.load(tmp_path / "model")
    pd.testing.assert_frame_equal(again.warrant.genes, model.warrant.genes)
    ready.var.index = ready.var.index.astype(index)
    gdml.tl.predict(ready, again)
    getattr(ready, f"write_{kind}")(tmp_path / f"predicted.{kind}")
    read = getattr(ad, f"read_{kind}")(tmp_path / f"predicted.{kind}")
    assert read.var["gdml_warrant"].astype(str).tolist() == ready.var["gdml_warrant"].tolist()
    pd.testing.assert_frame_equal(
        read.uns["gdml"]["predict"]["genes"], model.warrant.genes, check_categorical=False, check_dtype=False
    )


@pytest.mark.parametrize("lost", ["the whole", "a column", "a gene"])
def test_a_model_of_an_earlier_version_has_none_and_a_damaged_one_is_refused(fitted, ready, tmp_path, lost):
    _, model = fitted
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    record = json.loads(path.read_text())
    if lost == "the whole":
        del record["warrant"]
    elif lost == "a column":
        del record["warrant"]["genes"]["pcc_low"]
    else:
        record["warrant"]["genes"]["gene"][0] = "another"
    path.write_text(json.dumps(record))
    if lost != "the whole":
        with pytest.raises(ValueError, match="the warrant in model.json is"):
            gdml.load(tmp_path / "model")
        return
    older = gdml.load(tmp_path / "model")
    assert older.warrant is None
    gdml.tl.predict(ready, older)
    assert "genes" not in ready.uns["gdml"]["predict"]
    assert "gdml_warrant" not in ready.var


def test_columns_of_an_earlier_prediction_do_not_stay(fitted, ready):
    _, model = fitted
    gdml.tl.predict(ready, model)
    assert "gdml_warrant" in ready.var
    model = gdml.tl.fit(ready, "ridge", validation=None)
    assert model.warrant is None
    gdml.tl.predict(ready, model)
    assert "gdml_warrant" not in ready.var
    assert "gdml_pcc_expected" not in ready.var


def test_of_values_that_are_no_counts_nothing_is_known_to_be_attainable(ready):
    model = gdml.tl.fit(ready, "ridge")
    assert model.warrant.genes["pcc_attainable"].between(0, 1).all()
    ready.X = ready.X * 0.5
    with pytest.warns(UserWarning, match="raw counts are not at hand"):
        model = gdml.tl.fit(ready, "ridge")
    assert model.warrant.genes["pcc_attainable"].isna().all()
    assert model.warrant.genes["pcc_reached"].isna().all()


def test_a_network_rests_on_the_split_that_chose_its_epoch(ready, small):
    model = gdml.tl.fit(ready, "stnet", training={"max_epochs": 2}, group_key="patient")
    assert model.warrant.unseen == "unseen patient"
    assert model.warrant.n_units == 1
    # of one patient nothing is certain
    assert (model.warrant.genes["pcc_low"] == -1).all()
    assert set(model.warrant.genes["warrant"]) == {"not shown"}
