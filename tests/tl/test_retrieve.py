import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import gdml
from gdml.models import list_models

#: Small, of the models that have a shared space; those that are not there yet are left out.
CONFIGS = {"gene-dml": None, "bleep": {"width": 16, "n_neighbors": 5}}
MODELS = [name for name in CONFIGS if name in list_models()]


@pytest.fixture(scope="session")
def _shared(_ready):
    """A trained model of each kind, and the spots that it was fitted on with its predictions."""
    made = {}
    small = {"width": 16, "branch_width": 16, "neighbor_depth": 1, "neighbor_heads": 2, "slide_depth": 1}
    small |= {"slide_heads": 2, "fusion_heads": 2, "n_groups": 4, "group_iterations": 3}
    for name in MODELS:
        adata = _ready.copy()
        training = {"max_epochs": 10, "batch_size": 32, "slides_per_batch": 8, "learning_rate": 3e-3}
        model = gdml.tl.fit(
            adata, name, config=CONFIGS[name] or small, training=training, validation=None, precision="fp32"
        )
        gdml.tl.predict(adata, model, precision="fp32")
        made[name] = adata, model
    return made


@pytest.fixture(params=MODELS)
def shared(request, _shared):
    adata, model = _shared[request.param]
    return adata.copy(), model


@pytest.fixture
def deep(_shared):
    adata, model = _shared["gene-dml"]
    return adata.copy(), model


def embedded(adata, model):
    """Both modalities, in float64."""
    with torch.no_grad():
        values = in_frame(model, torch.from_numpy(adata.obsm["gdml_measured"].to_numpy()))
        return {
            "image": adata.obsm["X_gdml"].astype(float),
            "expression": model.module.embed_expression(values).double().numpy(),
        }


def in_frame(model, values):
    """Expression in the units that the model learnt in."""
    return values if model.module.frame is None else model.module.frame.targets(values)


def by_loops(queries, names, keys, reference, k, own=None):
    rows = []
    for i, (query, name) in enumerate(zip(queries, names, strict=True)):
        cosines = [query @ key / np.linalg.norm(query) / np.linalg.norm(key) for key in keys]
        order = [j for j in np.argsort(-np.array(cosines), kind="stable") if own is None or j != own[i]][:k]
        for rank, j in enumerate(order):
            spot = reference.obs_names[j]
            rows.append((name, rank + 1, spot, str(reference.obs["library_id"].iloc[j]), 1 - cosines[j], cosines[j]))
    return pd.DataFrame(rows, columns=["query", "rank", "match", "library", "distance", "similarity"])


def assert_same(found, expected):
    """Alike but for the order of spots that are equally near, as far as float32 goes."""
    pd.testing.assert_frame_equal(
        found.drop(columns=["match", "library"]), expected.drop(columns=["match", "library"]), atol=1e-5
    )
    assert (found["match"] == expected["match"]).mean() > 0.99


@pytest.mark.parametrize("target", ["image", "expression"])
@pytest.mark.parametrize("query", ["image", "expression"])
def test_the_nearest_are_those_of_loops(shared, query, target):
    adata, model = shared
    of = embedded(adata, model)
    found = gdml.tl.retrieve(adata, adata, query=query, target=target, n_neighbors=6)
    assert_same(found, by_loops(of[query], adata.obs_names, of[target], adata, 6, own=np.arange(adata.n_obs)))
    assert (found["query"] != found["match"]).all()
    new = adata[adata.obs["library_id"] == "S4"].copy()
    old = adata[adata.obs["library_id"] != "S4"].copy()
    found = gdml.tl.retrieve(new, old, model=model, query=query, target=target, n_neighbors=4)
    ask, among = ((adata.obs["library_id"] == "S4").to_numpy(), (adata.obs["library_id"] != "S4").to_numpy())
    assert_same(found, by_loops(of[query][ask], new.obs_names, of[target][among], old, 4))
    assert "S4" not in set(found["library"]) and found["distance"].between(0, 2).all()
    if "expression" in (query, target):
        at = new if query == "expression" else old
        np.testing.assert_allclose(
            at.obsm["X_gdml_expression"], of["expression"][ask if at is new else among], atol=1e-6
        )


def pair_ranks(adata, model, **kwargs):
    """Rank of each spot's own expression among all, as a share: 0.5 by chance."""
    found = gdml.tl.retrieve(adata, adata, model=model, n_neighbors=adata.n_obs, include_self=True, **kwargs)
    own = found[found["query"] == found["match"]]
    assert len(own) == adata.n_obs
    return (own["rank"] - 1) / (adata.n_obs - 1)


def test_a_spot_finds_its_own_other_half(shared):
    adata, model = shared
    assert pair_ranks(adata, model).mean() < 0.25
    assert pair_ranks(adata, model, query="expression").mean() < 0.25
    # and not where the pairs are torn apart
    order = np.random.default_rng(0).permutation(adata.n_obs)
    adata.obsm["gdml_measured"][:] = adata.obsm["gdml_measured"].to_numpy()[order]
    assert 0.4 < pair_ranks(adata, model).mean() < 0.6


