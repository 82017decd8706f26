"""Prediction intervals: what ``fit`` keeps for them, what ``predict`` writes, and what ``evaluate`` says of them."""

import json
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import gdml

LOW, HIGH = "gdml_low", "gdml_high"
PART = "unseen part of a known slide"


@pytest.fixture
def marked(ready):
    """The spots, a scattered half of them marked as measured."""
    ready.obs["measured"] = np.random.default_rng(0).permutation(ready.n_obs) % 2 == 0
    return ready


def test_fit_keeps_the_errors_and_they_are_saved(fitted, tmp_path):
    _, model = fitted
    # four slides of two patients were held out one by one
    assert model.calibration.units["unseen slide"] == (4, 2)
    assert model.calibration.held_out == model.warrant.unseen
    assert model.calibration.n_genes == model.error_spread.knots.shape[1] == len(model.panel)
    model.save(tmp_path / "model")
    again = gdml.load(tmp_path / "model")
    assert again.calibration.units == model.calibration.units
    for target, quantiles in model.calibration.quantiles.items():
        np.testing.assert_array_equal(again.calibration.quantiles[target], quantiles)
    np.testing.assert_array_equal(again.error_spread.knots, model.error_spread.knots)
    np.testing.assert_array_equal(again.error_spread.values, model.error_spread.values)


def test_a_damaged_calibration_is_refused(fitted, tmp_path):
    _, model = fitted
    model.save(tmp_path / "model")
    path = tmp_path / "model" / "calibration.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(ValueError, match="calibration.safetensors' is truncated or damaged"):
        gdml.load(tmp_path / "model")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="calibration.safetensors missing"):
        gdml.load(tmp_path / "model")


def older(model, folder):
    """Give the model as an earlier version would have saved it."""
    model.save(folder)
    record = json.loads((folder / "model.json").read_text())
    del record["calibration_sha256"]
    (folder / "model.json").write_text(json.dumps(record))
    (folder / "calibration.safetensors").unlink()
    return gdml.load(folder)


def test_an_older_model_says_how_to_get_intervals_and_can_use_measured_spots(fitted, marked, tmp_path):
    model = older(fitted[1], tmp_path / "model")
    assert model.calibration is None
    with pytest.raises(ValueError, match=r"Fit it again, gdml.tl.fit\(adata, 'ridge'\), or mark .* calibrate_on="):
        gdml.tl.predict(marked, model, interval=0.5)
    assert "gdml" not in marked.obsm
    gdml.tl.predict(marked, model, interval=0.8, calibrate_on="measured")
    width = (marked.obsm[HIGH] - marked.obsm[LOW])[~marked.obs["measured"]]
    assert np.isfinite(width).all(axis=None)


@pytest.mark.parametrize("target", [None, "unseen slide", PART])
def test_predict_writes_both_ends(fitted, ready, target):
    _, model = fitted
    gdml.tl.predict(ready, model)
    before = ready.obsm["gdml"].copy()
    gdml.tl.predict(ready, model, interval=0.7, interval_for=target)
    low, high = ready.obsm[LOW], ready.obsm[HIGH]
    pd.testing.assert_frame_equal(ready.obsm["gdml"], before)
    assert (low.dtypes == np.float32).all()
    assert list(low) == list(high) == list(model.panel)
    assert (low >= 0).all(axis=None)
    assert ((low <= before) & (before <= high)).all(axis=None)
    inside = ready.var_names.get_indexer(model.panel)
    np.testing.assert_array_equal(ready.layers[LOW][:, inside], low)
    np.testing.assert_array_equal(ready.layers[HIGH][:, inside], high)
    record = ready.uns["gdml"]["predict"]["interval"]
    assert record["level"] == 0.7
    assert record["for"] == (target or "unseen slide")
    n, populations = model.calibration.units[record["for"]]
    assert populations > 1
    assert record["n_units"] == n
    assert record["highest_level"] == (n - 1) / n
    np.testing.assert_allclose(record["width"], np.median(high - low, axis=0), rtol=1e-6)


def test_ends_are_the_quantile_of_the_errors_times_their_size(fitted, ready):
    _, model = fitted
    gdml.tl.predict(ready, model, interval=0.7, clip=False)
    center = ready.obsm["gdml"].to_numpy(float)
    reach = gdml.conformal.interval_width(model.calibration, 0.7) * model.error_spread(center)
    np.testing.assert_allclose(ready.obsm[LOW], center - reach, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ready.obsm[HIGH], center + reach, rtol=1e-5, atol=1e-6)


