"""``frame=`` of the verbs: what is recorded, refused and kept apart, and that no test slide is looked at."""

import numpy as np
import pytest

import gdml
from gdml.training import FrameConfig


def predicted(adata, model):
    gdml.tl.predict(adata, model)
    return adata.obsm["gdml"].to_numpy()


@pytest.mark.parametrize("name", ["ridge", "kernel"])
def test_the_counts_of_a_test_slide_change_nothing(ready, name):
    patients = ready.obs["patient"].unique()
    train = ready[ready.obs["patient"] == patients[0]].copy()
    test = ready[ready.obs["patient"] != patients[0]].copy()
    model = gdml.tl.fit(train, name, frame="slide")
    scrambled = test.copy()
    order = np.random.default_rng(0).permutation(scrambled.n_vars)
    scrambled.X = scrambled.X[:, order] * 3
    for key in [key for key in scrambled.obsm if "measured" in key]:
        scrambled.obsm[key] = scrambled.obsm[key] * -5 + 1
    np.testing.assert_array_equal(predicted(scrambled, model), predicted(test, model))


@pytest.mark.parametrize(
    ("frame", "error", "match"),
    [
        ("slides", ValueError, "`frame` is 'slides'. Did you mean 'slide'"),
        ({"target": "raw"}, ValueError, "`frame` has no field 'target'. Did you mean 'targets'"),
        ({"targets": "row"}, ValueError, "`targets` is 'row'. Did you mean 'raw'"),
        (["slide"], TypeError, r"`frame` must be a name \(slide, raw\) or a dict of fields"),
    ],
)
def test_bad_frames_are_refused(ready, frame, error, match):
    before = sorted(ready.uns)
    for call in (
        lambda: gdml.tl.fit(ready, "ridge", frame=frame),
        lambda: gdml.tl.ablate(ready, "ridge", {"n_alphas": [3]}, frame=frame),
    ):
        with pytest.raises(error, match=match):
            call()
    assert sorted(ready.uns) == before


def test_the_frame_is_recorded(ready):
    model = gdml.tl.fit(ready, "ridge", frame={"components": "all"})
    assert ready.uns["gdml"]["fit"]["frame"] == {
        "features": "slide",
        "targets": "slide",
        "components": "all",
        "weights": "depth",
    }
    assert model.module.frame.config == FrameConfig(components="all")
    assert gdml.tl.fit(ready, "ridge", preset="pooled").module.frame is None


def test_runs_of_two_frames_are_kept_apart(ready, trained, tmp_path):
    models = {"in units": "ridge", "raw": {"model": "ridge", "frame": "raw"}}
    found = gdml.tl.cross_validate(ready, models, group_key="patient", save_to=tmp_path)
    by_model = found.scores.groupby("model").pcc.mean()
    assert by_model["in units"] != by_model["raw"]
    alone = gdml.tl.cross_validate(ready, {"raw": models["raw"]}, group_key="patient", save_to=tmp_path / "other")
    assert alone.scores.pcc.tolist() == found.scores.pcc[found.scores.model == "raw"].tolist()


def test_an_ablation_in_a_frame(ready, tmp_path):
    grid = {"inputs": ["summary", "local"]}
    found = gdml.tl.ablate(ready, "ridge", grid, frame="raw", group_key="patient", save_to=tmp_path)
    other = gdml.tl.cross_validate(
        ready, {"raw": {"model": "ridge", "frame": "raw"}}, group_key="patient", save_to=tmp_path / "other"
    )
    assert found.scores[found.scores.model == "ridge"].pcc.tolist() == other.scores.pcc.tolist()


def test_without_raw_counts_spots_weigh_the_same(ready):
    ready.X = np.log1p(ready.X.toarray() if hasattr(ready.X, "toarray") else ready.X)
    with pytest.warns(UserWarning, match=r"not weighed by their total counts.*frame=\{\"weights\": \"equal\"\}"):
        model = gdml.tl.fit(ready, "ridge", frame="slide")
    equal = gdml.tl.fit(ready, "ridge", frame={"weights": "equal"})
    np.testing.assert_allclose(predicted(ready, model), predicted(ready, equal), rtol=1e-4, atol=1e-4)
