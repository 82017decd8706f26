"""A SpatialData as its spots see it: which table, which image, and where on the image the centroids lie."""

import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from anndata import AnnData
from geopandas import GeoDataFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale

import gdml
from gdml import pp
from gdml.spots.resolve import Spots

WIDTH, HEIGHT = 90, 60
XY = np.array([[10.0, 20.0], [30.0, 20.0], [10.0, 40.0], [30.0, 40.0], [50.0, 40.0]])
IDENTITY = {"global": Identity()}


def rgb(transformations=IDENTITY, **options):
    pixels = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH), np.uint8)
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=dict(transformations), **options)


def circles(xy=XY, transformations=IDENTITY, index=None, radius=4.0):
    index = np.arange(len(xy)) if index is None else index
    return ShapesModel.parse(xy, geometry=0, radius=radius, index=index, transformations=dict(transformations))


def table(regions, instances, **obs):
    adata = AnnData(np.ones((len(regions), 3), np.float32))
    adata.obs_names = [f"s{i}" for i in range(len(regions))]
    adata.obs["region"], adata.obs["instance"] = pd.Categorical(regions), instances
    for name, values in obs.items():
        adata.obs[name] = values
    return TableModel.parse(adata, region=list(np.unique(regions)), region_key="region", instance_key="instance")


def make(shapes=None, images=None, tables=None, **elements):
    shapes = {"spots": circles()} if shapes is None else shapes
    images = {"he": rgb()} if images is None else images
    tables = {"table": table(["spots"] * len(XY), np.arange(len(XY)))} if tables is None else tables
    return sd.SpatialData(images=images, shapes=shapes, tables=tables, **elements)


def affine(matrix):
    return Affine(np.vstack([matrix, [0, 0, 1]]), ("x", "y"), ("x", "y"))


number = st.floats(-500, 500)
similarity = st.tuples(st.floats(0.05, 20), st.floats(0, 2 * np.pi), st.booleans(), number, number)


@settings(max_examples=25, deadline=None)
@given(of_image=similarity, of_shapes=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10), number, number))
def test_spots_lie_where_they_were_drawn_on_the_image(of_image, of_shapes):
    scale, angle, mirrored, left, top = of_image
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn = turn @ np.diag([-1 if mirrored else 1, 1])
    in_system = XY @ turn.T + (left, top)  # the pixels XY of the image, in the coordinate system
    by = np.array(of_shapes[:2])
    shapes = circles((in_system - of_shapes[2:]) / by, {"um": affine(np.c_[np.diag(by), of_shapes[2:]])})
    sdata = make({"spots": shapes}, {"he": rgb({"um": affine(np.c_[turn, [left, top]])})})
    spots = Spots.resolve(sdata)
    np.testing.assert_allclose(spots.xy, XY, atol=1e-6)
    assert spots.entry("spots")["scalefactors"]["spot_diameter_fullres"] == pytest.approx(
        8 * np.sqrt(by.prod()) / scale
    )
    slide = spots.image("spots")
    assert slide.size == (WIDTH, HEIGHT) and slide.name == "SpatialData image 'he'"


def test_instances_are_matched_by_name_not_by_order():
    order = np.array([3, 0, 4])
    shapes = {"spots": circles(index=np.array([50, 20, 10, 40, 30]))}
    sdata = make(shapes, tables={"table": table(["spots"] * 3, np.array([40, 50, 30]))})
    np.testing.assert_array_equal(Spots.resolve(sdata).xy, XY[order])
    text = {"spots": circles(index=pd.Index(list("edcba")))}
    sdata = make(text, tables={"table": table(["spots"] * 3, list("bea"))})
    np.testing.assert_array_equal(Spots.resolve(sdata).xy, XY[order])


