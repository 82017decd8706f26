"""Every verb on a SpatialData: its numbers are those on the AnnData, and stand in the table."""

from importlib import import_module

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData
from matplotlib.figure import Figure
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity

import gdml
from gdml import pl, pp, tl
from gdml.slides import open_slide

TURNED = np.array([[0, -0.5, 40], [0.5, 0, -7], [0, 0, 1]])  # a quarter turn, half a unit a pixel, shifted


def as_spatialdata(adata: AnnData) -> sd.SpatialData:
    """The same slides: images turned against the spots, shapes in another order, no coordinates in the table."""
    images, shapes, table = {}, {}, adata.copy()
    table.obs["instance"] = np.arange(table.n_obs)[::-1].copy()
    for name in table.obs["library_id"].unique():
        slide = open_slide(adata.uns["spatial"][name]["metadata"]["source_image_path"])
        pixels = np.moveaxis(slide.read_region(0, 0, *slide.size, slide.size), -1, 0)
        turn = {name: Affine(TURNED, ("x", "y"), ("x", "y"))}
        images[f"{name}_he"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=turn)
        own = table[table.obs["library_id"] == name]
        xy = own.obsm["spatial"] @ TURNED[:2, :2].T + TURNED[:2, 2]
        instances = own.obs["instance"].to_numpy()
        shapes[name] = ShapesModel.parse(
            xy[::-1], geometry=0, radius=25.0, index=instances[::-1], transformations={name: Identity()}
        )
    del table.obsm["spatial"]
    table.uns["spatial"] = {name: {"metadata": {"spot_pitch_um": 200.0}} for name in shapes}
    table = TableModel.parse(table, region=list(shapes), region_key="library_id", instance_key="instance")
    return sd.SpatialData(images=images, shapes=shapes, tables={"table": table})


def copy_of(data):
    if isinstance(data, AnnData):
        return data.copy()
    tables = {name: table.copy() for name, table in data.tables.items()}
    return sd.SpatialData(images=dict(data.images), shapes=dict(data.shapes), tables=tables)


@pytest.fixture(scope="module")
def _bare(cache_dir):
    adata = gdml.datasets.synthetic(n_slides=2, n_patients=2, grid=5, n_genes=40, seed=1)
    return adata, as_spatialdata(adata)


@pytest.fixture(scope="module")
def _done(_bare):
    """Tiled, embedded, normalised, fitted on, predicted and scored, and the models: each by itself."""
    both, models = [copy_of(data) for data in _bare], []
    for data in both:
        pp.tile(data, n_side=3)
        pp.embed(data, "stain", tokens="pooled")
        pp.normalize(data, n_genes=30)
        config = {"width": 16, "n_neighbors": 5}
        models.append(tl.fit(data, "bleep", config=config, max_epochs=3, validation=None, precision="fp32"))
        tl.predict(data, models[-1], precision="fp32")
        tl.evaluate(data)
    return *both, *models


@pytest.fixture
def bare(_bare):
    return tuple(map(copy_of, _bare))


@pytest.fixture
def done(_done):
    adata, sdata, _, model = _done
    return copy_of(adata), copy_of(sdata), model


def drawn(axes) -> list[np.ndarray]:
    """Pixels of the figure."""
    figure = axes if isinstance(axes, Figure) else np.ravel(np.asarray(axes, dtype=object))[0].figure
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba()).copy()
    plt.close(figure)
    return [pixels]


def _names(data):
    return (data if isinstance(data, AnnData) else data["table"]).obs_names


def trained(model):
    return {name: tensor.detach().numpy() for name, tensor in model.module.state_dict().items()}


def predicted_by_ridge(data):
    """With what predictions of each gene are worth, which takes a model that was fitted with slides held out."""
    tl.predict(data, tl.fit(data, "ridge", group_key="patient"))
    return data


#: On spots that nothing was done to, or on those with all results.
BARE = {
    "pp.tile": lambda d, m: pp.tile(d, n_side=3),
    "pp.embed": lambda d, m: pp.embed(d, "stain", tokens="pooled"),
    "pp.select_genes": lambda d, m: pp.select_genes(d, 12),
    "pp.normalize": lambda d, m: pp.normalize(d, n_genes=12),
    "tl.predict": lambda d, m: tl.predict(d, m),
}
DONE = {
    "pp.load_features": lambda d, m: {name: vars(one) for name, one in pp.load_features(d).items()},
    "tl.fit": lambda d, m: trained(tl.fit(d, "ridge", group_key="patient")),
    "tl.evaluate": lambda d, m: tl.evaluate(d),
    "tl.retrieve": lambda d, m: tl.retrieve(d, d, model=m, spots=list(_names(d)[:4]), n_neighbors=3),
    "tl.cross_validate": lambda d, m: tl.cross_validate(
        d, "ridge", group_key="patient", normalize={"n_genes": 12}
    ).scores.drop(columns="seconds", errors="ignore"),
    "tl.ablate": lambda d, m: tl.ablate(
        d, "ridge", grid={"inputs": ["local"]}, group_key="patient", normalize={"n_genes": 12}
    ).scores.drop(columns="seconds", errors="ignore"),
    "pl.spatial_pred": lambda d, m: drawn(pl.spatial_pred(d, m.panel[0], img=True)),
    "pl.embedding": lambda d, m: drawn(pl.embedding(d, color="patient", method="pca")),
    "pl.gene_scores": lambda d, m: drawn(pl.gene_scores(d)),
    "pl.history": lambda d, m: drawn(pl.history(d)),
    "pl.warrant": lambda d, m: drawn(pl.warrant(predicted_by_ridge(d))),
}
#: Take no spots, but a result, a folder, an image or a table of slides.
OTHERS = {
    "tl.Comparison",
    "tl.load_comparison",
    "tl.predict_slides",
    "pl.ablation",
    "pl.benchmark",
    "pl.tissue",
    "pp.grid",
}


