"""What every verb has in common: its line, its arguments, its messages."""

import io

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData

import gdml
from gdml import pp, tl


@pytest.fixture
def lines(monkeypatch):
    """What verbs print at scanpy's default verbosity."""
    file = io.StringIO()
    monkeypatch.setattr(sc.settings, "_logfile", file, raising=False)
    monkeypatch.setattr(type(sc.settings), "logfile", property(lambda self: file), raising=False)
    before, sc.settings.verbosity = sc.settings.verbosity, 1
    yield lambda: [line for line in file.getvalue().splitlines() if line]
    sc.settings.verbosity = before


def test_each_verb_leaves_one_line(ready, lines):
    train, new = (ready[ready.obs["library_id"].isin(names)].copy() for names in (["S1", "S2", "S3"], ["S4"]))
    pp.select_genes(train, 20)
    pp.normalize(train)
    model = tl.fit(train, "ridge")
    tl.predict(new, model)
    scores = tl.evaluate(new)
    found = lines()
    assert [line.split(":")[0] for line in found] == ["select_genes", "normalize", "fit", "predict", "evaluate"]
    assert "20 genes (rule: counts)" in found[0]
    assert "20 panel genes (rule: counts), ln(counts per 10,000 + 1)" in found[1]
    assert "ridge on 3 slides" in found[2] and model.path in found[2] and "defaults" not in found[2]
    n = model.warrant.genes["warrant"].value_counts()
    tally = f"of 20 genes {n['carried by the image']} carried by the image, {n.get('partly', 0)} partly (unseen slide)"
    assert tally in found[2]
    assert f"20 genes at {new.n_obs} spots" in found[3] and "20 of 20 panel genes matched" in found[3]
    assert f"PCC(A) {scores.loc['all', 'pcc_a']:.3f}" in found[4] and "1 slide" in found[4]


def test_lines_tell_what_was_run_and_the_scale(synthetic_adata, lines):
    train, new = (synthetic_adata[synthetic_adata.obs["library_id"].isin(n)].copy() for n in (["S1", "S2"], ["S4"]))
    pp.select_genes(train, 20)
    model = tl.fit(train, config={"n_groups": 4, "width": 16}, max_epochs=2, training={"refit": False})
    tl.predict(new, model)
    fit, predict = (next(line for line in lines() if line.startswith(f"{verb}:")) for verb in ("fit", "predict"))
    assert "after tile, normalize, embed with defaults" in fit
    assert "validation PCC(A)" in fit and f"{model.training['n_epochs']} epochs" in fit and model.path in fit
    scale = new.uns["gdml"]["tiles"]["slides"]["S4"]
    assert f"tiled at {scale['um_per_px']:.4g} um/px ({scale['um_per_px_source']})" in predict


def test_the_former_name_of_group_key_still_works(ready):
    with pytest.warns(FutureWarning, match="`groups` was renamed to `group_key`; pass group_key='patient'"):
        model = tl.fit(ready, "ridge", groups="patient")
    assert model.training["split"]["groups"] == "patient"
    with pytest.raises(TypeError, match="pass `group_key` alone"):
        tl.fit(ready, "ridge", groups="patient", group_key="patient")


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda a, m: tl.predict(a, m, batch_size="512"), "batch_size"),
        (lambda a, m: tl.evaluate(a, n_high="50"), "n_high"),
        (lambda a, m: tl.fit(a, "ridge", validation_fraction="0.2"), "validation_fraction"),
        (lambda a, m: tl.fit(a, "ridge", seed="0"), "seed"),
        (lambda a, m: tl.retrieve(a, a, n_neighbors="3"), "n_neighbors"),
        (lambda a, m: pp.normalize(a, n_genes="20"), "n_genes"),
        (lambda a, m: pp.normalize(a, target_sum="1e4"), "target_sum"),
        (lambda a, m: pp.select_genes(a, "20"), "n_genes"),
        (lambda a, m: pp.select_genes(a, 20, min_fraction="0.1"), "min_fraction"),
    ],
)
def test_text_where_a_number_is_wanted_names_the_argument(fitted, call, argument):
    adata, model = fitted
    tl.predict(adata, model)
    with pytest.raises(TypeError, match=f"`{argument}` must be a"):
        call(adata, model)