def test_squares_and_labels_have_centroids():
    low, high = XY - 5, XY + 5
    squares = GeoDataFrame(geometry=shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1]))
    spots = Spots.resolve(make({"spots": ShapesModel.parse(squares, transformations=dict(IDENTITY))}))
    np.testing.assert_allclose(spots.xy, XY)
    assert spots.entry("spots")["scalefactors"] == {"spot_diameter_fullres": pytest.approx(10)}

    pixels = np.zeros((HEIGHT, WIDTH), np.int32)
    for i, (x, y) in enumerate(XY.astype(int)):
        pixels[y - 3 : y + 3, x - 3 : x + 3] = i + 1
    labels = {"cells": Labels2DModel.parse(pixels, dims=("y", "x"), transformations=dict(IDENTITY))}
    sdata = make({}, labels=labels, tables={"table": table(["cells"] * len(XY), np.arange(len(XY)) + 1)})
    np.testing.assert_allclose(Spots.resolve(sdata).xy, XY)


def test_bins_of_visium_hd_state_their_size_by_name():
    name = "sample_square_016um"
    tables = {"t": table([name] * len(XY), np.arange(len(XY)))}
    spots = Spots.resolve(make({name: circles()}, tables=tables))
    assert spots.entry(name)["scalefactors"]["bin_size_um"] == 16


def two_slides(**obs):
    shapes = {"a": circles(XY, {"a": Identity()}), "b": circles(XY + 5, {"b": Identity()})}
    images = {"a_full_image": rgb({"a": Identity()}), "b_full_image": rgb({"b": Scale([2, 2], ("x", "y"))})}
    regions, instances = ["a", "b", "b", "a"], np.array([1, 0, 4, 2])
    return make(shapes, images, {"table": table(regions, instances, **obs)})


def test_each_region_is_a_slide_with_its_own_image():
    spots = Spots.resolve(two_slides())
    assert {name: rows.tolist() for name, rows in spots.slides.items()} == {"a": [0, 3], "b": [1, 2]}
    assert {name: one.image for name, one in spots.placed.items()} == {"a": "a_full_image", "b": "b_full_image"}
    np.testing.assert_allclose(spots.xy, [XY[1], (XY[0] + 5) / 2, (XY[4] + 5) / 2, XY[2]])
    named = Spots.resolve(two_slides(library_id=["one", "two", "two", "one"]))
    assert list(named.slides) == ["one", "two"] and named.placed["two"].region == "b"
    with pytest.raises(ValueError, match=r"Slide 'all' has spots of several elements \(a, b\).*library_key='region'"):
        Spots.resolve(two_slides(library_id=["all"] * 4))
    assert list(Spots.resolve(two_slides(library_id=["all"] * 4), library_key="region").slides) == ["a", "b"]


def test_the_image_of_full_resolution_is_chosen_by_its_name():
    images = {f"spots_{kind}_image": rgb() for kind in ("full", "hires", "lowres")}
    assert Spots.resolve(make(images=images)).placed["spots"].image == "spots_full_image"
    assert Spots.resolve(make(images={"spots_he": rgb(), "dapi": rgb()})).placed["spots"].image == "spots_he"
    multiscale = make(images={"he": rgb(scale_factors=[2])})
    np.testing.assert_array_equal(
        Spots.resolve(multiscale).image("spots").read_region(3, 4, 20, 10, (20, 10)),
        Spots.resolve(make()).image("spots").read_region(3, 4, 20, 10, (20, 10)),
    )


def test_coordinates_of_the_table_are_used_only_where_they_are_those_of_the_image():
    sdata = make()
    sdata["table"].obsm["spatial"] = XY + 0.3  # what a reader rounded
    spots = Spots.resolve(sdata)
    np.testing.assert_array_equal(spots.xy, XY + 0.3)
    assert spots.spatial_key == "spatial"

    elsewhere = 4 * XY
    sdata["table"].obsm["spatial"] = elsewhere.copy()
    sdata["table"].uns["spatial"] = {"spots": {"scalefactors": {"spot_diameter_fullres": 32.0}}}
    spots = Spots.resolve(sdata)
    np.testing.assert_array_equal(spots.xy, XY)
    assert spots.spatial_key == "gdml_spatial"
    assert spots.entry("spots")["scalefactors"]["spot_diameter_fullres"] == 8  # not that of the other pixels
    pp.tile(sdata, tile_um=None, tile_px=8, check=False)
    np.testing.assert_array_equal(sdata["table"].obsm["spatial"], elsewhere)
    np.testing.assert_array_equal(sdata["table"].obsm["gdml_spatial"], XY)
    assert sdata["table"].uns["gdml"]["tiles"]["spatial_key"] == "gdml_spatial"
    np.testing.assert_array_equal(Spots.resolve(sdata["table"]).xy, XY)  # the table alone
    np.testing.assert_array_equal(Spots.resolve(sdata, spatial_key="spatial").xy, elsewhere)