def test_defaults_and_chosen_spots(deep):
    adata, model = deep
    whole = gdml.tl.retrieve(adata, adata)  # images to expression, the model from uns
    names = list(adata.obs_names[[7, 3]])
    some = gdml.tl.retrieve(adata, adata, spots=names)
    assert list(some["query"].unique()) == names and len(some) == 20
    expected = whole.set_index("query").loc[names].reset_index()
    pd.testing.assert_frame_equal(some.drop(columns="match"), expected.drop(columns="match"), atol=1e-6)
    one = gdml.tl.retrieve(adata, adata, spots=names[0], query="expression", n_neighbors=1)
    assert len(one) == 1 and one["rank"].item() == 1
    assert gdml.tl.retrieve(adata, adata).equals(whole)  # the same again
    assert model.path == adata.uns["gdml"]["predict"]["model"]


def test_a_subset_knows_itself_by_name_and_slide(deep):
    adata, model = deep
    part = adata[:5].copy()
    assert (gdml.tl.retrieve(part, adata, query="image", target="image", n_neighbors=1)["distance"] > 1e-4).all()
    found = gdml.tl.retrieve(part, adata, query="image", target="image", n_neighbors=1, include_self=True)
    assert list(found["match"]) == list(part.obs_names) and (found["distance"] < 1e-5).all()
    # the same names on another slide are other spots
    part.obs["library_id"] = "S9"
    found = gdml.tl.retrieve(part, adata, query="image", target="image", n_neighbors=1)
    assert list(found["match"]) == list(part.obs_names)


def test_spots_that_were_not_predicted(deep):
    adata, model = deep
    expected = gdml.tl.retrieve(adata[adata.obs["library_id"] == "S2"].copy(), adata, n_neighbors=3)
    one = adata[adata.obs["library_id"] == "S2"]
    bare = ad.AnnData(
        obs=one.obs[["library_id", "array_row", "array_col"]].copy(), obsm={"spatial": one.obsm["spatial"].copy()}
    )
    bare.uns["spatial"] = {"S2": one.uns["spatial"]["S2"]}
    del adata.obsm["gdml"], adata.obsm["X_gdml"], adata.uns["gdml"]["predict"]
    found = gdml.tl.retrieve(bare, adata, n_neighbors=3, precision="fp32")
    assert {"gdml", "X_gdml"} <= set(bare.obsm) and "predict" in bare.uns["gdml"]
    assert "X_gdml" not in adata.obsm and "X_gdml_expression" in adata.obsm
    assert (found["match"] == expected["match"]).mean() > 0.95


def test_the_nearest_tiles_of_a_profile(shared):
    adata, model = shared
    of = embedded(adata, model)
    table = adata.obsm["gdml_measured"]
    cluster = pd.Categorical(adata.obs["library_id"])
    means = table.groupby(cluster, observed=True).mean()
    found = gdml.tl.retrieve(means[means.columns[::-1]].assign(other=1.0), adata, model=model, n_neighbors=5)
    with torch.no_grad():
        ready = in_frame(model, torch.from_numpy(means.to_numpy(np.float32)))
        profiles = model.module.embed_expression(ready).double().numpy()
    assert_same(found, by_loops(profiles, list(means.index), of["image"], adata, 5))
    one = gdml.tl.retrieve(means.loc["S2"], adata, n_neighbors=5)
    assert set(one["query"]) == {"S2"}
    assert list(one["match"]) == list(found.loc[found["query"] == "S2", "match"])
    assert set(gdml.tl.retrieve(means, adata, spots=["S3"], n_neighbors=1)["query"]) == {"S3"}
    # the profile of a single spot is that spot
    own = gdml.tl.retrieve(table.iloc[4], adata, target="expression", n_neighbors=1)
    assert own["match"].item() == adata.obs_names[4] and own["distance"].item() < 1e-5


def test_expression_of_another_platform(deep):
    adata, model = deep
    expected = gdml.tl.retrieve(adata, adata, n_neighbors=2)
    other = adata.copy()
    del other.obsm["gdml_measured"], other.uns["gdml"]["normalization"]
    other.var["symbol"] = other.var_names.to_numpy()
    other.var_names = [f"ENSG{i:011d}.1" for i in range(other.n_vars)]
    other = other[:, np.random.default_rng(0).permutation(other.n_vars)].copy()
    found = gdml.tl.retrieve(adata, other, n_neighbors=2)
    assert (found["match"] == expected["match"]).mean() > 0.99
    np.testing.assert_allclose(found["distance"], expected["distance"], atol=1e-5)
    assert gdml.tl.retrieve(adata, other, gene_key="symbol", n_neighbors=2).equals(found)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_from_a_file(deep, tmp_path, suffix):
    adata, model = deep
    expected = gdml.tl.retrieve(adata, adata, n_neighbors=3)
    getattr(adata, f"write_{suffix}")(tmp_path / f"a.{suffix}")
    again = getattr(ad, f"read_{suffix}")(tmp_path / f"a.{suffix}")
    pd.testing.assert_frame_equal(gdml.tl.retrieve(again, again, n_neighbors=3), expected, check_dtype=False)