def test_predict_takes_the_arguments_that_its_messages_name(fitted):
    adata, model = fitted
    one = adata[adata.obs["library_id"] == "S4"]
    scale = float(adata.uns["gdml"]["tiles"]["slides"]["S4"]["um_per_px"])
    expected = tl.predict(one, model, copy=True).obsm["gdml"]
    bare = AnnData(obs=one.obs[["library_id"]].rename(columns={"library_id": "sample"}))
    bare.obsm["pixels"] = one.obsm["spatial"].copy()
    path = one.uns["spatial"]["S4"]["metadata"]["source_image_path"]
    with pytest.raises(KeyError, match="spatial_key="):
        tl.predict(bare, model, image={"S4": path})
    keys = {"library_key": "sample", "spatial_key": "pixels", "image": {"S4": path}}
    with pytest.raises(ValueError, match="is unknown.*um_per_px= or spot_pitch_um="):
        tl.predict(bare, model, **keys)
    tl.predict(bare, model, um_per_px=scale, **keys)
    np.testing.assert_allclose(bare.obsm["gdml"], expected, atol=1e-5)
    record = bare.uns["gdml"]["tiles"]["slides"]["S4"]
    assert record["um_per_px_source"] == "argument"
    tl.predict(bare, model, um_per_px=2 * scale, image={"S4": path})  # another scale: other tiles
    assert bare.uns["gdml"]["tiles"]["slides"]["S4"]["um_per_px"] == 2 * scale
    assert not np.allclose(bare.obsm["gdml"], expected, atol=1e-3)


def test_fit_names_the_call_that_takes_the_arguments_of_its_messages(synthetic_adata):
    pp.select_genes(synthetic_adata, 20)
    del synthetic_adata.obs["array_row"]
    for record in synthetic_adata.uns["spatial"].values():
        record["metadata"].pop("spot_pitch_um")
    with pytest.raises(ValueError, match="Pass um_per_px=") as caught:
        tl.fit(synthetic_adata, "ridge")
    note = "gdml.tl.fit ran gdml.pp.tile(adata) with its defaults; call it yourself first to pass it arguments."
    assert caught.value.__notes__ == [note]
    gdml.pp.tile(synthetic_adata, um_per_px=0.5)  # what the message says
    tl.fit(synthetic_adata, "ridge")


def test_a_panel_that_hardly_matches_warns(fitted):
    adata, model = fitted
    few = adata.copy()
    few.var_names = [name if name in model.panel[:9] else f"x{i}" for i, name in enumerate(few.var_names)]
    del few.obsm["gdml_measured"]
    match = rf"Only 9 of the 30 panel genes \(symbols: {model.panel[9]}, .* are absent\) are in var_names .*gene_key="
    with pytest.warns(UserWarning, match=match):
        tl.predict(few, model)
    with pytest.warns(UserWarning, match="Only 9 of the 30 panel genes"):
        tl.evaluate(few)
    none = adata.copy()
    none.var_names = [f"ENSG{i:011d}" for i in range(none.n_vars)]
    with pytest.warns(UserWarning, match="None of the 30 panel genes .*put the symbols in a column.*gene_key="):
        tl.predict(none, model)


def test_half_of_the_panel_is_enough(fitted, recwarn):
    adata, model = fitted
    half = adata.copy()
    half.var_names = [name if name in model.panel[:15] else f"x{i}" for i, name in enumerate(half.var_names)]
    tl.predict(half, model)
    assert not [w for w in recwarn if "panel genes" in str(w.message)]


@pytest.mark.parametrize("verb", ["normalize", "select_genes", "predict", "evaluate"])
def test_a_column_of_slides_that_is_named_must_exist(fitted, verb):
    adata, model = fitted
    gdml.tl.predict(adata, model)
    one = adata[adata.obs["library_id"] == "S1"].copy()  # one slide: no column is needed
    before = sorted(one.obsm), sorted(one.var), str(one.uns["gdml"]["tiles"])
    calls = {
        "normalize": lambda: pp.normalize(one, library_key="sample"),
        "select_genes": lambda: pp.select_genes(one, 5, library_key="sample"),
        "predict": lambda: tl.predict(one, model, library_key="sample"),
        "evaluate": lambda: tl.evaluate(one, library_key="sample"),
    }
    with pytest.raises(KeyError, match="`library_key` is 'sample', which is no column of obs"):
        calls[verb]()
    assert (sorted(one.obsm), sorted(one.var), str(one.uns["gdml"]["tiles"])) == before


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda a, m: tl.predict(a, m, spatial_key="pixels"), r"obsm\['pixels'\] is missing"),
        (lambda a, m: tl.predict(a, m, gene_key="symbol"), "`gene_key` is 'symbol'"),
        (lambda a, m: tl.fit(a, "ridge", group_key="patients"), "`group_key` is 'patients'.*Did you mean 'patient'"),
        (lambda a, m: pp.normalize(a, layer="raw"), "`layer` is 'raw'"),
        (lambda a, m: tl.evaluate(a, layer="raw"), "`layer` is 'raw'"),
        (lambda a, m: tl.evaluate(a, gene_key="symbol"), "`gene_key` is 'symbol'"),
    ],
)
def test_whatever_is_named_must_exist(fitted, call, match):
    adata, model = fitted
    gdml.tl.predict(adata, model)
    with pytest.raises(KeyError, match=match):
        call(adata, model)
