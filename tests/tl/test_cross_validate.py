import os
import subprocess
import sys
import textwrap
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest

import gdml
from gdml.spots.resolve import Spots
from gdml.training import compare

N_GENES = 30  # of the panel that `ready` was normalised with


def without_uns(adata):
    return sorted(adata.obsm), sorted(adata.layers), sorted(adata.uns), list(adata.var.columns)


@pytest.mark.parametrize("model", ["ridge", "gene-dml"])
def test_a_fold_is_what_fit_predict_and_evaluate_give(ready, small, tmp_path, model):
    options = {} if model == "ridge" else small
    found = gdml.tl.cross_validate(
        ready, {"m": {"model": model, **options}}, group_key="patient", seeds=[3], save_to=tmp_path
    )
    patients = ready.obs["patient"].cat.categories
    for patient in patients:
        test = (ready.obs["patient"] == patient).to_numpy()
        train, new = ready[~test].copy(), ready[test].copy()
        del train.var["gdml_panel"], train.uns["gdml"]["panel"]
        gdml.pp.normalize(train, n_genes=N_GENES)
        fitted = gdml.tl.fit(train, model, groups="patient", seed=3, **options)
        gdml.tl.predict(new, fitted, clip=False)
        one_by_one = gdml.tl.evaluate(new)
        ours = ready.obsm["gdml_m"].loc[new.obs_names, list(fitted.panel)]
        np.testing.assert_array_equal(ours, new.obsm["gdml"])
        np.testing.assert_array_equal(
            ready.obsm["gdml_m_measured"].loc[new.obs_names, list(fitted.panel)], new.obsm["gdml_evaluated"]
        )
        slides = found.slides().set_index(["fold", "slide"]).loc[patient]
        for column in ("pcc_a", "pcc_h", "mse", "mae"):
            np.testing.assert_allclose(slides[column], one_by_one.loc[slides.index, column], rtol=1e-6)
        fold = found.scores[found.scores.fold == patient]
        assert set(fold.gene[fold.high]) == set(fitted.high_genes)


def test_the_panel_is_chosen_on_the_training_slides_of_each_fold(ready, tmp_path):
    gene = ready.var_names[ready.var["gdml_panel"]][0]
    loud = (ready.obs["patient"] == ready.obs["patient"].cat.categories[0]).to_numpy()
    counts = ready.X.tolil()
    counts[~loud, ready.var_names.get_loc(gene)] = 0  # found in one patient alone
    ready.X = counts.tocsr()
    found = gdml.tl.cross_validate(ready, "ridge", group_key="patient", normalize={"n_genes": 20}, save_to=tmp_path)
    with_gene = set(found.scores.fold[found.scores.gene == gene])
    assert ready.obs["patient"].cat.categories[0] not in with_gene  # it was scored there, not learnt from
    assert found.scores.groupby(["fold", "slide"]).gene.nunique().eq(20).all()


def test_what_is_written(ready, tmp_path):
    before = without_uns(ready)
    measured = ready.obsm["gdml_measured"].copy()
    slides = list(ready.obs["library_id"].cat.categories)
    found = gdml.tl.cross_validate(ready, "ridge", folds={"x": (slides[:2], slides[2:3])}, save_to=tmp_path)
    scored = (ready.obs["library_id"] == slides[2]).to_numpy()
    predicted = ready.obsm["gdml_ridge"]
    assert predicted[scored].notna().all().all() and predicted[~scored].isna().all().all()
    layer = pd.DataFrame(ready.layers["gdml_ridge"], ready.obs_names, ready.var_names)
    pd.testing.assert_frame_equal(layer[predicted.columns], predicted)
    assert layer.drop(columns=predicted.columns).isna().all().all()
    pd.testing.assert_frame_equal(ready.obsm["gdml_measured"], measured)
    assert set(without_uns(ready)[0]) - set(before[0]) == {"gdml_ridge", "gdml_ridge_measured"}
    learnt = int(ready.obs["library_id"].isin(slides[:2]).sum())
    assert found.runs.loc[0, ["n_train", "n_test", "n_genes"]].tolist() == [learnt, scored.sum(), N_GENES]
    ready.write_h5ad(tmp_path / "x.h5ad")
    again = anndata.read_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(again.obsm["gdml_ridge"], predicted)
    gdml.tl.fit(ready, "ridge")  # what it was normalised with still stands