def test_every_verb_is_here():
    public = {f"{room}.{name}" for room in ("pp", "tl", "pl") for name in import_module(f"gdml.{room}").__all__}
    assert public - OTHERS == {*BARE, *DONE}


def same(one, other, where=""):
    """Compare nested results, leaving out what names the image, and hashes that contain it."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        skipped = {"fingerprint", "image", "spatial_key", "keys", "stores", "provenance", "slides", "model", "weights"}
        assert one.keys() == other.keys(), where
        for key in one.keys() - (skipped if "tiles" in where or "gdml" in where else set()):
            same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, pd.DataFrame | pd.Series):
        same(
            one.to_dict(orient="list") if isinstance(one, pd.DataFrame) else one.to_dict(),
            other.to_dict(orient="list") if isinstance(one, pd.DataFrame) else other.to_dict(),
            where,
        )
    elif isinstance(one, np.ndarray | list) and np.asarray(one).dtype.kind in "fc":
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=where)
    elif isinstance(one, float):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=where)
    else:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=where)


@pytest.mark.parametrize("verb", [*BARE, *DONE])
def test_every_verb(verb, request, _done):
    adata, sdata = request.getfixturevalue("bare" if verb in BARE else "done")[:2]
    table = sdata["table"]
    call = {**BARE, **DONE}[verb]
    expected, found = call(adata, _done[2]), call(sdata, _done[3])
    same(expected, found, verb)
    assert sdata["table"] is table
    assert set(table.obsm) - {"gdml_spatial"} == set(adata.obsm) - {"spatial"}
    for name in set(adata.obsm) - {"spatial"}:
        same(adata.obsm[name], table.obsm[name], f"obsm {name}")
    same(adata.var, table.var, "var")
    assert set(adata.layers) == set(table.layers)
    for name in adata.layers:
        same(np.asarray(adata.layers[name]), np.asarray(table.layers[name]), f"layer {name}")
    same(
        {k: v for k, v in adata.uns.items() if k.startswith("gdml")},
        {k: v for k, v in table.uns.items() if k.startswith("gdml")},
        "gdml",
    )
    if "gdml_spatial" in table.obsm:
        np.testing.assert_allclose(table.obsm["gdml_spatial"], adata.obsm["spatial"], atol=1e-6)


def test_verbs_that_need_tiles_were_run_on_the_images_of_the_spatialdata(done):
    slides = done[1]["table"].uns["gdml"]["tiles"]["slides"]
    assert {name: one["image"] for name, one in slides.items()} == {
        name: f"SpatialData image '{name}_he'" for name in ("S1", "S2")
    }


def test_a_table_taken_out_says_where_its_images_are(done):
    table = done[1]["table"].copy()
    del table.uns["gdml"]["features"]
    with pytest.raises(ValueError, match=r"tiled on the SpatialData image 'S1_he'; pass the SpatialData itself"):
        pp.embed(table, "stain")


def test_the_table_is_left_as_it_was_where_a_verb_fails(bare, monkeypatch):
    sdata, before = bare[1], sorted(bare[1]["table"].obsm)

    def fail(*args, **kwargs):
        raise OSError("the disk is full")

    monkeypatch.setattr("gdml.pp.embedding._encode_here", fail)
    with pytest.raises(OSError, match="disk is full"):
        pp.embed(sdata, "stain")
    assert "gdml" not in sdata["table"].uns and sorted(sdata["table"].obsm) == before


def test_copies_are_copies_of_the_table(done):
    sdata, model = done[1:]
    before = sdata["table"].obsm["gdml"].copy()
    sdata["table"].obsm["gdml"] *= 0
    copy = tl.predict(sdata, model, copy=True)
    assert isinstance(copy, AnnData) and not np.any(sdata["table"].obsm["gdml"])
    np.testing.assert_allclose(copy.obsm["gdml"], before, atol=1e-5)


def test_what_gdml_wrote_survives_the_disk(done, tmp_path):
    adata, sdata, model = done
    tl.cross_validate(sdata, "ridge", group_key="patient", normalize={"n_genes": 12})
    sdata.write(tmp_path / "x.zarr")
    again = sd.read_zarr(tmp_path / "x.zarr")
    for name in sdata["table"].obsm:
        same(sdata["table"].obsm[name], again["table"].obsm[name], name)
    kept = {k: v for k, v in sdata["table"].uns.items() if k.startswith("gdml")}
    same(plain(kept), plain({k: again["table"].uns[k] for k in kept}), "uns")
    tl.predict(again, gdml.load(model.path))
    same(adata.obsm["gdml"], again["table"].obsm["gdml"], "predicted again")
    del again["table"].uns["gdml"]["features"]
    tl.predict(again, model)  # reads the images of the store
    same(adata.obsm["gdml"], again["table"].obsm["gdml"], "embedded again")


def plain(value):
    """Without the types that a file does not keep."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, pd.DataFrame):
        return {name: plain(column.to_numpy()) for name, column in value.items()}
    if isinstance(value, np.generic | np.ndarray | list | tuple):
        array = np.asarray(value)
        return (
            [str(one) for one in array.ravel()] if array.dtype.kind in "OUTb" else array.astype(float).ravel().tolist()
        )
    return str(value) if not isinstance(value, int | float) else float(value)
