"""Models of folds say how far to trust them, as those of ``fit`` do."""

import numpy as np
import pandas as pd
import pytest

import gdml


def test_a_kept_model_knows_what_fit_on_its_training_slides_knows(ready, tmp_path):
    options = {"group_key": "patient", "save_to": tmp_path / "runs", "keep_models": tmp_path / "kept"}
    found = gdml.tl.cross_validate(ready, "ridge", **options)
    for _, run in found.runs.iterrows():
        kept = gdml.load(run["saved"])
        test = (ready.obs["patient"] == run["fold"]).to_numpy()
        train, new = ready[~test].copy(), ready[test].copy()
        gdml.pp.normalize(train, genes=list(kept.panel))
        fitted = gdml.tl.fit(train, "ridge", group_key="patient")
        assert (kept.warrant.unseen, kept.warrant.n_units) == (fitted.warrant.unseen, fitted.warrant.n_units)
        pd.testing.assert_frame_equal(kept.warrant.genes, fitted.warrant.genes)
        assert kept.high_genes == fitted.high_genes
        assert kept.calibration.units == fitted.calibration.units
        for target, quantiles in kept.calibration.quantiles.items():
            np.testing.assert_allclose(quantiles, fitted.calibration.quantiles[target], rtol=1e-5)
        np.testing.assert_allclose(kept.familiarity.shifts, fitted.familiarity.shifts, rtol=1e-5)
        gdml.tl.predict(new, kept, interval=0.8, interval_for="unseen part of a known slide")
        assert "gdml_ood" in new.obs and "gdml_low" in new.layers and "gdml_warrant" in new.var


def test_a_model_chosen_on_the_test_fold_promises_nothing(ready, tmp_path):
    found = gdml.tl.cross_validate(
        ready,
        {"net": {"model": "stnet", "max_epochs": 1}},
        group_key="patient",
        protocol="paper",
        save_to=tmp_path / "runs",
        keep_models=tmp_path / "kept",
    )
    kept = gdml.load(found.runs["saved"][0])
    assert kept.warrant is None and kept.calibration is None and kept.familiarity is not None
    with pytest.raises(ValueError, match="`interval` needs errors"):
        gdml.tl.predict(ready, kept, interval=0.8)