# what is refused


def state(adata):
    return {part: sorted(map(str, getattr(adata, part))) for part in ("obsm", "layers", "uns")} | {
        "gdml": sorted(adata.uns.get("gdml", {}))
    }


def refused(adata, reference, error, match, **kwargs):
    before = [state(one) for one in (adata, reference) if isinstance(one, ad.AnnData)]
    with pytest.raises(error, match=match):
        gdml.tl.retrieve(adata, reference, **kwargs)
    assert [state(one) for one in (adata, reference) if isinstance(one, ad.AnnData)] == before


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"query": "images"}, ValueError, "`query` is 'images'. Did you mean 'image'"),
        ({"target": "gene"}, ValueError, "`target` is 'gene'"),
        ({"n_neighbors": 0}, ValueError, "`n_neighbors` must be a whole number"),
        ({"n_neighbors": True}, ValueError, "`n_neighbors` must be a whole number"),
        ({"n_neighbors": 10_000}, ValueError, r"`n_neighbors` is 10000, but `reference` has \d+ spots to find"),
        ({"spots": ["nothing"]}, KeyError, "1 of 1 `spots` are not in `adata`: nothing"),
        ({"spots": []}, ValueError, "name at least one"),
        ({"model": 3}, TypeError, "`model` must be a trained model"),
        ({"gene_key": "symbols"}, KeyError, "`gene_key` is 'symbols'"),
    ],
)
def test_bad_arguments(deep, kwargs, error, match):
    adata, _ = deep
    refused(adata, adata, error, match, **kwargs)


def test_as_many_neighbours_as_there_are(deep):
    adata, _ = deep
    found = gdml.tl.retrieve(adata, adata, n_neighbors=adata.n_obs - 1, spots=adata.obs_names[0])
    assert len(found) == adata.n_obs - 1
    refused(adata, adata, ValueError, f"has {adata.n_obs - 1} spots to find", n_neighbors=adata.n_obs)


def test_models_without_a_shared_space(ready, small, deep):
    ridge = gdml.tl.fit(ready, "ridge", validation=None)
    refused(ready, ready, ValueError, "a 'ridge', which has no space .*'gene-dml'.* have one: gdml.tl.fit", model=ridge)
    small["config"] |= {"instance_weight": 0.0, "group_weight": 0.0}
    off = gdml.tl.fit(ready, **small, validation=None)
    refused(ready, ready, ValueError, "Both pathways are switched off", model=off)
    refused(ready, ready, ValueError, "Both pathways are switched off", model=off, target="image")
    adata, model = deep
    gdml.tl.predict(adata, ridge)
    refused(
        adata,
        adata,
        ValueError,
        r"`adata` .*are of another model \('ridge'.*gdml.tl.predict\(adata, model\)",
        model=model,
    )
    del ready.uns["gdml"]["fit"]
    refused(ready, ready, KeyError, "No `model` is given")


def test_genes_that_were_not_measured(deep):
    adata, model = deep
    part = adata[:, ~adata.var_names.isin(model.panel[:3])].copy()
    del part.obsm["gdml_measured"]
    match = "3 of 30 panel genes .* absent from `reference`.*gdml.pp.normalize"
    refused(adata, part, ValueError, match)
    refused(part, adata, ValueError, "absent from `adata`", query="expression")
    assert len(gdml.tl.retrieve(part, adata, n_neighbors=1)) == adata.n_obs  # an image needs none
    part.var_names = [f"ENSG{i:011d}" for i in range(part.n_vars)]
    refused(adata, part, ValueError, "expression of `reference` can't be embedded. None of the 30 panel genes")
    profile = adata.obsm["gdml_measured"].iloc[0]
    refused(profile.drop(model.panel[0]), adata, ValueError, f"1 of 30 panel genes .{model.panel[0]}.* from `adata`")
    profile.iloc[2] = np.nan
    refused(profile, adata, ValueError, "1 of 30 panel genes")


def test_bad_profiles(deep):
    adata, _ = deep
    table = adata.obsm["gdml_measured"].iloc[:3]
    refused(table, adata, ValueError, "`query` is 'image', but `adata` holds expression profiles", query="image")
    refused(table.iloc[[0, 0]], adata, ValueError, "profiles with the same name")
    refused(table.iloc[:0], adata, ValueError, "a table without rows")
    refused(table.iloc[0], adata, ValueError, "`spots` chooses among", spots="a")
    refused(adata, table, TypeError, "`reference` must be an AnnData")
    refused(adata, adata[:5], ValueError, "`reference` is a view: call reference = reference.copy")


def test_an_image_that_is_gone_leaves_both_as_they_were(deep):
    adata, model = deep
    bare = adata[adata.obs["library_id"] == "S2"].copy()
    bare.uns = {}
    del bare.obsm["gdml"], bare.obsm["X_gdml"], bare.layers["gdml"]
    new = adata.copy()
    del new.obsm["X_gdml"], new.obsm["gdml"], new.uns["gdml"]["predict"], new.layers["gdml"]
    refused(new, bare, ValueError, "No image is known", model=model, target="image")