def test_clipping_moves_ends_below_0_alone(fitted, ready):
    _, model = fitted
    # intervals so wide that they reach below 0
    model = replace(model, error_spread=replace(model.error_spread, values=model.error_spread.values * 20))
    gdml.tl.predict(ready, model, interval=0.7, clip=False)
    low, high = ready.obsm[LOW].copy(), ready.obsm[HIGH].copy()
    assert (low < 0).any(axis=None)
    gdml.tl.predict(ready, model, interval=0.7)
    pd.testing.assert_frame_equal(ready.obsm[LOW], low.clip(lower=0))
    pd.testing.assert_frame_equal(ready.obsm[HIGH], high)


def test_an_interval_goes_with_its_prediction(fitted, ready):
    _, model = fitted
    gdml.tl.predict(ready, model, interval=0.7, key_added="other")
    assert {"other_low", "other_high"} <= set(ready.obsm) & set(ready.layers)
    assert LOW not in ready.obsm
    gdml.tl.predict(ready, model, key_added="other")
    for place in (ready.obsm, ready.layers):
        assert not {"other_low", "other_high"} & set(place)
    assert "interval" not in ready.uns["other"]["predict"]


def test_layers_have_their_limit(fitted, ready, monkeypatch):
    _, model = fitted
    gdml.tl.predict(ready, model, interval=0.7)
    assert LOW in ready.layers
    monkeypatch.setattr(gdml.settings, "max_layer_gb", 0.0)
    gdml.tl.predict(ready, model, interval=0.7)
    assert LOW not in ready.layers
    assert LOW in ready.obsm


def test_it_is_written_to_h5ad(fitted, marked, tmp_path):
    _, model = fitted
    gdml.tl.predict(marked, model, interval=0.8, calibrate_on="measured")
    gdml.tl.evaluate(marked)
    marked.write_h5ad(tmp_path / "predicted.h5ad")
    read = ad.read_h5ad(tmp_path / "predicted.h5ad")
    pd.testing.assert_frame_equal(read.obsm[LOW], marked.obsm[LOW], check_index_type=False, check_column_type=False)
    record = read.uns["gdml"]["predict"]["interval"]
    assert record["level"] == 0.8
    assert record["shift"].shape == (4, len(model.panel))
    assert list(record["libraries"]) == list(marked.obs["library_id"].unique())
    first = gdml.tl.evaluate(read)
    assert first.loc["all", "coverage"] == gdml.tl.evaluate(marked).loc["all", "coverage"]


def test_measured_spots_move_the_interval_and_not_the_prediction(fitted, marked):
    _, model = fitted
    gdml.tl.predict(marked, model)
    before = marked.obsm["gdml"].copy()
    gdml.tl.predict(marked, model, interval=0.8, calibrate_on=marked.obs["measured"].to_numpy(), clip=True)
    pd.testing.assert_frame_equal(marked.obsm["gdml"], before)
    on = marked.obs["measured"].to_numpy()
    low, high = marked.obsm[LOW].to_numpy(), marked.obsm[HIGH].to_numpy()
    assert np.isnan(low[on]).all()
    assert np.isnan(high[on]).all()
    record = marked.uns["gdml"]["predict"]["interval"]
    gdml.tl.predict(marked, model, interval=0.8, calibrate_on="measured", clip=False)
    raw, measured = marked.obsm["gdml"].to_numpy(), marked.obsm["gdml_measured"].to_numpy()
    for number, name in enumerate(record["libraries"]):
        here = (marked.obs["library_id"] == name).to_numpy()
        assert record["calibrated_on"][number] == (on & here).sum()
        error = (measured - raw)[on & here].mean(0)
        np.testing.assert_allclose(record["shift"][number], error, atol=1e-5)
        middle = (marked.obsm[LOW].to_numpy() + marked.obsm[HIGH].to_numpy())[~on & here] / 2
        np.testing.assert_allclose(middle, raw[~on & here] + error, atol=1e-5)
    assert record["for"] == PART
    assert record["n_units"] == record["calibrated_on"].min()


def test_other_spots_and_genes_need_no_counts(fitted, marked):
    _, model = fitted
    on = marked.obs["measured"].to_numpy()
    gdml.tl.predict(marked, model, interval=0.8, calibrate_on="measured")
    whole = marked.obsm[LOW].copy()
    marked.X = marked.X.toarray() if hasattr(marked.X, "toarray") else np.asarray(marked.X)
    marked.X[~on] = 0
    gdml.tl.predict(marked, model, interval=0.8, calibrate_on="measured")
    pd.testing.assert_frame_equal(marked.obsm[LOW], whole)
    fewer = marked[:, marked.var_names != model.panel[0]].copy()
    gdml.tl.predict(fewer, model, interval=0.8, calibrate_on="measured")
    assert fewer.obsm[LOW][model.panel[0]].isna().all()
    assert fewer.obsm[LOW].loc[~on].drop(columns=model.panel[0]).notna().all(axis=None)


