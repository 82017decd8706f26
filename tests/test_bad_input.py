"""Bad input, verb by verb: a clear error that names the argument and the mend, and nothing written."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import sparse

import gdml

PANEL = 20
GENE_DML = {"width": 16, "branch_width": 16, "neighbor_heads": 2, "slide_heads": 2, "fusion_heads": 2}


def digest(value):
    """Something that equals another one where the contents do: NaN as well."""
    if isinstance(value, Mapping):
        return {str(k): digest(v) for k, v in value.items()}
    if isinstance(value, pd.DataFrame):
        return value.index.tolist(), {c: digest(value[c].to_numpy()) for c in value}
    if sparse.issparse(value):
        return digest(value.toarray())
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), str(value.tolist()) if value.dtype == object else value.tobytes()
    return str(value)


def name_of(value):
    """Name of a parameter that is a function."""
    return value.__name__ if callable(value) and not isinstance(value, type) else ""


def snapshot(adata):
    parts = {name: digest(dict(getattr(adata, name))) for name in ("obsm", "varm", "layers", "obsp", "uns")}
    counts = None if adata.isbacked else digest(adata.X)
    return parts | {"obs": digest(adata.obs), "var": digest(adata.var), "X": counts, "shape": adata.shape}


def refused(adata, call, error, match):
    """The call fails with this message, and nothing in ``adata`` is other than before."""
    before = snapshot(adata)
    with pytest.raises(error, match=match):
        call(adata)
    assert snapshot(adata) == before


@pytest.fixture
def raw(synthetic_adata):
    """Four slides of two patients with a panel; no other step was run."""
    gdml.pp.select_genes(synthetic_adata, n_genes=PANEL)
    return synthetic_adata


@pytest.fixture(scope="session")
def _predicted(_synthetic):
    adata = _synthetic.copy()
    gdml.pp.select_genes(adata, n_genes=PANEL)
    model = gdml.tl.fit(adata, "ridge", group_key="patient")
    gdml.tl.predict(adata, model)
    return adata, model


@pytest.fixture
def model(_predicted):
    return _predicted[1]


@pytest.fixture
def predicted(_predicted):
    """All steps run, predictions written."""
    return _predicted[0].copy()


@pytest.fixture(params=["tile", "embed", "fit", "predict"])
def on_images(request, model):
    """Each verb that needs spots on images, on spots for which nothing was done yet."""
    calls = {
        "tile": gdml.pp.tile,
        "embed": gdml.pp.embed,
        "fit": lambda adata: gdml.tl.fit(adata, "ridge"),
        "predict": lambda adata: gdml.tl.predict(adata, model),
    }
    return calls[request.param]


# coordinates and images


def no_coordinates(adata):
    del adata.obsm["spatial"]


def nan_coordinates(adata):
    adata.obsm["spatial"][3, 1] = np.nan


def infinite_coordinates(adata):
    adata.obsm["spatial"][[3, 5], 0] = np.inf


def image_missing(adata):
    adata.uns["spatial"]["S2"]["metadata"]["source_image_path"] = "/nowhere/S2.jpg"


def image_unknown(adata):
    adata.uns["spatial"]["S2"] = {"metadata": {}}


def only_hires(adata):
    del adata.uns["spatial"]["S2"]["metadata"]["source_image_path"]
    adata.uns["spatial"]["S2"]["images"] = {"hires": np.zeros((10, 10, 3), np.uint8)}


def outside(adata):
    adata.obsm["spatial"][:4] += 1e5


def no_scale(adata):
    del adata.obs["array_row"]
    for record in adata.uns["spatial"].values():
        record["metadata"].pop("spot_pitch_um")


def absurd_scale(adata):
    adata.uns["spatial"]["S2"]["metadata"]["spot_pitch_um"] = 1e5


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (no_coordinates, KeyError, r"obsm\['spatial'\] is missing.*spatial_key="),
        (nan_coordinates, ValueError, r"NaN or infinite coordinates in 1 spots .*drop them: adata = adata\["),
        (infinite_coordinates, ValueError, "NaN or infinite coordinates in 2 spots"),
        (image_missing, FileNotFoundError, r"image of slide 'S2', '/nowhere/S2.jpg'.*does not exist.*image="),
        (image_unknown, ValueError, "No image is known for slide 'S2'; pass its path: image="),
        (only_hires, ValueError, 'full-resolution image is needed.*image=.*insist with image="hires"'),
        (outside, ValueError, r'4 of \d+ spots of slide .S1. lie outside its image.*outside="drop"'),
        (no_scale, ValueError, "um per px of slide 'S1' is unknown.*um_per_px= or spot_pitch_um="),
        (absurd_scale, ValueError, "um per px of slide 'S2' is .* outside the plausible range.*Pass um_per_px="),
    ],
    ids=name_of,
)
def test_coordinates_and_images(raw, on_images, spoil, error, match):
    spoil(raw)
    refused(raw, on_images, error, match)


@pytest.mark.parametrize("um_per_px", [0, -0.5, float("nan"), 40.0])
def test_an_absurd_scale_as_argument(raw, um_per_px):
    refused(raw, lambda a: gdml.pp.tile(a, um_per_px=um_per_px), ValueError, "um.per.px")


def test_spots_outside_can_be_dropped(raw):
    outside(raw)
    n = raw.n_obs
    gdml.pp.tile(raw, outside="drop")
    assert raw.n_obs == n - 4


@pytest.fixture
def cut_off(raw, tmp_path):
    """The image of the second slide is a file that was cut off, or no image."""

    def spoil(kind):
        record = raw.uns["spatial"]["S2"]["metadata"]
        path = tmp_path / f"S2.{kind}"
        if kind == "txt":
            path.write_text("no image")
        else:
            Image.open(record["source_image_path"]).save(path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
        record["source_image_path"] = str(path)
        return raw

    return spoil


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "txt"])
@pytest.mark.parametrize("verb", ["fit", "predict"])
def test_an_image_that_cannot_be_read(cut_off, model, verb, kind):
    calls = {"fit": lambda a: gdml.tl.fit(a, "ridge"), "predict": lambda a: gdml.tl.predict(a, model)}
    refused(cut_off(kind), calls[verb], ValueError, rf"S2.{kind}.* cannot be (read|opened)")


def test_a_truncated_image_without_tiles(cut_off):
    refused(cut_off("jpg"), gdml.pp.embed, ValueError, "S2.jpg.*truncated or damaged.*copy it again")


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_truncated_image_between_tiles_and_features(cut_off, kind):
    adata = cut_off(kind)
    refused(adata, gdml.pp.tile, ValueError, f"S2.{kind}.*truncated or damaged.*copy it again")
    gdml.pp.tile(adata, check=False)
    refused(adata, gdml.pp.embed, ValueError, f"S2.{kind}.*truncated or damaged.*copy it again")


# names and counts


def twice_a_gene(adata):
    adata.var_names = [adata.var_names[1], *adata.var_names[1:]]


def twice_a_spot(adata):
    adata.obs_names = [adata.obs_names[1], *adata.obs_names[1:]]


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (twice_a_gene, r"duplicate gene names .*call adata.var_names_make_unique\(\)"),
        (twice_a_spot, r"duplicate spot names .*call adata.obs_names_make_unique\(\)"),
    ],
)
@pytest.mark.parametrize("verb", ["tile", "embed", "select_genes", "normalize", "fit", "predict", "evaluate"])
def test_names_that_repeat(predicted, model, verb, spoil, match):
    spoil(predicted)
    call = getattr(gdml.pp, verb, None) or getattr(gdml.tl, verb)
    arguments = [model] if verb == "predict" else []
    refused(predicted, lambda a: call(a, *arguments), ValueError, match)


def negative(adata):
    adata.X = adata.X.toarray()
    adata.X[2, 3] = -1


def fractions(adata):
    adata.X = adata.X * 0.5


def missing(adata):
    adata.X = adata.X.toarray()
    adata.X[0, 0] = np.nan


def empty_spots(adata):
    adata.X = adata.X.toarray()
    adata.X[[1, 5]] = 0


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (negative, r"`adata.X` holds -1 \(spot .*, gene .*\), which is no raw count.*layer='counts'"),
        (fractions, r"`adata.X` holds .*\.5 .*no raw count"),
        (missing, "`adata.X` holds nan .*no raw count"),
        (empty_spots, r"2 of \d+ spots have no counts in `adata.X` .*sc.pp.filter_cells\(adata, min_counts=1\)"),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("verb", ["select_genes", "normalize", "fit", "evaluate"])
def test_counts(synthetic_adata, predicted, verb, spoil, match):
    calls = {
        "select_genes": lambda a: gdml.pp.select_genes(a, n_genes=PANEL),
        "normalize": lambda a: gdml.pp.normalize(a, n_genes=PANEL),
        "fit": lambda a: gdml.tl.fit(a, "ridge"),
        "evaluate": gdml.tl.evaluate,
    }
    adata = predicted if verb == "evaluate" else synthetic_adata
    spoil(adata)
    refused(adata, calls[verb], ValueError, match)


def test_constant_genes(predicted):
    gene = predicted.uns["gdml"]["predict"]["panel"][0]
    counts = predicted.X.toarray()
    counts[:, predicted.var_names.get_loc(gene)] = 0
    predicted.X = counts
    # scored: left out and counted
    summary = gdml.tl.evaluate(predicted)
    assert (summary["n_constant"] == 1).all() and np.isfinite(summary["pcc_a"]).all()
    # chosen: not by a rule, and with a warning where they are given
    gdml.pp.select_genes(predicted, n_genes=predicted.n_vars - 1)
    assert not predicted.var.loc[gene, "gdml_panel"]
    with pytest.warns(UserWarning, match=f"1 of 2 panel genes have the same value in every spot .{gene}.*select_genes"):
        gdml.pp.normalize(predicted, genes=[gene, "NOISE1"])


def test_panel_genes_that_the_new_slide_lacks(predicted, model):
    new = predicted[:, ~predicted.var_names.isin(model.panel[:3])].copy()
    for part in (new.obsm, new.layers):
        part.pop("gdml", None)
    gdml.tl.predict(new, model)
    assert tuple(new.obsm["gdml"].columns) == model.panel  # all of them, measured or not
    summary = gdml.tl.evaluate(new)
    assert (summary["n_genes"] == PANEL - 3).all() and (summary["n_absent"] == 3).all()
    assert np.isnan(new.obsm["gdml_evaluated"][list(model.panel[:3])]).all(axis=None)


# groups and sizes


def test_a_split_by_group_of_one(raw):
    raw.obs["patient"] = "P1"
    call = lambda a: gdml.tl.fit(a, "ridge", group_key="patient", validation="group")
    refused(raw, call, ValueError, '`validation="group"` needs two groups or more.*Use validation="block"')


@pytest.mark.parametrize("validation", ["group", None])
def test_fewer_spots_than_k(raw, validation):
    few = raw[raw.obs["library_id"].isin(["S1", "S2"])]
    few = few[[*range(12), *range(40, 52)]].copy()
    call = lambda a: gdml.tl.fit(a, config={**GENE_DML, "n_groups": 30}, validation=validation, max_epochs=1)
    refused(
        few, call, ValueError, r"`n_groups` is 30, but a batch can have \d+ spots only.*pass config=.*or more spots"
    )


# what can't be written to


VERBS = ["tile", "embed", "select_genes", "normalize", "fit", "predict", "evaluate"]


def call_verb(verb, adata, model):
    call = getattr(gdml.pp, verb, None) or getattr(gdml.tl, verb)
    return call(adata, model) if verb == "predict" else call(adata)


@pytest.mark.parametrize("verb", VERBS)
def test_a_view(predicted, model, verb):
    view = predicted[:60]
    refused(view, lambda a: call_verb(verb, a, model), ValueError, r"`adata` is a view: call adata = adata.copy\(\)")
    assert view.is_view


@pytest.mark.parametrize("verb", VERBS)
def test_a_backed_one(predicted, model, verb, tmp_path):
    predicted.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    match = r"`adata` is backed: load it with adata = adata.to_memory\(\)"
    refused(backed, lambda a: call_verb(verb, a, model), ValueError, match)
    backed.file.close()


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_no_anndata(predicted, model, verb):
    with pytest.raises(TypeError, match="`adata` must be an AnnData, found DataFrame"):
        call_verb(verb, predicted.to_df(), model)


@pytest.mark.parametrize("verb", VERBS)
def test_no_spots(predicted, model, verb):
    refused(predicted[:0].copy(), lambda a: call_verb(verb, a, model), ValueError, "`adata` has no spots")


# models, encoders, devices


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def truncated_record(folder):
    path = folder / "model.json"
    path.write_text(path.read_text()[:200])


def newer(folder):
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))


def not_ours(folder):
    (folder / "model.json").write_text('{"architectures": ["BertModel"]}')


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def gone(folder):
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (truncated, ValueError, "model.safetensors' is truncated or damaged .*save it again"),
        (truncated_record, ValueError, "model.json is truncated or not JSON"),
        (newer, ValueError, "written by a newer gdml .*pip install --upgrade gdml"),
        (not_ours, ValueError, "is not a gdml model"),
        (without_weights, FileNotFoundError, "not a whole gdml model: model.safetensors missing"),
        (gone, FileNotFoundError, r"`path` .* does not exist; model.save\(path\) writes one"),
    ],
    ids=name_of,
)
def test_a_model_file(raw, model, tmp_path, spoil, error, match):
    folder = Path(shutil.copytree(model.path, tmp_path / "model"))
    spoil(folder)
    refused(raw, lambda a: gdml.tl.predict(a, folder), error, match)


def test_the_fitted_model_was_deleted(raw, tmp_path):
    fitted = gdml.tl.fit(raw, "ridge", save_to=tmp_path / "model")
    shutil.rmtree(fitted.path)
    match = (
        r"uns\['gdml'\]\['fit'\] records, '.*model', does not exist: pass a model .* or call gdml.tl.fit\(adata\) again"
    )
    refused(raw, gdml.tl.predict, FileNotFoundError, match)


def test_a_model_that_is_no_path():
    with pytest.raises(TypeError, match="`path` must be the path of a folder, found 5"):
        gdml.load(5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda a: gdml.pp.embed(a, "stian"), "`encoder` is 'stian', which is not known. Did you mean 'stain'"),
        (lambda a: gdml.pp.embed(a, "uni-2h"), "Did you mean .*'uni2-h'"),
        (lambda a: gdml.pp.embed(a, device="cdua"), "`device` is 'cdua'. Did you mean 'cuda'"),
        (lambda a: gdml.tl.fit(a, device="cdua"), "`device` is 'cdua'. Did you mean 'cuda'"),
        (lambda a: gdml.tl.fit(a, "gene-dlm"), "`model` is 'gene-dlm', which is not known. Did you mean 'gene-dml'"),
    ],
)
def test_unknown_names(raw, call, match):
    refused(raw, call, ValueError, match)


def test_an_unknown_device_to_predict(raw, model):
    call = lambda a: gdml.tl.predict(a, model, device="cdua")
    refused(raw, call, ValueError, "`device` is 'cdua'. Did you mean 'cuda'")
