"""QuPath's objects: geometry to the pixel, valid JSON, values by gene, nothing written before all is checked."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import unary_union
from shapely.geometry import shape as to_shape

import gdml
from gdml.io import to_geojson

GENES = ["FASN", "GNAS", "MUC1"]


def tiled(xy, side_px=224.0, genes=0, library="A", left=0.0, diameter=None, values=None):
    """Spots as the verbs leave them: tiles recorded, predictions in obsm."""
    n = len(xy)
    adata = ad.AnnData(np.zeros((n, genes), np.float32), obs=pd.DataFrame(index=[f"s{i}" for i in range(n)]))
    adata.obs["library_id"] = pd.Categorical([library] * n)
    adata.obsm["spatial"] = np.asarray(xy, np.float64)
    factors = {} if diameter is None else {"spot_diameter_fullres": diameter}
    adata.uns["spatial"] = {library: {"images": {}, "scalefactors": factors, "metadata": {}}}
    slide = {"side_px": side_px, "left": left, "top": 0.0}
    tiles = {"library_key": "library_id", "spatial_key": "spatial", "slides": {library: slide}}
    adata.uns["gdml"] = {"tiles": tiles, "predict": {"name": "ridge", "model": "m", "provenance": "abc"}}
    values = np.arange(3 * n, dtype=np.float32).reshape(n, 3) / 7 if values is None else values
    adata.obsm["gdml"] = pd.DataFrame(values, index=adata.obs_names, columns=GENES)
    return adata


@given(
    xy=st.lists(st.tuples(*[st.floats(0, 2e5, width=32)] * 2), min_size=1, max_size=20),
    side=st.floats(1, 2000, width=32),
)
@settings(deadline=None, max_examples=30)
def test_squares_are_the_tiles_to_the_last_bit(xy, side):
    adata = tiled(xy, side)
    read = json.loads(json.dumps(to_geojson(adata, "FASN")))
    assert read["type"] == "FeatureCollection" and len(read["features"]) == len(xy)
    for (x, y), feature in zip(xy, read["features"], strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        half = side / 2
        corners = [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
        assert [tuple(point) for point in ring] == [*corners, corners[0]]


@pytest.mark.parametrize("kind", ["square", "circle"])
def test_polygons_are_valid_closed_and_counterclockwise(kind):
    adata = tiled([(300.5, 400.25), (800, 400)], genes=3, diameter=100.0)
    for (x, y), feature in zip(adata.obsm["spatial"], to_geojson(adata, GENES, shape=kind)["features"], strict=True):
        (ring,) = feature["geometry"]["coordinates"]
        polygon = to_shape(feature["geometry"])
        assert (
            polygon.is_valid
            and polygon.exterior.is_ccw
            and ring[0] == ring[-1]
            and len(ring) == len(set(map(tuple, ring))) + 1
        )
        assert (polygon.centroid.x, polygon.centroid.y) == pytest.approx((x, y))
        area = 224**2 if kind == "square" else np.pi * 50**2
        assert polygon.area == pytest.approx(area, rel=0.02)


def test_shape_follows_the_spots():
    def corners(**kwargs):
        return {
            len(f["geometry"]["coordinates"][0]) for f in to_geojson(tiled([(300, 300)], **kwargs), "FASN")["features"]
        }

    assert corners(genes=3, diameter=100.0) == {25}  # measured spots
    assert corners(genes=3) == {5}  # no diameter is known
    assert corners(diameter=100.0) == {5}  # H&E alone
    bins = tiled([(300, 300)], genes=3, diameter=32.0)
    bins.uns["spatial"]["A"]["scalefactors"]["bin_size_um"] = 8.0
    (feature,) = to_geojson(bins, "FASN")["features"]
    assert to_shape(feature["geometry"]).bounds == (284, 284, 316, 316)


def test_values_colours_and_names():
    adata = tiled([(300, 300), (600, 300), (900, 300)])
    adata.obsm["gdml"].iloc[1, 0] = np.nan
    collection = to_geojson(adata, ["GNAS", "FASN"], color_by="FASN")
    properties = [feature["properties"] for feature in collection["features"]]
    table = adata.obsm["gdml"]
    assert [p["name"] for p in properties] == ["s0", "s1", "s2"]
    assert {p["objectType"] for p in properties} == {"tile"}
    assert properties[2]["measurements"] == {"GNAS": table["GNAS"].iloc[2], "FASN": table["FASN"].iloc[2]}
    assert properties[1]["measurements"] == {"GNAS": table["GNAS"].iloc[1]} and "color" not in properties[1]
    assert properties[0]["color"] == [68, 1, 84] and properties[2]["color"] == [253, 231, 36]  # the ends of viridis
    assert not any("classification" in p for p in properties)
    assert collection["gdml"] == {
        "library_id": "A",
        "values": "predicted",
        "source": "obsm['gdml']",
        "model": "m",
        "name": "ridge",
        "provenance": "abc",
    }


def test_classes_are_quantiles():
    values = np.zeros((8, 3))
    values[:, 0] = [5, 1, 7, 3, 2, 8, 6, 4]
    features = to_geojson(tiled([(300 * i, 300) for i in range(8)], values=values), "FASN", n_classes=4)["features"]
    names = [feature["properties"]["classification"]["name"] for feature in features]
    assert names == [f"FASN Q{q}" for q in (3, 1, 4, 2, 1, 4, 3, 2)]
    colors = {
        f["properties"]["classification"]["name"]: tuple(f["properties"]["classification"]["color"]) for f in features
    }
    assert len(set(colors.values())) == 4
    flat = to_geojson(tiled([(0, 0), (300, 0)], values=np.ones((2, 3))), "FASN", n_classes=2)["features"]
    assert {f["properties"]["classification"]["name"] for f in flat} == {"FASN Q2"}  # equal values are in one class


def test_measured_values_say_so():
    adata = tiled([(300, 300)], genes=3)
    with pytest.raises(KeyError, match=r"no table obsm\['gdml_measured'\]; gdml.pp.normalize"):
        to_geojson(adata, "FASN", values="measured")
    adata.obsm["gdml_measured"] = adata.obsm["gdml"] + 1
    (feature,) = (collection := to_geojson(adata, "FASN", values="measured"))["features"]
    assert feature["properties"]["measurements"] == {"FASN (measured)": 1.0}
    assert collection["gdml"] == {"library_id": "A", "values": "measured", "source": "obsm['gdml_measured']"}
    adata.obsm["gdml_evaluated"] = adata.obsm["gdml"] + 2  # on the scale of the predictions
    (feature,) = to_geojson(adata, "FASN", values="measured")["features"]
    assert feature["properties"]["measurements"] == {"FASN (measured)": 2.0}


def test_coordinates_are_those_of_the_image():
    """Spots of a SpatialData lie in its coordinate system; QuPath counts from the corner of the image."""
    (feature,) = to_geojson(tiled([(1300, 300)], side_px=100.0, left=1000.0), "FASN")["features"]
    assert to_shape(feature["geometry"]).bounds == (250, 250, 350, 350)


def test_one_slide_of_several():
    adata = ad.concat(
        [tiled([(300, 300)]), tiled([(600, 300), (900, 300)], library="B")], index_unique="-", uns_merge="unique"
    )
    with pytest.raises(ValueError, match=r"has 2 slides \(A, B\), but QuPath opens one image: .* library_id='A'"):
        to_geojson(adata, "FASN")
    features = to_geojson(adata, "FASN", library_id="B")["features"]
    assert [feature["properties"]["name"] for feature in features] == ["s0-1", "s1-1"]
    assert len(to_geojson(adata[1:], "FASN", library_id="B")["features"]) == 2  # a view
    with pytest.raises(KeyError, match="no such slide. .*'A', 'B'"):
        to_geojson(adata, "FASN", library_id="C17")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    adata = tiled([(300, 300)])
    path = tmp_path / "slide.geojson"
    assert to_geojson(adata, GENES, path) is None
    assert json.loads(path.read_text()) == to_geojson(adata, GENES)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("gdml._files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        to_geojson(adata, "MUC1", path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"genes": "FASM"}, KeyError, r"'FASM' is not in obsm\['gdml'\]. Did you mean 'FASN'"),
        ({"genes": []}, ValueError, "`genes` is empty"),
        ({"color_by": "GNA"}, KeyError, "Did you mean 'GNAS'"),
        ({"values": "predict"}, ValueError, "`values` is 'predict'. Did you mean 'predicted'"),
        ({"shape": "hex"}, ValueError, "`shape` is 'hex'"),
        ({"shape": "circle"}, ValueError, "diameter of its spots is unknown on slide 'A'; pass shape=\"square\""),
        ({"object_type": "cell"}, ValueError, "`object_type` is 'cell'"),
        ({"n_classes": 1}, ValueError, "`n_classes` must be a whole number of at least 2"),
        ({"key": "other"}, KeyError, r"no table obsm\['other'\]; gdml.tl.predict"),
    ],
)
def test_bad_arguments(kwargs, error, message, tmp_path):
    path = tmp_path / "slide.geojson"
    with pytest.raises(error, match=message):
        to_geojson(tiled([(300, 300)]), **{"genes": "FASN", "path": path, **kwargs})
    assert not path.exists()


def test_bad_places(tmp_path):
    adata = tiled([(300, 300)])
    with pytest.raises(FileNotFoundError, match="path: there is no folder .*gone"):
        to_geojson(adata, "FASN", tmp_path / "gone" / "a.geojson")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        to_geojson(adata, "FASN", tmp_path)
    del adata.uns["gdml"]
    with pytest.raises(ValueError, match="size of its tiles is unknown on slide 'A'; call gdml.pp.tile"):
        to_geojson(adata, "FASN")


def test_a_predicted_slide(tmp_path, synthetic_adata):
    """From the verbs to the file."""
    gdml.pp.tile(synthetic_adata, n_side=1)
    gdml.pp.embed(synthetic_adata, tokens="pooled")
    train = synthetic_adata[synthetic_adata.obs["library_id"] != "S1"].copy()
    test = synthetic_adata[synthetic_adata.obs["library_id"] == "S1"].copy()
    gdml.pp.normalize(train, n_genes=20)
    gdml.tl.predict(test, gdml.tl.fit(train, "ridge"))
    gene = test.obsm["gdml"].columns[0]
    to_geojson(test, gene, tmp_path / "s1.geojson", shape="square")
    read = json.loads((tmp_path / "s1.geojson").read_text())
    values = [feature["properties"]["measurements"][gene] for feature in read["features"]]
    np.testing.assert_array_equal(np.float32(values), test.obsm["gdml"][gene])
    side = test.uns["gdml"]["tiles"]["slides"]["S1"]["side_px"]
    for feature, xy in zip(read["features"], test.obsm["spatial"], strict=True):
        polygon = to_shape(feature["geometry"])
        assert polygon.area == pytest.approx(side**2) and polygon.centroid.coords[0] == pytest.approx(tuple(xy))


def test_tiles_of_a_slide_without_spots(synthetic_adata):
    """They are squares of the size of a tile, whatever is recorded as a spot's diameter."""
    entry = synthetic_adata.uns["spatial"]["S1"]["metadata"]
    slide = gdml.pp.grid(entry["source_image_path"], 112, um_per_px=1.0, tissue=False)
    slide.obsm["gdml"] = pd.DataFrame({"FASN": np.arange(slide.n_obs, dtype=float)}, index=slide.obs_names)
    polygons = [to_shape(feature["geometry"]) for feature in to_geojson(slide, "FASN")["features"]]
    assert {polygon.area for polygon in polygons} == {112.0**2}
    assert sum(polygon.area for polygon in polygons) == pytest.approx(unary_union(polygons).area)  # side by side
