import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import gdml
from gdml import metrics, tl
from gdml.expression import NORMALIZATIONS, grid_smoother, normalize_counts


def make(noise=1.0, normalization="scanpy", high=("g1", "g3")):
    """Three slides with predictions: the truth and noise."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(2.0, 4.0, 8), (30, 8)).astype(np.float32) + 1
    obs = pd.DataFrame({"library_id": np.repeat(["a", "b", "c"], [8, 10, 12])}, index=[f"s{i}" for i in range(30)])
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(8)]))
    panel = ["g5", "g1", "g3", "g0"]
    norm = NORMALIZATIONS[normalization]
    values = normalize_counts(adata.X, adata.var_names.get_indexer(panel), norm)
    values = values + noise * rng.normal(size=values.shape) * np.arange(1, 5)
    adata.obsm["gdml"] = pd.DataFrame(values.astype(np.float32), index=adata.obs_names, columns=panel)
    adata.uns["gdml"] = {"predict": {"normalization": norm.to_dict(), "panel": np.array(panel, dtype=object)}}
    if high:
        adata.uns["gdml"]["predict"]["high_genes"] = np.array(high, dtype=object)
    return adata


def by_loops(adata):
    truth = adata.obsm["gdml_evaluated"]
    pcc = {}
    for slide in "abc":
        rows = adata.obs["library_id"] == slide
        pcc[slide] = {g: np.corrcoef(truth.loc[rows, g], adata.obsm["gdml"].loc[rows, g])[0, 1] for g in truth}
    return truth, pd.DataFrame(pcc).T


def test_scores_agree_with_loops():
    adata = make()
    summary = tl.evaluate(adata, n_high=2)
    truth, pcc = by_loops(adata)
    assert list(summary.index) == ["a", "b", "c", "all"]
    assert list(summary["n_spots"]) == [8, 10, 12, 30]
    np.testing.assert_allclose(summary["pcc_a"], [*pcc.mean(1), pcc.mean(1).mean()], rtol=1e-5)
    np.testing.assert_allclose(summary["pcc_h"][:3], pcc[["g1", "g3"]].mean(1), rtol=1e-5)
    best = pcc.rank(axis=1).mean().nlargest(2).index
    np.testing.assert_allclose(summary.loc["all", "pcc_h_best"], pcc[best].to_numpy().mean(), rtol=1e-5)
    error = adata.obsm["gdml"] - truth
    np.testing.assert_allclose(summary.loc["all", "mse"], (error**2).to_numpy().mean(), rtol=1e-5)
    np.testing.assert_allclose(
        summary.loc["b", "mae"], error[adata.obs["library_id"] == "b"].abs().to_numpy().mean(), rtol=1e-5
    )
    np.testing.assert_allclose(adata.var.loc[truth.columns, "gdml_pcc"], pcc.mean(), rtol=1e-5)
    np.testing.assert_allclose(adata.var.loc[truth.columns, "gdml_mse"], (error**2).mean(), rtol=1e-5)
    assert adata.var["gdml_mae"].drop(truth.columns).isna().all()
    assert list(adata.obsm["gdml_evaluated"].columns) == list(adata.obsm["gdml"].columns)


def test_perfect_predictions_on_the_models_own_scale():
    adata = make(noise=0)
    summary = tl.evaluate(adata)
    np.testing.assert_allclose(summary["pcc_a"], 1, atol=1e-6)
    np.testing.assert_allclose(summary["mse"], 0, atol=1e-6)
    assert adata.uns["gdml"]["evaluate"]["normalization"]["log"] == "e"


def test_constant_flat_and_absent_genes_are_counted_and_left_out():
    adata = make()
    counts = adata.X.toarray()
    counts[:8, 3] = 0  # g3 is constant in slide a
    adata.X = counts
    adata.obsm["gdml"].iloc[8:18, 3] = 1.5  # g0 is predicted flat in slide b
    adata = adata[:, adata.var_names != "g5"].copy()
    summary = tl.evaluate(adata)
    assert (summary["n_genes"] == 3).all() and (summary["n_absent"] == 1).all()
    assert list(summary["n_constant"]) == [1, 0, 0, 1] and list(summary["n_flat"]) == [0, 1, 0, 1]
    record = adata.uns["gdml"]["evaluate"]
    pcc = pd.DataFrame(record["pcc"], record["libraries"], record["genes"])
    assert np.isnan(pcc.loc["a", "g3"]) and np.isnan(pcc.loc["b", "g0"]) and pcc.isna().to_numpy().sum() == 2
    assert summary.loc["a", "pcc_a"] == pytest.approx(pcc.loc["a", ["g1", "g0"]].mean())
    assert adata.obsm["gdml_evaluated"]["g5"].isna().all()


def test_the_attainable_pcc_is_that_of_the_counts_of_each_slide():
    adata = make()
    summary = tl.evaluate(adata)
    panel = list(adata.obsm["gdml"].columns)
    columns = adata.var_names.get_indexer(panel)
    rows = [np.flatnonzero(adata.obs["library_id"] == slide) for slide in "abc"]
    expected = np.stack([metrics.attainable_pcc(adata.X[these], columns, "scanpy") for these in rows])
    np.testing.assert_array_equal(adata.uns["gdml"]["evaluate"]["attainable"], expected)
    np.testing.assert_allclose(adata.var.loc[panel, "gdml_attainable"], expected.mean(0))
    means = expected.mean(1)
    np.testing.assert_allclose(summary["pcc_attainable"], [*means, means.mean()])
    np.testing.assert_allclose(summary["pcc_reached"], summary["pcc_a"] / summary["pcc_attainable"])
    assert adata.var["gdml_attainable"].drop(panel).isna().all()
    predicted = adata.obsm["gdml"]
    predicted.iloc[8:18, 3] = 1.5  # flat in b: it has no PCC there, and counts in neither mean
    flat = tl.evaluate(adata)
    assert flat.loc["b", "pcc_attainable"] == pytest.approx(expected[1, :3].mean())
    np.testing.assert_allclose(adata.var.loc[panel, "gdml_attainable"], expected.mean(0))


def test_the_attainable_pcc_follows_the_normalisation_of_the_model():
    adata = make(normalization="hest")
    tl.evaluate(adata)
    columns = adata.var_names.get_indexer(adata.obsm["gdml"].columns)
    found = adata.uns["gdml"]["evaluate"]["attainable"]
    np.testing.assert_array_equal(found[0], metrics.attainable_pcc(adata.X[:8], columns, "hest"))
    assert not np.allclose(found[0], metrics.attainable_pcc(adata.X[:8], columns, "scanpy"))


def test_smoothed_labels_are_attained_with_smoothed_halves(ready):
    gdml.pp.normalize(ready, n_genes=12, normalization="paper")
    tl.predict(ready, tl.fit(ready, "ridge"))
    tl.evaluate(ready)
    rows = np.flatnonzero(ready.obs["library_id"] == "S2")
    row, col = (ready.obs[name].to_numpy()[rows] for name in ("array_row", "array_col"))
    columns = ready.var_names.get_indexer(ready.obsm["gdml"].columns)
    counts, neighbors = ready.X[rows], grid_smoother(row, col, np.zeros(len(rows)))
    expected = metrics.attainable_pcc(counts, columns, "paper", neighbors=neighbors)
    np.testing.assert_array_equal(ready.uns["gdml"]["evaluate"]["attainable"][1], expected)
    assert not np.allclose(
        expected, metrics.attainable_pcc(counts, columns, {"order": "panel", "log": "10"}), atol=0.02
    )


def test_the_error_is_split_by_slide_into_level_and_pattern():
    adata = make(noise=0.3)
    predicted = adata.obsm["gdml"]
    predicted.iloc[:8] += 2.0  # slide a as a whole
    predicted.iloc[8:18] *= 0.5
    summary = tl.evaluate(adata)
    error = (adata.obsm["gdml_evaluated"] - predicted).groupby(adata.obs["library_id"].to_numpy())
    level, pattern = (error.mean() ** 2).mean(axis=1), error.var(ddof=0).mean(axis=1)
    np.testing.assert_allclose(summary["mse_level"][:3], level, rtol=1e-5)
    np.testing.assert_allclose(summary["mse_pattern"][:3], pattern, rtol=1e-5)
    np.testing.assert_allclose(summary.loc["all", "mse_level"], np.average(level, weights=[8, 10, 12]), rtol=1e-5)
    np.testing.assert_allclose(summary["mse_level"] + summary["mse_pattern"], summary["mse"], rtol=1e-12)
    assert summary.loc["a", "mse_level"] > 3 * summary.loc["a", "mse_pattern"]


def test_the_spread_of_predictions():
    adata = make(noise=0)
    predicted = adata.obsm["gdml"]
    predicted.iloc[:8] = predicted.iloc[:8] * [0.1, 0.2, 0.3, 0.8] + 5
    predicted.iloc[8:18, 1] = 1.0  # flat
    summary = tl.evaluate(adata)
    np.testing.assert_allclose(summary["spread"], [0.25, 1, 1, 0.75], rtol=1e-4)
    np.testing.assert_allclose(
        adata.var.loc[predicted.columns, "gdml_spread"], [2.1 / 3, 1.2 / 3, 2.3 / 3, 2.8 / 3], rtol=1e-4
    )
    assert adata.var["gdml_spread"].drop(predicted.columns).isna().all()


def test_without_high_genes_there_is_no_honest_pcc_h():
    summary = tl.evaluate(make(high=()))
    assert summary["pcc_h"].isna().all() and summary["pcc_h_best"].notna().all()


def test_predictions_of_ones_own_are_scored_on_the_recorded_scale():
    adata = make(noise=0, normalization="scanpy")
    adata.obsm["ridge"] = adata.obsm.pop("gdml")
    adata.uns["ridge"] = {"normalization": adata.uns.pop("gdml")["predict"]["normalization"]}
    assert tl.evaluate(adata, key="ridge").loc["all", "pcc_a"] == pytest.approx(1)
    assert "ridge_pcc" in adata.var


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_everything_is_written_and_read_back(tmp_path, suffix):
    adata = make()
    summary = tl.evaluate(adata)
    path = tmp_path / f"x.{suffix}"
    getattr(adata, f"write_{suffix}")(path)
    back = getattr(ad, f"read_{suffix}")(path)
    pd.testing.assert_frame_equal(back.uns["gdml"]["evaluate"]["summary"], summary, check_names=False)
    pd.testing.assert_frame_equal(tl.evaluate(back), summary)


def _nan(adata):
    adata.obsm["gdml"].iloc[0, 0] = np.nan


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda adata: adata.obsm.pop("gdml"), KeyError, "gdml.tl.predict"),
        (lambda adata: adata.uns.pop("gdml"), KeyError, "which scale"),
        (lambda adata: adata.uns["gdml"]["predict"].pop("normalization"), KeyError, "which scale"),
        (_nan, ValueError, "NaN"),
        (
            lambda adata: setattr(adata, "var_names", [f"x{i}" for i in range(8)]),
            ValueError,
            "None of the 4 panel genes",
        ),
        (lambda adata: setattr(adata, "X", adata.X * 0.5), ValueError, "layer="),
    ],
)
def test_bad_input_is_refused_and_nothing_written(spoil, error, says):
    adata = make()
    spoil(adata)
    before = sorted(adata.obsm), sorted(adata.var), sorted(adata.uns.get("gdml", {}))
    with pytest.raises(error, match=says):
        tl.evaluate(adata)
    assert (sorted(adata.obsm), sorted(adata.var), sorted(adata.uns.get("gdml", {}))) == before


def test_a_view_is_refused():
    with pytest.raises(ValueError, match="view"):
        tl.evaluate(make()[:9])


def test_what_fit_learns_is_left_as_it_was(ready):
    before = ready.obsm["gdml_measured"].copy(), dict(ready.uns["gdml"]["normalization"])
    other = ready.copy()
    gdml.pp.normalize(other, n_genes=12, normalization="paper", smooth=False)
    model = gdml.tl.fit(other, "ridge")  # another panel on another scale
    gdml.tl.predict(ready, model)
    tl.evaluate(ready)
    assert ready.obsm["gdml_measured"].equals(before[0]) and ready.uns["gdml"]["normalization"] == before[1]
    assert list(ready.obsm["gdml_evaluated"].columns) == list(model.panel)
    assert NORMALIZATIONS["paper"].log == ready.uns["gdml"]["evaluate"]["normalization"]["log"] == "10"
    again = gdml.tl.fit(ready, "ridge")
    assert again.panel == tuple(before[0].columns) and again.normalization["log"] == "e"
    # and maps show what was scored beside it
    axes = gdml.pl.spatial_pred(ready, model.panel[0], library_id="S1", show=False)
    assert axes is not None


@pytest.fixture(params=["library_id", "sample"])
def compared(ready, request, tmp_path):
    """Ridge on two given splits, so that S1 is scored in no fold; under another name of the column of slides, too."""
    column = request.param
    if column != "library_id":
        ready.obs[column] = ready.obs.pop("library_id")
        gdml.pp.tile(ready, library_key=column)
        gdml.pp.embed(ready, "stain")
    folds = {"one": (["S1", "S2"], ["S3"]), "two": (["S1", "S3"], ["S2", "S4"])}
    result = gdml.tl.cross_validate(ready, "ridge", folds=folds, save_to=tmp_path, normalize={"n_genes": 15})
    return ready, result, column


def test_predictions_of_a_comparison_are_scored_where_they_exist(compared):
    adata, result, column = compared
    predicted = adata.obsm["gdml_ridge"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        table = tl.evaluate(adata, key="gdml_ridge")
    assert list(table.index) == ["S2", "S3", "S4", "all"] and not table["in_training"].any()
    sizes = adata.obs[column].astype(str).value_counts()
    assert table["n_spots"].to_dict() == {**{s: sizes[s] for s in ("S2", "S3", "S4")}, "all": adata.n_obs - sizes["S1"]}
    assert (table.loc[["S2", "S3", "S4"], "n_genes"] == 15).all()
    scores = result.scores.groupby("slide")[["pcc", "mse"]].mean()
    for slide in ("S2", "S3", "S4"):
        assert table.loc[slide, "pcc_a"] == pytest.approx(scores.loc[slide, "pcc"], abs=1e-5)
        assert table.loc[slide, "mse"] == pytest.approx(scores.loc[slide, "mse"], rel=1e-5)
    assert set(adata.var_names[adata.var["gdml_ridge_pcc"].notna()]) == set(predicted.columns)
    assert "gdml_ridge_evaluated" in adata.obsm and "evaluate" in adata.uns["gdml_ridge"]


def test_genes_of_one_fold_are_left_out_of_the_others(compared):
    adata, _, column = compared
    predicted = adata.obsm["gdml_ridge"]
    slide = adata.obs[column].astype(str).to_numpy()
    gene = predicted.columns[predicted[slide == "S3"].notna().all()][0]
    predicted.loc[slide == "S3", gene] = np.nan  # not in the panel of that fold
    table = tl.evaluate(adata, key="gdml_ridge")
    assert table["n_genes"].to_dict() == {"S2": 15, "S3": 14, "S4": 15, "all": predicted.shape[1]}
    assert (table["n_flat"] == 0).all() and np.isfinite(table[["pcc_a", "mse", "mae", "spread"]]).all(axis=None)
    attainable = pd.DataFrame(adata.uns["gdml_ridge"]["evaluate"]["attainable"], ["S2", "S3", "S4"], predicted.columns)
    assert np.isnan(attainable.loc["S3", gene])
    for one, row in attainable.iterrows():
        assert (row.isna() == predicted[slide == one].isna().all()).all()
    assert table.loc["S3", "pcc_attainable"] == pytest.approx(attainable.loc["S3"].mean())


def test_it_says_where_the_predictions_of_a_comparison_are(compared):
    adata, *_ = compared
    with pytest.raises(KeyError, match="`key` is 'gdml', .* holds no predictions; name one of: gdml_ridge"):
        tl.evaluate(adata)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_missing_for_some_spots_of_a_gene_are_refused(compared, value):
    adata, *_ = compared
    slide = (adata.obs[compared[2]].astype(str) == "S3").to_numpy().nonzero()[0]
    adata.obsm["gdml_ridge"].iloc[slide[2], 0] = value
    with pytest.raises(ValueError, match=r"obsm\['gdml_ridge'\]` holds NaN or infinite"):
        tl.evaluate(adata, key="gdml_ridge")