def test_a_spot_in_two_folds_has_the_prediction_of_the_first(ready, tmp_path):
    a, b, c, d = ready.obs["library_id"].cat.categories
    both = {"x": ([a, b], [c]), "y": ([d], [c])}
    gdml.tl.cross_validate(ready, "ridge", folds=both, save_to=tmp_path)
    first = ready.obsm["gdml_ridge"].copy()
    gdml.tl.cross_validate(ready, "ridge", folds={"x": both["x"]}, save_to=tmp_path)
    rows = (ready.obs["library_id"] == c).to_numpy()
    of_x = ready.obsm["gdml_ridge"]
    np.testing.assert_array_equal(first.loc[rows, of_x.columns], of_x[rows])


def test_finished_runs_are_skipped(ready, small, trained, tmp_path):
    models = {"ridge": "ridge", "small": {"model": "gene-dml", **small}}
    call = lambda **options: gdml.tl.cross_validate(ready, models, group_key="patient", save_to=tmp_path, **options)
    first = call(seeds=2)
    assert len(trained) == 2 * (1 + 2)  # ridge needs one seed
    trained.clear()
    again = call(seeds=2)
    assert not trained
    pd.testing.assert_frame_equal(first.scores, again.scores)
    pd.testing.assert_frame_equal(first.runs, again.runs)
    call(seeds=3)
    assert {seed for _, _, seed in trained} == {2} and len(trained) == 2
    trained.clear()
    models["small"]["config"]["width"] = 32
    call()
    assert trained == [("small", fold, 0) for fold in ready.obs["patient"].cat.categories]


@pytest.mark.parametrize("change", ["count", "place", "features", "scale"])
def test_a_run_on_other_data_is_another_run(ready, trained, tmp_path, change):
    call = lambda **options: gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path, **options)
    call()
    trained.clear()
    options = {}
    if change == "count":
        ready.X[0, 0] += 1
    elif change == "place":
        ready.obsm["spatial"] = ready.obsm["spatial"] + 2.0
        gdml.pp.embed(ready, "stain")
    elif change == "features":
        gdml.pp.embed(ready, "stain", tokens="pooled")
    else:
        options["normalize"] = {"smooth": True}
    call(**options)
    assert len(trained) == 2