def test_spots_outside_their_image_are_dropped_from_the_table():
    sdata = make({"spots": circles(XY + [45, 0])})  # the last lies at x = 95 of 90
    with pytest.raises(ValueError, match="1 of 5 spots of slide 'spots' lie outside"):
        pp.tile(sdata, tile_um=None, tile_px=8, check=False)
    pp.tile(sdata, tile_um=None, tile_px=8, check=False, outside="drop")
    assert sdata["table"].obs_names.tolist() == ["s0", "s1", "s2", "s3"] and len(sdata["spots"]) == 5
    np.testing.assert_array_equal(Spots.resolve(sdata).xy, XY[:4] + [45, 0])


def test_a_copy_leaves_the_table_alone():
    sdata = make()
    copy = pp.tile(sdata, tile_um=None, tile_px=8, check=False, copy=True)
    assert isinstance(copy, AnnData) and "gdml" in copy.uns and "gdml" not in sdata["table"].uns


# what is refused, and the call that mends it


def test_several_tables():
    tables = {name: table(["spots"] * 5, np.arange(5)) for name in ("a", "b")}
    sdata = make(tables=tables)
    with pytest.raises(ValueError, match=r"2 tables \(a, b\).*gdml.io.from_spatialdata\(sdata, table='a'\)"):
        pp.tile(sdata)
    adata = gdml.io.from_spatialdata(sdata, table="a")
    pp.tile(adata, tile_um=None, tile_px=8, check=False, image=np.full((HEIGHT, WIDTH, 3), 200, np.uint8))
    sdata.tables["a"] = adata
    assert "gdml" in sdata["a"].uns and "gdml" not in sdata["b"].uns


def test_no_table():
    with pytest.raises(ValueError, match=r"without a table; for an image alone, .*gdml.pp.grid\(sdata\['he'\]\)"):
        pp.tile(make(tables={}))
    adata = gdml.io.from_spatialdata(make(tables={}), shapes="spots")
    assert adata.shape == (5, 0)
    np.testing.assert_array_equal(adata.obsm["spatial"], XY)
    with pytest.raises(ValueError, match=r"without a table; gdml.io.from_spatialdata\(sdata, shapes=...\)"):
        pp.tile(make(images={}, tables={}))


def test_a_table_that_annotates_nothing():
    alone = AnnData(np.ones((5, 3), np.float32))
    with pytest.raises(ValueError, match="annotates no shapes.*set_table_annotates_spatialelement"):
        pp.tile(make(tables={"table": alone}))


def test_checks_of_the_table_name_it():
    sdata = make()
    sdata["table"].obs_names = ["s0"] * 5
    with pytest.raises(ValueError, match=r"call sdata.tables\['table'\].obs_names_make_unique\(\)"):
        pp.tile(sdata)
    sdata.tables["table"] = make()["table"][:4]
    with pytest.raises(ValueError, match=r"is a view: call sdata.tables\['table'\] = sdata.tables\['table'\].copy\(\)"):
        pp.tile(sdata)


def test_several_images():
    sdata = make(images={"he": rgb(), "dapi": rgb(), "other": rgb({"elsewhere": Identity()})})
    with pytest.raises(ValueError, match=r"shares a coordinate system with 2 images \(he, dapi\).*sdata.subset"):
        pp.tile(sdata)
    assert gdml.io.from_spatialdata(sdata, image={"spots": "he"}).n_obs == 5
    part = sdata.subset(["spots", "he", "table"])
    pp.tile(part, tile_um=None, tile_px=8, check=False)
    assert "gdml" in sdata["table"].uns  # the same table
    with pytest.raises(KeyError, match="`image` is 'hee'.*Did you mean 'he'"):
        gdml.io.from_spatialdata(sdata, image="hee")
    with pytest.raises(KeyError, match="`image` names the unknown slide 'spot'.*Did you mean 'spots'"):
        gdml.io.from_spatialdata(sdata, image={"spot": "he"})


