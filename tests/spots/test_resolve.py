"""An AnnData resolved once: names of slides and columns, counts checked once, records of compared models."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from gdml import pp, tl
from gdml.spots import resolve
from gdml.spots.coordinates import libraries
from gdml.spots.resolve import Spots


def make(names, **obs):
    n = len(names)
    table = pd.DataFrame({"library_id": names, **obs}, index=[f"s{i}" for i in range(n)])
    counts = np.random.default_rng(0).poisson(5, (n, 6)).astype(np.float32) + 1
    adata = ad.AnnData(counts, obs=table, var=pd.DataFrame(index=[f"g{i}" for i in range(6)]))
    adata.obsm["spatial"] = np.arange(2 * n, dtype=float).reshape(n, 2)
    return adata


def test_slides_with_numbers_for_names():
    adata = make([6, 6, 7, 7, 6])
    spots = Spots.resolve(adata)
    assert {name: rows.tolist() for name, rows in spots.slides.items()} == {"6": [0, 1, 4], "7": [2, 3]}
    assert spots.library.tolist() == ["6", "6", "7", "7", "6"]
    assert spots.groups("library_id") == {"6": "6", "7": "7"}
    # numbers and text of the same spelling are one slide, and no row is lost
    mixed = make(pd.Series([6, "6", 7], dtype=object).to_numpy())
    assert {name: rows.tolist() for name, rows in libraries(mixed).items()} == {"6": [0, 1], "7": [2]}
    only = make([1, 1])
    del only.obs["library_id"]
    only.uns["spatial"] = {6: {}}
    assert list(libraries(only)) == ["6"]


def test_a_verb_on_slides_with_numbers_for_names():
    adata = make([1] * 10 + [2] * 10)
    pp.normalize(adata, n_genes=4)
    adata.obsm["gdml"] = adata.obsm["gdml_measured"] + np.random.default_rng(1).normal(size=(20, 4)).astype("f4")
    assert list(tl.evaluate(adata).index) == ["1", "2", "all"]


def test_the_default_column_must_exist_where_it_is_named():
    adata = make(["a"] * 4)
    del adata.obs["library_id"]
    pp.normalize(adata, n_genes=2)
    with pytest.raises(KeyError, match="`library_key` is 'library_id'"):
        pp.normalize(adata, library_key="library_id")


def test_counts_are_checked_once(synthetic_adata, monkeypatch):
    calls, real = [], resolve.raw_counts
    monkeypatch.setattr(resolve, "raw_counts", lambda *a: calls.append(a) or real(*a))
    pp.normalize(synthetic_adata, n_genes=20)  # the rule of the panel and the values read them
    assert len(calls) == 1


def test_grid_positions_of_text_are_refused(synthetic_adata):
    synthetic_adata.obs["array_row"] = "A1"
    with pytest.raises(TypeError, match=r"obs\['array_row'\] must be numbers"):
        pp.normalize(synthetic_adata, n_genes=20, smooth=True)


def test_compared_models_share_the_records_of_their_tiles():
    adata = make(["a", "a", "b"], sample=["x", "y", "y"])
    adata.uns["gdml"] = {"tiles": {"library_key": "sample", "spatial_key": "spatial"}, "predict": {"name": "other"}}
    adata.uns["gdml_ridge"] = {"predict": {"name": "ridge"}}
    spots = Spots.resolve(adata, key="gdml_ridge")
    assert list(spots.slides) == ["x", "y"] and spots.record("predict") == {"name": "ridge"}
    assert Spots.resolve(adata, key="mine").record("tiles") is None