def refused(adata, model, error, match, **options):
    """Check that the call is refused, and that nothing was written."""
    before = set(adata.obsm), set(adata.layers), set(adata.uns["gdml"])
    with pytest.raises(error, match=match):
        gdml.tl.predict(adata, model, **options)
    assert (set(adata.obsm), set(adata.layers), set(adata.uns["gdml"])) == before


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"interval": 0.0}, ValueError, "between 0 and 1"),
        ({"interval": 1}, ValueError, "between 0 and 1"),
        ({"interval": 90}, ValueError, "between 0 and 1"),
        ({"interval": float("nan")}, ValueError, "interval"),
        ({"interval": "0.9"}, TypeError, "interval"),
        ({"interval_for": "unseen slide"}, ValueError, "pass its level as well, interval=0.9"),
        ({"interval": 0.5, "interval_for": "unseen patient"}, ValueError, "slides of three patients or more"),
        ({"interval": 0.5, "interval_for": "unseen slid"}, ValueError, "Did you mean 'unseen slide'"),
        ({"calibrate_on": "measured"}, ValueError, "pass its level as well"),
        ({"interval": 0.8, "calibrate_on": "mesured"}, KeyError, "Did you mean 'measured'"),
        ({"interval": 0.8, "calibrate_on": "library_id"}, TypeError, "must be boolean"),
        ({"interval": 0.8, "calibrate_on": np.ones(3, bool)}, ValueError, "length 3"),
        (
            {"interval": 0.8, "calibrate_on": "measured", "interval_for": "unseen slide"},
            ValueError,
            "leave interval_for",
        ),
        ({"interval": 0.99, "calibrate_on": "measured"}, ValueError, "an interval of 0.99 needs 99"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(fitted, marked, options, error, match):
    refused(marked, fitted[1], error, match, **options)


def test_more_than_the_units_allow_is_refused_and_what_is_offered_works(fitted, ready):
    _, model = fitted
    refused(
        ready,
        model,
        ValueError,
        r"0.9, but .* 4 slides of 2 patients, .* above 0.75 \(3 / 4\). Pass interval=0.75, or interval_for='unseen part",
        interval=0.9,
    )
    gdml.tl.predict(ready, model, interval=0.75)
    gdml.tl.predict(ready, model, interval=0.9, interval_for=PART)


def test_of_few_groups_an_interval_for_a_slide_is_offered_by_the_name_of_the_groups():
    adata = gdml.datasets.synthetic(n_slides=9, n_patients=3, grid=3, n_genes=20, seed=0)
    adata.obs["donor"] = adata.obs["patient"]
    gdml.pp.normalize(adata, n_genes=10)
    model = gdml.tl.fit(adata, "ridge", group_key="donor")
    assert model.calibration.units["unseen patient"] == (3, 1)
    with pytest.raises(
        ValueError, match=r"3 donors, .* an unseen donor above 0.75 \(3 / 4\). .* interval_for='unseen slide'"
    ):
        gdml.tl.predict(adata, model, interval=0.85)
    gdml.tl.predict(adata, model, interval=0.85, interval_for="unseen slide")
    for name in ("unseen donor", "unseen patient", None):
        gdml.tl.predict(adata, model, interval=0.75, interval_for=name)
        assert adata.uns["gdml"]["predict"]["interval"]["for"] == "unseen donor"


def test_messages_name_the_groups_where_too_few_were_held_out(ready):
    ready.obs["donor"] = ready.obs["patient"]
    model = gdml.tl.fit(ready, "ridge", group_key="donor")
    for asked in ("unseen donor", "unseen patient"):
        match = f"'{asked}', but .* nothing about an unseen donor. .* slides of three donors or more"
        refused(ready, model, ValueError, match, interval=0.5, interval_for=asked)
    refused(ready, model, ValueError, "4 slides of 2 donors", interval=0.9)
    refused(
        ready,
        model,
        ValueError,
        "'unseen doner'. Did you mean 'unseen donor'",
        interval=0.5,
        interval_for="unseen doner",
    )


def test_marked_spots_of_no_use_are_refused(fitted, marked):
    _, model = fitted
    first = (marked.obs["library_id"] == marked.obs["library_id"].iloc[0]).to_numpy()
    on = marked.obs["measured"].to_numpy()
    for mask, match in [
        (on & first, "marks no spot of 3 slides"),
        (on | first, "marks all spots of 1 slide"),
        (marked.obs["measured"].sample(frac=1, random_state=0), "another index"),
    ]:
        refused(marked, model, ValueError, match, interval=0.8, calibrate_on=mask)
    marked.X = marked.X * 0.5
    refused(marked, model, ValueError, "no raw count|raw counts of the marked", interval=0.8, calibrate_on="measured")
    marked.X = marked.X * 0
    refused(marked, model, ValueError, "without any counts", interval=0.8, calibrate_on="measured")
    nameless = marked[:, []].copy()
    refused(nameless, model, ValueError, "no gene was measured", interval=0.8, calibrate_on="measured")


@pytest.mark.parametrize(
    ("change", "match"), [({"smooth": True}, "averages over neighbouring"), ({"order": "panel"}, "1 were not measured")]
)
def test_a_scale_that_single_spots_have_not_is_refused(ready, marked, change, match):
    gdml.pp.normalize(ready, **change)
    model = gdml.tl.fit(ready, "ridge")
    new = marked[:, marked.var_names != model.panel[0]].copy()
    refused(new, model, ValueError, match, interval=0.8, calibrate_on="measured")


def test_evaluate_counts_what_is_inside(fitted, marked):
    _, model = fitted
    gdml.tl.predict(marked, model, interval=0.5, calibrate_on="measured")
    table = gdml.tl.evaluate(marked)
    measured = marked.obsm["gdml_evaluated"]
    inside = (marked.obsm[LOW] <= measured) & (measured <= marked.obsm[HIGH])
    width = marked.obsm[HIGH] - marked.obsm[LOW]
    left = ~marked.obs["measured"].to_numpy()
    for name in [*marked.obs["library_id"].unique(), "all"]:
        rows = left if name == "all" else left & (marked.obs["library_id"] == name).to_numpy()
        assert table.loc[name, "coverage"] == pytest.approx(inside[rows].to_numpy().mean())
        assert table.loc[name, "width"] == pytest.approx(width[rows].to_numpy().mean(), rel=1e-5)
    found = marked.var["gdml_coverage"].dropna()
    pd.testing.assert_series_equal(found, inside[left].mean()[found.index], check_names=False)
    gdml.tl.predict(marked, model)
    assert not {"coverage", "width"} & set(gdml.tl.evaluate(marked))
    assert "gdml_coverage" not in marked.var


@pytest.mark.filterwarnings("ignore:The model was trained")
def test_coverage_of_new_slides_is_near_the_level():
    """Ten patients to learn from, ten new ones of the same population."""
    adata = gdml.datasets.synthetic(n_slides=20, n_patients=20, grid=6, n_genes=24, seed=3)
    gdml.pp.tile(adata, n_side=1)
    gdml.pp.embed(adata, "stain")
    slides = adata.obs["library_id"].unique()
    known = adata[adata.obs["library_id"].isin(slides[::2])].copy()
    new = adata[~adata.obs["library_id"].isin(slides[::2])].copy()
    gdml.pp.normalize(known, n_genes=20)
    model = gdml.tl.fit(known, "ridge", group_key="patient")
    assert model.calibration.units["unseen patient"] == (10, 1)
    gdml.tl.predict(new, model, interval=0.8)
    slide = gdml.tl.evaluate(new)["coverage"].drop("all")
    error = 3 * slide.std(ddof=1) / np.sqrt(len(slide))
    assert 0.8 - error < slide.mean() < 0.8 + 1 / 11 + error + 0.02
    new.obs["measured"] = np.random.default_rng(0).permutation(new.n_obs) % 2 == 0
    gdml.tl.predict(new, model, interval=0.8, calibrate_on="measured")
    slide = gdml.tl.evaluate(new)["coverage"].drop("all")
    assert abs(slide.mean() - 0.8) < 3 * slide.std(ddof=1) / np.sqrt(len(slide)) + 0.04


def test_an_image_has_intervals(fitted, ready):
    _, model = fitted
    image = next(iter(ready.uns["gdml"]["tiles"]["slides"].values()))["image"]
    with pytest.raises(ValueError, match="above 0.75"):
        gdml.tl.predict(image, model, um_per_px=1.0, tissue=False, interval=0.9)
    with pytest.raises(TypeError, match="`calibrate_on` cannot be used with an image"):
        gdml.tl.predict(image, model, um_per_px=1.0, tissue=False, interval=0.7, calibrate_on="x")
    found = gdml.tl.predict(image, model, um_per_px=1.0, tissue=False, interval=0.7)
    assert (found.obsm[LOW] <= found.obsm[HIGH]).all(axis=None)
    assert LOW not in found.layers
