"""What a cross-validation says that predictions of each gene are worth."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from scipy.stats import t

import gdml
from gdml.metrics import attainable_pcc

COLUMNS = ["warrant", "pcc_expected", "pcc_low", "pcc_high", "pcc_attainable", "pcc_reached", "n_folds"]


@pytest.fixture
def uneven(ready):
    """Four slides, of which one alone has counts of the first gene: it is in the panel of the other three folds."""
    gene = ready.var_names[ready.var["gdml_panel"]][0]
    counts = ready.X.tolil()
    counts[(ready.obs["library_id"] != "S1").to_numpy(), ready.var_names.get_loc(gene)] = 0
    ready.X = counts.tocsr()
    return ready, gene


def by_loop(adata, key, gene):
    """PCC of a gene averaged over slides, and its jackknife interval over them."""
    found = []
    for _, rows in adata.obs.groupby("library_id", observed=True).indices.items():
        predicted, measured = (adata.obsm[name][gene].to_numpy()[rows] for name in (key, f"{key}_measured"))
        if np.isfinite(predicted).all():
            found.append(np.corrcoef(predicted, measured)[0, 1])
    n = len(found)
    without = np.array([np.mean(found[:i] + found[i + 1 :]) for i in range(n)])
    reach = t.ppf(0.95, n - 1) * np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    return n, np.mean(found), np.mean(found) - reach


def test_a_gene_is_judged_by_the_slides_that_scored_it(uneven, tmp_path):
    adata, rare = uneven
    found = gdml.tl.cross_validate(adata, "ridge", normalize={"n_genes": 20}, save_to=tmp_path)
    table = found.warrants()
    assert list(table.columns) == COLUMNS
    assert set(table.index) == set(found.scores["gene"])
    assert (table["n_folds"] == found.scores.groupby("gene")["fold"].nunique()[table.index]).all()
    fewer = table.index[table["n_folds"].between(2, 3)]
    assert len(fewer) and (table["n_folds"] == 4).any()
    for gene in [*fewer, *table.index[table["n_folds"] == 4][:3]]:
        if gene == rare:
            continue  # constant where it was scored
        n, expected, low = by_loop(adata, "gdml_ridge", gene)
        assert n == table.n_folds[gene]
        assert table.pcc_expected[gene] == pytest.approx(expected, abs=1e-6)
        assert table.pcc_low[gene] == pytest.approx(max(low, -1), abs=1e-5)
    once = table[table["n_folds"] == 1]
    assert (once["pcc_low"] == -1).all() and (once["warrant"] == "not shown").all()


def test_it_is_written_where_predictions_have_it_and_drawn(ready, tmp_path):
    found = gdml.tl.cross_validate(ready, ["ridge", "kernel"], group_key="patient", save_to=tmp_path)
    for model in ("ridge", "kernel"):
        record = ready.uns[f"gdml_{model}"]["predict"]
        pd.testing.assert_frame_equal(record["genes"], found.warrants(model))
        assert (record["unseen"], record["n_unseen"]) == ("unseen patient", 2)
        genes = list(record["panel"])
        assert ready.var.loc[genes, f"gdml_{model}_warrant"].tolist() == record["genes"].loc[genes, "warrant"].tolist()
        inside = ready.var_names.isin(genes)
        assert (ready.var[f"gdml_{model}_warrant"] == "")[~inside].all()
        assert ready.var[f"gdml_{model}_attainable"].notna().tolist() == inside.tolist()
    assert "gdml_warrant" not in ready.var
    ax = gdml.pl.warrant(ready, key="gdml_kernel", show=False)
    assert "unseen patient" in ax.get_ylabel()
    plt.close("all")
    ready.write_h5ad(tmp_path / "x.h5ad")


def test_attainable_is_that_of_the_scored_slides(ready, tmp_path):
    slides = list(ready.obs["library_id"].cat.categories)
    found = gdml.tl.cross_validate(ready, "ridge", folds={"x": (slides[:3], slides[3:])}, save_to=tmp_path)
    table = found.warrants("ridge")
    counts = ready[ready.obs["library_id"] == slides[3]].X
    columns = ready.var_names.get_indexer(table.index)
    np.testing.assert_allclose(table["pcc_attainable"], attainable_pcc(counts, columns))
    assert (table["warrant"] == "not shown").all()  # by one slide


def test_parts_of_slides_are_named_and_cut_into_ten(ready, tmp_path):
    gdml.pp.tile(ready, n_side=1)
    gdml.pp.embed(ready, "stain")
    found = gdml.tl.cross_validate(ready, "ridge", folds="blocks", n_folds=2, save_to=tmp_path)
    record = ready.uns["gdml_ridge"]["predict"]
    assert (record["unseen"], record["n_unseen"]) == ("unseen part of a known slide", 4)
    assert (found.warrants()["pcc_low"] > -1).any()


def test_a_slide_of_a_known_patient_is_named_so(ready, tmp_path):
    slides = list(ready.obs["library_id"].cat.categories)
    splits = {name: ([other for other in slides if other != name], [name]) for name in slides}
    gdml.tl.cross_validate(
        ready, "ridge", group_key="patient", folds=splits, allow_shared_groups=True, save_to=tmp_path
    )
    record = ready.uns["gdml_ridge"]["predict"]
    assert (record["unseen"], record["n_unseen"]) == ("unseen slide of a known patient", 4)


def test_of_several_seeds_the_written_predictions_count(ready, small, tmp_path):
    models = {"net": {"model": "gene-dml", **small, "max_epochs": 1}}
    options = {"group_key": "patient", "save_to": tmp_path}
    first = gdml.tl.cross_validate(ready, models, **options)
    both = gdml.tl.cross_validate(ready, models, seeds=2, **options)
    pd.testing.assert_frame_equal(first.warrants(), both.warrants())


def test_of_several_repeats_the_first_counts(ready, tmp_path):
    genes = list(ready.var_names[ready.var["gdml_panel"]][:10])
    options = {"folds": 2, "normalize": {"genes": genes}, "save_to": tmp_path}
    once = gdml.tl.cross_validate(ready, "ridge", **options)
    again = gdml.tl.cross_validate(ready, "ridge", n_repeats=2, **options)
    assert again.scores["repeat"].nunique() == 2
    pd.testing.assert_frame_equal(once.warrants(), again.warrants())


def test_the_line_of_one_model_counts_its_genes(ready, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr("gdml.tl._cross_validate.tell", told.append)
    found = gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path)
    carried = (found.warrants()["warrant"] == "carried by the image").sum()
    assert f"unseen patient; of {len(found.warrants())} genes {carried} carried by the image" in told[0]


def test_an_epoch_chosen_on_the_test_fold_warrants_nothing(ready, tmp_path):
    gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path)
    assert "gdml_ridge_warrant" in ready.var
    found = gdml.tl.cross_validate(ready, "ridge", group_key="patient", protocol="paper", save_to=tmp_path)
    assert "gdml_ridge_warrant" not in ready.var
    assert "genes" not in ready.uns["gdml_ridge"]["predict"]
    with pytest.raises(ValueError, match="chosen on the test slides.*protocol='nested'"):
        found.warrants()


def test_which_model_must_be_clear(ready, tmp_path):
    found = gdml.tl.cross_validate(ready, {"a": "ridge", "b": "kernel"}, group_key="patient", save_to=tmp_path)
    with pytest.raises(ValueError, match=r"one of 'a', 'b': found.warrants\('a'\)"):
        found.warrants()
    with pytest.raises(ValueError, match="`model` is 'c'"):
        found.warrants("c")


def test_warrants_are_saved_and_an_earlier_comparison_has_none(ready, tmp_path):
    found = gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path)
    found.save(tmp_path / "found")
    again = gdml.tl.load_comparison(tmp_path / "found")
    pd.testing.assert_frame_equal(again.warrants("ridge"), found.warrants("ridge"))
    (tmp_path / "found" / "genes.parquet").unlink()
    older = gdml.tl.load_comparison(tmp_path / "found")
    pd.testing.assert_frame_equal(older.summary(), found.summary())
    with pytest.raises(ValueError, match="an earlier gdml"):
        older.warrants("ridge")


def test_variants_of_an_ablation_have_warrants(ready, tmp_path):
    found = gdml.tl.ablate(ready, "ridge", {"penalty": ["one"]}, group_key="patient", save_to=tmp_path)
    assert found.warrants("penalty=one")["pcc_expected"].notna().any()
