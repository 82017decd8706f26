import os
import subprocess
import sys
import textwrap

import anndata
import numpy as np
import pandas as pd
import pytest

import gdml
from gdml.tl import _run_folds

N_GENES = 30  # of the panel that `ready` was normalised with


@pytest.fixture
def trained(monkeypatch):
    """Labels of the runs that were trained, not read from disk."""
    done = []
    original = _run_folds._train_and_predict

    def record(plan, data, candidate, seed):
        done.append((candidate.label, data.fold.name, seed))
        return original(plan, data, candidate, seed)

    monkeypatch.setattr(_run_folds, "_train_and_predict", record)
    return done


def without_uns(adata):
    return sorted(adata.obsm), sorted(adata.layers), sorted(adata.uns), list(adata.var.columns)


@pytest.mark.parametrize("model", ["ridge", "gene-dml"])
def test_a_fold_is_what_fit_predict_and_evaluate_give(ready, small, tmp_path, model):
    options = {} if model == "ridge" else small
    found = gdml.tl.cross_validate(
        ready, {"m": {"model": model, **options}}, groups="patient", seeds=[3], save_to=tmp_path
    )
    patients = ready.obs["patient"].cat.categories
    for patient in patients:
        test = (ready.obs["patient"] == patient).to_numpy()
        train, new = ready[~test].copy(), ready[test].copy()
        del train.var["gdml_panel"], train.uns["gdml"]["panel"]
        gdml.pp.normalize(train, n_genes=N_GENES)
        fitted = gdml.tl.fit(train, model, groups="patient", seed=3, **options)
        gdml.tl.predict(new, fitted)
        one_by_one = gdml.tl.evaluate(new)
        ours = ready.obsm["gdml_m"].loc[new.obs_names, list(fitted.panel)]
        np.testing.assert_array_equal(ours, new.obsm["gdml"])
        np.testing.assert_array_equal(
            ready.obsm["gdml_m_measured"].loc[new.obs_names, list(fitted.panel)], new.obsm["gdml_measured"]
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
    found = gdml.tl.cross_validate(ready, "ridge", groups="patient", normalize={"n_genes": 20}, save_to=tmp_path)
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
    call = lambda **options: gdml.tl.cross_validate(ready, models, groups="patient", save_to=tmp_path, **options)
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
    call = lambda **options: gdml.tl.cross_validate(ready, "ridge", groups="patient", save_to=tmp_path, **options)
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
    call = lambda: gdml.tl.cross_validate(ready, "ridge", groups="patient", save_to=tmp_path)
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
    from gdml.tl import _run_folds
    gdml.settings.cache_dir = sys.argv[2]
    original, done = _run_folds._train_and_predict, []
    def third_time(*arguments):
        if len(done) == 2:
            os.kill(os.getpid(), 9)
        done.append(1)
        return original(*arguments)
    _run_folds._train_and_predict = third_time
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
    found = gdml.tl.cross_validate(ready, models, groups="patient", save_to=tmp_path)
    failed = found.runs[found.runs.model == "broken"]
    assert (failed.status == "failed").all() and failed.error.str.contains("`n_groups` is 5000").all()
    assert found.models == ["ridge"] and (found.runs[found.runs.model == "ridge"].status == "done").all()
    assert ready.obsm["gdml_broken"].isna().all().all()
    trained.clear()
    gdml.tl.cross_validate(ready, models, groups="patient", save_to=tmp_path)
    assert {label for label, *_ in trained} == {"broken"}  # failures are tried again


def test_stopped_by_the_user_nothing_is_written_and_what_is_finished_stays(ready, monkeypatch, tmp_path):
    original, done = _run_folds._train_and_predict, []

    def stop(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return original(*arguments)

    monkeypatch.setattr(_run_folds, "_train_and_predict", stop)
    before = without_uns(ready)
    with pytest.raises(KeyboardInterrupt):
        gdml.tl.cross_validate(ready, "ridge", groups="patient", save_to=tmp_path)
    assert without_uns(ready) == before
    assert len([p for p in tmp_path.iterdir() if not p.name.startswith(".")]) == 1


def test_the_papers_protocol_chooses_the_epoch_on_the_test_fold(ready, small, tmp_path):
    import torch

    from gdml.encoders.device import use_bf16
    from gdml.models import GeneDML
    from gdml.models.base import make_config
    from gdml.training import make_fabric, make_training_config, predict_rows, train

    options = {"model": "gene-dml", **small, "training": {**small["training"], "max_epochs": 6, "patience": 6}}
    found = gdml.tl.cross_validate(ready, {"m": options}, groups="patient", protocol="paper", save_to=tmp_path)
    assert found.optimistic and "OPTIMISTIC" in repr(found) and "smoothed" in repr(found)
    patient = ready.obs["patient"].cat.categories[0]
    test = (ready.obs["patient"] == patient).to_numpy()
    order = np.r_[np.flatnonzero(~test), np.flatnonzero(test)]
    work = ready[order].copy()
    panel = list(ready.obsm["gdml_m"].columns[ready.obsm["gdml_m"][test].notna().all()])
    gdml.pp.normalize(work, genes=panel, normalization="paper")
    from gdml.spots.data import spot_data
    from gdml.tl._training import shape_of

    data, _ = spot_data(work, key="gdml", expression=work.obsm["gdml_measured"].to_numpy(np.float32))
    config = GeneDML.adapt(
        make_config(GeneDML, None, options["config"]),
        {k: work.uns["gdml"]["normalization"][k] for k in ("order", "smooth")},
    )
    fabric = make_fabric(torch.device("cpu"), bf16=use_bf16(torch.device("cpu"), "auto"))
    rows = torch.arange(len(order))
    n = int((~test).sum())
    module, run = train(
        lambda: GeneDML(config, shape_of(data)),
        data, rows[:n], make_training_config({}, options["training"]), fabric, seed=0, validation=rows[n:],
    )  # fmt: skip
    expected = predict_rows(module, data, rows[n:], fabric)[0].numpy()
    np.testing.assert_allclose(ready.obsm["gdml_m"].loc[test, panel], expected, atol=1e-5)
    assert found.runs.set_index("fold").loc[patient, "epoch"] == run.best_epoch == 1 + np.argmax(run.history["val_pcc"])


def test_the_hest_protocol(ready, tmp_path):
    found = gdml.tl.cross_validate(
        ready, ["ridge"], groups="patient", protocol="hest-bench", normalize={"n_genes": 20}, save_to=tmp_path
    )
    assert set(found.scores.slide) == {"all spots"}
    patient = ready.obs["patient"].cat.categories[0]
    rows = (ready.obs["patient"] == patient).to_numpy()
    part = found.scores[found.scores.fold == patient].set_index("gene")
    y, p = ready.obsm["gdml_ridge_measured"][rows], ready.obsm["gdml_ridge"][rows]
    for gene in part.index[:5]:
        assert part.pcc[gene] == pytest.approx(np.corrcoef(y[gene], p[gene])[0, 1], rel=1e-4)


def test_a_gene_without_variance_in_a_fold_is_left_out_and_counted(ready, tmp_path):
    gene = ready.var_names[ready.var["gdml_panel"]][3]
    patient = ready.obs["patient"].cat.categories[1]
    counts = ready.X.tolil()
    counts[(ready.obs["patient"] == patient).to_numpy(), ready.var_names.get_loc(gene)] = 0
    ready.X = counts.tocsr()
    genes = list(ready.var_names[ready.var["gdml_panel"]])
    found = gdml.tl.cross_validate(ready, "ridge", groups="patient", normalize={"genes": genes}, save_to=tmp_path)
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
        ({"groups": "patients"}, KeyError, "`groups` is 'patients'.*Did you mean 'patient'"),
        ({"groups": "patient", "folds": 3}, ValueError, "`folds` asks for 3 folds, but there are 2 groups"),
        ({"protocol": "nestd"}, ValueError, "`protocol` is 'nestd'. Did you mean 'nested'"),
        ({"seeds": 0}, ValueError, "`seeds` is 0"),
        ({"seeds": [1, 1]}, ValueError, "different seeds"),
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
        gdml.tl.cross_validate(ready, "ridge", groups="patient", save_to=tmp_path)


def test_missing_steps_are_run(synthetic_adata, tmp_path):
    found = gdml.tl.cross_validate(synthetic_adata, "ridge", normalize={"n_genes": 20}, folds=2, save_to=tmp_path)
    assert "X_stain" in synthetic_adata.obsm and len(found.runs) == 2