def test_a_downscaled_image_is_refused_unless_it_is_named():
    sdata = make(images={"spots_hires_image": rgb({"global": Scale([4, 4], ("x", "y"))})})
    with pytest.raises(
        ValueError, match=r"only downscaled images \(spots_hires_image\).*from_spatialdata\(sdata, image="
    ):
        pp.tile(sdata)
    adata = gdml.io.from_spatialdata(sdata, image={"spots": "spots_hires_image"})
    np.testing.assert_array_equal(adata.obsm["spatial"], XY / 4)


def test_an_image_in_another_coordinate_system():
    sdata = make(images={"he": rgb({"mm": Identity()})})
    with pytest.raises(ValueError, match=r"'spots' shares no coordinate system.*\(?'he' in mm.*set_transformation"):
        pp.tile(sdata)
    with pytest.raises(ValueError, match=r"'spots' \(in global\) and the image 'he' \(in mm\) do not share"):
        gdml.io.from_spatialdata(sdata, image="he")
    with pytest.raises(ValueError, match="the images are: none"):
        pp.tile(make(images={}))


def test_coordinate_systems_that_disagree():
    image = rgb({"global": Identity(), "um": Scale([0.5, 0.5], ("x", "y"))})
    agreeing = circles(XY, {"global": Identity(), "um": Scale([0.5, 0.5], ("x", "y"))})
    np.testing.assert_array_equal(Spots.resolve(make({"spots": agreeing}, {"he": image})).xy, XY)
    sdata = make({"spots": circles(XY, {"global": Identity(), "um": Identity()})}, {"he": image})
    with pytest.raises(ValueError, match=r"by the coordinate system 'um' than by 'global'.*coordinate_system='um'"):
        pp.tile(sdata)
    np.testing.assert_array_equal(gdml.io.from_spatialdata(sdata, coordinate_system="um").obsm["spatial"], 2 * XY)


@pytest.mark.parametrize("matrix", [[[1, 0.1, 0], [0, 1, 0]], [[1, 0, 0], [0, 1.1, 0]]], ids=["sheared", "stretched"])
def test_a_sheared_or_stretched_image(matrix):
    sdata = make(images={"he": rgb({"global": affine(matrix)})})
    with pytest.raises(ValueError, match=r"'he' is sheared or stretched.*sdata\['he'\] = spatialdata.transform"):
        pp.tile(sdata)
    sdata["he"] = sd.transform(sdata["he"], to_coordinate_system="global")  # what the message says
    np.testing.assert_allclose(Spots.resolve(sdata).xy, XY, atol=1e-6)


@pytest.mark.parametrize("matrix", [[[0, 0, 5], [0, 0, 5]], [[np.nan, 0, 0], [0, 1, 0]]], ids=["singular", "nan"])
@pytest.mark.parametrize("broken", ["image", "shapes"])
def test_a_broken_transformation(broken, matrix):
    bad = {"global": affine(matrix)}
    sdata = make({"spots": circles(transformations=bad)}) if broken == "shapes" else make(images={"he": rgb(bad)})
    with pytest.raises(ValueError, match="has no inverse.*set_transformation"):
        pp.tile(sdata)
    assert "gdml" not in sdata["table"].uns


def test_spots_that_the_shapes_lack():
    sdata = make(tables={"table": table(["spots"] * 3, np.array([0, 1, 77]))})
    with pytest.raises(KeyError, match=r"1 of 3 spots of the table are not in 'spots' \(instances 77\)"):
        pp.tile(sdata)
    sdata = make()
    del sdata.shapes["spots"]
    with pytest.raises(KeyError, match="annotates 'spots', which the SpatialData does not have"):
        pp.tile(sdata)


def test_verbs_that_need_no_place_work_without_an_image():
    sdata = make(images={})
    sdata["table"].X = np.random.default_rng(0).poisson(9, (5, 3)).astype(np.float32) + 1
    pp.normalize(sdata, n_genes=2)
    assert "gdml_measured" in sdata["table"].obsm
