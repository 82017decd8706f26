import pandas as pd
import pytest

import gdml


def test_every_variant_is_compared_with_the_model_as_it_is(ready, small, tmp_path):
    before = sorted(ready.obsm)
    grid = {"n_groups": [2, 4], "pathways": {"both": {}, "neither": {"instance_weight": 0.0, "group_weight": 0.0}}}
    found = gdml.tl.ablate(ready, "gene-dml", grid, group_key="patient", save_to=tmp_path, **small)
    assert found.variants.to_dict("index") == {
        "gene-dml": {"field": "", "default": True, "n_groups": 4, "pathways": "both"},
        "n_groups=2": {"field": "n_groups", "default": False, "n_groups": 2, "pathways": "both"},
        "pathways=neither": {"field": "pathways", "default": False, "n_groups": 4, "pathways": "neither"},
    }
    assert found.models == list(found.variants.index)
    assert sorted(ready.obsm) == before
    # a variant is the model with that setting
    config = {**small["config"], "instance_weight": 0.0, "group_weight": 0.0}
    other = gdml.tl.cross_validate(
        ready, {"x": {"model": "gene-dml", **small, "config": config}}, group_key="patient", save_to=tmp_path / "other"
    )
    pd.testing.assert_series_equal(
        found.scores[found.scores.model == "pathways=neither"].pcc, other.scores.pcc, check_index=False
    )


def test_the_papers_grids_of_gene_dml():
    from gdml.models import GeneDML, GeneDMLConfig

    for preset, k in (("her2st", {15, 16, 18, 20}), ("stnet", {80, 90, 100}), ("skinst", {15, 20, 25, 30})):
        grids = GeneDML.published_grids(GeneDML.presets[preset])
        assert set(grids["k"]) == k
        assert grids["lambda"][0.8] == {"group_weight": 0.8}
        assert set(grids["tau_IG"]) == {0.05, 0.07, 0.1}
        assert set(grids["pathways"]) == {"neither", "instance", "group", "both"}
    ours = GeneDML.published_grids(GeneDMLConfig())
    assert ours["lambda"][0.8] == {"group_weight": GeneDMLConfig().group_weight}  # lambda is a ratio


@pytest.mark.parametrize(
    ("model", "grid", "match"),
    [
        ("gene-dml", {"n_group": [3]}, "`config` has no field 'n_group'"),
        ("gene-dml", {"n_groups": 3}, r"`grid\['n_groups'\]` is 3; give a list"),
        ("gene-dml", {"group_target": "soft"}, "give a list"),
        ("gene-dml", {"n_groups": [1]}, "`n_groups` must be at least 2"),
        ("ridge", None, "`grid` is empty"),
        ("gene-dml", {}, "`grid` is empty"),
    ],
)
def test_bad_grids_are_refused_before_anything_is_run(ready, tmp_path, model, grid, match):
    with pytest.raises(ValueError, match=match):
        gdml.tl.ablate(ready, model, grid, group_key="patient", save_to=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