def test_a_damaged_run_is_done_again(ready, trained, tmp_path):
    call = lambda: gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path)
    first = call()
    trained.clear()
    folder = sorted(tmp_path.iterdir())[0]
    raw = bytearray((folder / "prediction.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "prediction.safetensors").write_bytes(raw)
    assert call().scores.drop(columns="seed").equals(first.scores.drop(columns="seed"))
    assert len(trained) == 1


KILLED = """
    import os, sys, warnings
    warnings.simplefilter("ignore")
    import gdml
    from gdml.training import compare
    gdml.settings.cache_dir = sys.argv[2]
    original, done = compare._train_and_predict, []
    def third_time(*arguments):
        if len(done) == 2:
            os.kill(os.getpid(), 9)
        done.append(1)
        return original(*arguments)
    compare._train_and_predict = third_time
    adata = gdml.datasets.synthetic(n_slides=3, n_patients=3, grid=7, n_genes=40, seed=0)
    gdml.tl.cross_validate(adata, "ridge", normalize={"n_genes": 20}, save_to=sys.argv[1])
"""


def test_killed_and_called_again_it_does_what_is_missing(tmp_path, cache_dir, trained):
    adata = gdml.datasets.synthetic(n_slides=3, n_patients=3, grid=7, n_genes=40, seed=0)
    call = lambda folder: gdml.tl.cross_validate(adata, "ridge", normalize={"n_genes": 20}, save_to=tmp_path / folder)
    undisturbed = call("whole")
    trained.clear()
    script = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "killed"), str(cache_dir)]
    process = subprocess.run(script, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.returncode == -9, process.stderr
    again = call("killed")
    assert len(trained) == 1
    pd.testing.assert_frame_equal(again.scores, undisturbed.scores, rtol=1e-5)


def test_a_run_that_fails_is_reported_and_the_others_go_on(ready, small, trained, tmp_path):
    broken = {**small, "config": {**small["config"], "n_groups": 5000}}
    models = {"broken": {"model": "gene-dml", **broken}, "ridge": "ridge"}
    found = gdml.tl.cross_validate(ready, models, group_key="patient", save_to=tmp_path)
    failed = found.runs[found.runs.model == "broken"]
    assert (failed.status == "failed").all() and failed.error.str.contains("`n_groups` is 5000").all()
    assert found.models == ["ridge"] and (found.runs[found.runs.model == "ridge"].status == "done").all()
    assert ready.obsm["gdml_broken"].isna().all().all()
    trained.clear()
    gdml.tl.cross_validate(ready, models, group_key="patient", save_to=tmp_path)
    assert {label for label, *_ in trained} == {"broken"}  # failures are tried again


def test_stopped_by_the_user_nothing_is_written_and_what_is_finished_stays(ready, monkeypatch, tmp_path):
    original, done = compare._train_and_predict, []

    def stop(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return original(*arguments)

    monkeypatch.setattr(compare, "_train_and_predict", stop)
    before = without_uns(ready)
    with pytest.raises(KeyboardInterrupt):
        gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path)
    assert without_uns(ready) == before
    assert len([p for p in tmp_path.iterdir() if not p.name.startswith(".")]) == 1


def test_the_papers_protocol_chooses_the_epoch_on_the_test_fold(ready, small, tmp_path):
    import torch

    from gdml.models import GeneDML
    from gdml.models.base import make_config
    from gdml.training.config import make_training_config
    from gdml.training.fabric import make_fabric
    from gdml.training.loop import predict, train

    options = {"model": "gene-dml", **small, "training": {**small["training"], "max_epochs": 6, "patience": 6}}
    options["frame"] = "raw"
    found = gdml.tl.cross_validate(ready, {"m": options}, group_key="patient", protocol="paper", save_to=tmp_path)
    assert found.optimistic and "OPTIMISTIC" in repr(found) and "smoothed" in repr(found)
    patient = ready.obs["patient"].cat.categories[0]
    test = (ready.obs["patient"] == patient).to_numpy()
    order = np.r_[np.flatnonzero(~test), np.flatnonzero(test)]
    work = ready[order].copy()
    panel = list(ready.obsm["gdml_m"].columns[ready.obsm["gdml_m"][test].notna().all()])
    gdml.pp.normalize(work, genes=panel, normalization="paper")
    from gdml.spots.data import spot_data

    measured = work.obsm["gdml_measured"].to_numpy(np.float32)
    data, _ = spot_data(Spots.resolve(work), expression=measured, group_key="patient")
    config = GeneDML.adapt(
        make_config(GeneDML, None, options["config"]),
        {k: work.uns["gdml"]["normalization"][k] for k in ("order", "smooth")},
    )
    fabric = make_fabric("cpu")
    rows = torch.arange(len(order))
    n = int((~test).sum())
    module, run = train(
        lambda: GeneDML(config, data.shape()),
        data, rows[:n], make_training_config(GeneDML.recipe, options["training"]), fabric, seed=0, validation=rows[n:],
    )  # fmt: skip
    expected = predict(module, data, fabric, rows=rows[n:])[0].numpy()
    np.testing.assert_allclose(ready.obsm["gdml_m"].loc[test, panel], expected, atol=1e-5)
    assert found.runs.set_index("fold").loc[patient, "epoch"] == run.best_epoch == 1 + np.argmax(run.history["val_pcc"])


def hest_probe(train_x, train_y, test_x, test_y):
    """The probe of the HEST benchmark, written by hand: mean PCC over genes."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train_x)
    x = scaler.transform(train_x)
    alpha = 100 / (x.shape[1] * train_y.shape[1])
    fitted = Ridge(alpha=alpha, fit_intercept=False, solver="cholesky").fit(x, train_y)
    predicted = fitted.predict(scaler.transform(test_x))
    return np.mean([np.corrcoef(predicted[:, i], test_y[:, i])[0, 1] for i in range(test_y.shape[1])])


def test_the_hest_protocol_is_the_probe_of_hest(ready, tmp_path):
    import scanpy as sc

    from gdml.spots.features import load_features

    n_genes = 12
    found = gdml.tl.cross_validate(
        ready, ["ridge"], group_key="patient", protocol="hest-bench", normalize={"n_genes": n_genes}, save_to=tmp_path
    )
    assert set(found.scores.slide) == {"all spots"}
    # genes in 10 % of the spots of every sample, the most variable of all samples together, log1p of raw counts
    counts = ready.X.toarray().astype(float)
    slides = [(ready.obs["library_id"] == name).to_numpy() for name in ready.obs["library_id"].cat.categories]
    enough = np.all([(counts[rows] > 0).mean(0) >= 0.1 for rows in slides], axis=0)
    pooled = anndata.AnnData(np.log1p(counts[:, enough]), var=pd.DataFrame(index=ready.var_names[enough]))
    sc.pp.highly_variable_genes(pooled, n_top_genes=n_genes)
    panel = pooled.var_names[pooled.var.highly_variable]
    y = pooled[:, panel].X
    x = np.empty((ready.n_obs, 0))
    for name, features in load_features(ready).items():
        tokens = features.tokens.astype(np.float64).mean(1)
        x = np.empty((ready.n_obs, tokens.shape[1])) if not x.shape[1] else x
        x[(ready.obs["library_id"] == name).to_numpy()] = tokens
    assert x.shape[1] <= 256  # fewer than the components that are kept
    means = found.intervals(by_fold=True).query("metric == 'pcc_a'").set_index("fold")["mean"]
    for patient in ready.obs["patient"].cat.categories:
        test = (ready.obs["patient"] == patient).to_numpy()
        assert set(found.scores.gene[found.scores.fold == patient]) == set(panel)
        assert means[patient] == pytest.approx(hest_probe(x[~test], y[~test], x[test], y[test]), abs=2e-3)


def test_a_column_of_patients_that_nobody_named(ready, tmp_path):
    folds = {"x": (list(ready.obs["library_id"].cat.categories[:2]), ["S3"])}
    folds["x"] = (folds["x"][0], [ready.obs["library_id"].cat.categories[2]])
    with pytest.warns(UserWarning, match="Pass group_key='patient'"):
        gdml.tl.cross_validate(ready, "ridge", folds=folds, save_to=tmp_path)
    ready.obs["Donor_ID"] = ready.obs.pop("patient")
    with pytest.warns(UserWarning, match="Pass group_key='Donor_ID'"):
        gdml.tl.cross_validate(ready, "ridge", folds=folds, save_to=tmp_path)
    ready.obs["Donor_ID"] = ready.obs["library_id"]  # one slide of each
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        gdml.tl.cross_validate(ready, "ridge", folds=folds, save_to=tmp_path)


def test_groups_is_the_former_name(ready, tmp_path):
    with pytest.warns(FutureWarning, match="`groups` was renamed to `group_key`"):
        found = gdml.tl.cross_validate(ready, "ridge", groups="patient", save_to=tmp_path)
    assert found.group_key == "patient"
    with pytest.warns(FutureWarning, match="group_key"):
        gdml.tl.ablate(ready, "ridge", {"n_components": [4]}, groups="patient", save_to=tmp_path)


def test_finished_runs_bear_the_marker(ready, tmp_path):
    from gdml._marker import marked

    gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path)
    folders = list(tmp_path.iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert marked(folder)["gdml"] == "runs" and marked(folder)["provenance"] == folder.name


def test_a_folder_that_can_not_be_written_to_is_refused_before_the_first_run(ready, trained, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="save_to=.*GDML_CACHE_DIR"):
        gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path / "file" / "runs")
    assert not trained


def test_a_disk_that_is_full_costs_no_scores(ready, monkeypatch, tmp_path):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    told = []
    monkeypatch.setattr(compare.RunStore, "write", full)
    monkeypatch.setattr(compare, "tell", told.append)
    found = gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path)
    assert (found.runs.status == "done").all() and len(found.scores)
    assert len(told) == 2 and all("No space left" in line for line in told)


def test_one_slide_can_not_be_compared(ready, tmp_path):
    one = ready[ready.obs["library_id"] == ready.obs["library_id"].cat.categories[0]].copy()
    with pytest.raises(
        ValueError, match=r"at least 2 groups.* there is 1 group .*pass folds='blocks'.*unseen part of a known slide\."
    ):
        gdml.tl.cross_validate(one, "ridge", save_to=tmp_path)


def test_a_copy_is_written_to_and_returned(ready, tmp_path):
    before = without_uns(ready)
    other, found = gdml.tl.cross_validate(
        ready, "ridge", group_key="patient", save_to=tmp_path, copy=True, key_added="cv"
    )
    assert without_uns(ready) == before and "cv_ridge" in other.obsm and found.models == ["ridge"]


def test_a_gene_without_variance_in_a_fold_is_left_out_and_counted(ready, tmp_path):
    gene = ready.var_names[ready.var["gdml_panel"]][3]
    patient = ready.obs["patient"].cat.categories[1]
    counts = ready.X.tolil()
    counts[(ready.obs["patient"] == patient).to_numpy(), ready.var_names.get_loc(gene)] = 0
    ready.X = counts.tocsr()
    genes = list(ready.var_names[ready.var["gdml_panel"]])
    found = gdml.tl.cross_validate(ready, "ridge", group_key="patient", normalize={"genes": genes}, save_to=tmp_path)
    assert found.runs.set_index("fold").n_constant.to_dict()[patient] == 1
    here = found.scores[(found.scores.fold == patient) & (found.scores.gene == gene)]
    assert here.pcc.isna().all() and found.slides().pcc_a.notna().all()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"model": "gene-dm"}, ValueError, "`model` is 'gene-dm'.*Did you mean 'gene-dml'"),
        ({"model": []}, ValueError, "names no model"),
        ({"model": ["ridge", "ridge"]}, ValueError, "give different names"),
        ({"model": {"a": {"model": "ridge", "confg": {}}}}, ValueError, r"`model\['a'\]` has no option 'confg'"),
        ({"model": {"a": {"model": "ridge", "config": {"alpha": 1}}}}, ValueError, "`config` has no field 'alpha'"),
        ({"group_key": "patients"}, KeyError, "`group_key` is 'patients'.*Did you mean 'patient'"),
        ({"group_key": "patient", "folds": 3}, ValueError, "at least 3 groups.* there are 2 groups"),
        ({"protocol": "nestd"}, ValueError, "`protocol` is 'nestd'. Did you mean 'nested'"),
        ({"seeds": 0}, ValueError, "`seeds` must be a whole number of at least 1, found 0"),
        ({"seeds": [1, 1]}, ValueError, "different seeds"),
        ({"seeds": "3"}, TypeError, "`seeds` must be a whole number of at least 1, found '3'"),
        ({"seeds": [0.5]}, ValueError, "`seeds` must be a whole number of at least 0, found 0.5"),
        ({"model": 5}, TypeError, "`model` must be a name, a list of names or a dict by label, found 5"),
        ({"normalize": ["n_genes"]}, TypeError, "`normalize` must be a dict of arguments of gdml.pp.normalize"),
        ({"save_to": 5}, TypeError, "`save_to` must be the path of a folder, found 5"),
        ({"normalize": {"n_gene": 3}}, ValueError, "`normalize` has no argument 'n_gene'"),
        ({"normalize": {"n_genes": 10_000}}, ValueError, "Fold '.*': `n_genes` is 10000.*arguments of `normalize`"),
        ({"normalize": {"layer": "raw"}}, KeyError, "`layer` is 'raw'"),
        ({"validation": "blok"}, ValueError, "`validation` is 'blok'. Did you mean 'block'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(ready, tmp_path, options, error, match):
    before = without_uns(ready)
    with pytest.raises(error, match=match):
        gdml.tl.cross_validate(ready, **{"model": "ridge", "save_to": tmp_path / "runs", **options})
    assert without_uns(ready) == before and not (tmp_path / "runs").exists()


def test_counts_are_checked_before_features_are_made(synthetic_adata, monkeypatch):
    monkeypatch.setattr("gdml.tl._features.tile_spots", lambda *a, **k: pytest.fail("a step was run"))
    synthetic_adata.layers["counts"] = synthetic_adata.X.copy()
    synthetic_adata.X = synthetic_adata.X * 0.5
    with pytest.raises(ValueError, match="which is no raw count") as raised:
        gdml.tl.cross_validate(synthetic_adata, "ridge", group_key="patient")
    assert "normalize={'layer': ...}" in raised.value.__notes__[0] and "gdml" not in synthetic_adata.uns


def test_evaluate_finds_the_layer_of_the_counts(ready, tmp_path):
    ready.layers["counts"], ready.X = ready.X.copy(), ready.X * 0.5
    del ready.uns["gdml"]["normalization"]
    options = {"group_key": "patient", "normalize": {"n_genes": 20, "layer": "counts"}, "save_to": tmp_path}
    found = gdml.tl.cross_validate(ready, "ridge", **options)
    assert ready.uns["gdml_ridge"]["predict"]["layer"] == "counts"
    scores = gdml.tl.evaluate(ready, key="gdml_ridge")
    by_slide = found.slides().set_index("slide")["mse"]
    assert scores["mse"].drop("all").to_dict() == pytest.approx(by_slide.to_dict())


def test_a_group_on_both_sides_is_refused(ready, tmp_path):
    of_slide = ready.obs.drop_duplicates("library_id").set_index("library_id").patient
    a, b = of_slide.index[of_slide == of_slide.iloc[0]][:2]
    options = {"groups": "patient", "folds": {"x": ([a], [b])}, "save_to": tmp_path}
    with pytest.raises(ValueError, match="on both sides.*allow_shared_groups=True"):
        gdml.tl.cross_validate(ready, "ridge", **options)
    found = gdml.tl.cross_validate(ready, "ridge", allow_shared_groups=True, **options)
    assert "both sides" in found.note


def test_a_copied_slide_is_found_by_its_counts(ready, tmp_path):
    names = ready.obs["library_id"].astype(str)
    a, b = names.unique()[[0, -1]]
    rows_a, rows_b = np.flatnonzero(names == a), np.flatnonzero(names == b)
    counts = ready.X.toarray()
    n = min(len(rows_a), len(rows_b))
    ready = ready[np.sort(np.r_[rows_a[:n], rows_b[:n]])].copy()
    ready.X = np.r_[counts[rows_a[:n]], counts[rows_a[:n][::-1]]]  # the same spots in another order
    with pytest.raises(ValueError, match=f"'{b}' \\(train\\) and '{a}' \\(test\\) have the same counts"):
        gdml.tl.cross_validate(ready, "ridge", group_key="patient", save_to=tmp_path)


def test_missing_steps_are_run(synthetic_adata, tmp_path):
    found = gdml.tl.cross_validate(synthetic_adata, "ridge", normalize={"n_genes": 20}, folds=2, save_to=tmp_path)
    assert "X_stain" in synthetic_adata.obsm and len(found.runs) == 2
