"""SpatialData in and out: the elements that are written, and nothing lost on the way there and back."""

import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata.models import Image2DModel, TableModel, get_model
from spatialdata.transformations import Scale, Sequence, Translation, get_transformation, set_transformation

import gdml
from gdml import pp, tl
from gdml.io import _lazy_image as lazy
from gdml.io import from_spatialdata, to_spatialdata
from gdml.slides import open_slide

SIZE = 1100  # px, of the images


@pytest.fixture(scope="module")
def _predicted(cache_dir):
    adata = gdml.datasets.synthetic(n_slides=2, n_patients=2, grid=5, n_genes=40, seed=2)
    pp.tile(adata, n_side=3)
    pp.embed(adata, "stain", tokens="pooled")
    pp.normalize(adata, n_genes=12)
    model = tl.fit(adata, "ridge")
    with pytest.warns(UserWarning, match="was trained on"):
        tl.predict(adata, model)
    return adata, model


@pytest.fixture
def predicted(_predicted):
    return _predicted[0].copy()


@pytest.fixture
def without_genes(predicted):
    """As a slide with an image alone has it: predictions in obsm, tiles that touch."""
    whole = predicted.copy()
    slide = AnnData(obs=whole.obs, obsm=dict(whole.obsm), uns=whole.uns)
    for entry in slide.uns["spatial"].values():
        entry["scalefactors"]["spot_diameter_fullres"] = 190.0  # 200 px apart
    return slide


def path_of(adata, slide):
    return adata.uns["spatial"][slide]["metadata"]["source_image_path"]


# from an AnnData


def test_elements_have_the_names_of_spatialdata_io(predicted):
    sdata = to_spatialdata(predicted)
    assert set(sdata.images) == {f"{s}_{kind}_image" for s in ("S1", "S2") for kind in ("full", "hires", "lowres")}
    assert set(sdata.shapes) == {"S1", "S2"} and list(sdata.tables) == ["table"]
    for slide in ("S1", "S2"):
        places = {
            name: {f"{slide}_full_image", f"{slide}_hires_image", f"{slide}_lowres_image", slide} for name in [slide]
        }
        places |= {f"{slide}_downscaled_{kind}": {f"{slide}_{kind}_image", slide} for kind in ("hires", "lowres")}
        for system, members in places.items():
            found = sdata.filter_by_coordinate_system(system)
            assert {*found.images, *found.shapes} == members
    for _, _, element in sdata.gen_elements():
        get_model(element)().validate(element)
    attrs = sdata["table"].uns["spatialdata_attrs"]
    assert attrs == {"region": ["S1", "S2"], "region_key": "region", "instance_key": "spot_id"}
    assert "images" not in sdata["table"].uns["spatial"]["S1"]


def test_thumbnails_and_shapes_lie_on_the_full_image(predicted):
    """Corners of the thumbnails are those of the full image, in every coordinate system."""
    sdata = to_spatialdata(predicted)
    for kind in ("full", "hires", "lowres"):
        extent = sd.get_extent(sdata[f"S1_{kind}_image"], coordinate_system="S1")
        np.testing.assert_allclose([extent["x"], extent["y"]], [(0, SIZE)] * 2)
    own = predicted.obs["library_id"] == "S1"
    for system, factor in {"S1": 1, "S1_downscaled_hires": 1, "S1_downscaled_lowres": 600 / SIZE}.items():
        centers = sd.get_centroids(sdata["S1"], system).compute().to_numpy()
        np.testing.assert_allclose(centers, predicted.obsm["spatial"][own] * factor)


def test_the_full_image_is_read_block_by_block_when_it_is_needed(predicted, monkeypatch):
    calls, read = [], lazy._read_path
    monkeypatch.setattr(lazy, "_read_path", lambda *args: calls.append(args[1:]) or read(*args))
    monkeypatch.setattr(lazy, "_BLOCK", 512)
    monkeypatch.setattr(lazy, "_SMALLEST", 256)
    image = to_spatialdata(predicted)["S1_full_image"]
    assert calls == []
    slide = open_slide(path_of(predicted, "S1"))
    pixels = image["scale0"]["image"][:, 600:700, 560:660].compute().to_numpy()
    np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), slide.read_region(560, 600, 100, 100, (100, 100)))
    assert calls == [(512, 512, 512, 512, 1)]
    half = np.moveaxis(image["scale1"]["image"].compute().to_numpy(), 0, -1)
    np.testing.assert_array_equal(half[:512, :512], slide.read_region(0, 0, 1024, 1024, (512, 512)))
    np.testing.assert_array_equal(half[512:, 512:], slide.read_region(1024, 1024, 76, 76, (38, 38)))
    assert half.shape == (550, 550, 3) and list(image.children) == ["scale0", "scale1", "scale2"]


def test_levels_of_an_image_extend_alike(monkeypatch):
    monkeypatch.setattr(lazy, "_SMALLEST", 64)
    tree = lazy.lazy_image(np.zeros((301, 207, 3), np.uint8), {"global": 1.0})
    levels = [child["image"] for child in tree.children.values()]
    assert [level.shape for level in levels] == [(3, 301, 207), (3, 150, 103), (3, 75, 51)]
    for level in levels:
        for axis, side in (("y", 301), ("x", 207)):
            step = side / level.sizes[axis]
            np.testing.assert_allclose(level[axis], step / 2 + step * np.arange(level.sizes[axis]))


@pytest.mark.parametrize("multiple", [1, 4])
def test_blocks_of_a_file_in_any_order(predicted, tmp_path, multiple, monkeypatch):
    """A JPEG is decoded once; a pyramid is read from its own levels."""
    import pyvips

    source = pyvips.Image.new_from_file(path_of(predicted, "S1"))
    path = tmp_path / ("a.jpg" if multiple == 1 else "a.tif")
    source.write_to_file(str(path), **({} if multiple == 1 else {"tile": True, "pyramid": True, "compression": "lzw"}))
    monkeypatch.setattr(lazy, "_BLOCK", 256)
    image = lazy.lazy_image(path, {"global": 1.0})["scale0"]["image"].compute(scheduler="threads").to_numpy()
    slide = open_slide(path)
    np.testing.assert_array_equal(np.moveaxis(image, 0, -1), slide.read_region(0, 0, *slide.size, slide.size))


def test_spots_that_touch_are_squares_others_circles(predicted, without_genes):
    circles = to_spatialdata(predicted, image=False)["S1"]
    assert set(circles.geometry.geom_type) == {"Point"} and (circles["radius"] == 50).all()
    squares = to_spatialdata(without_genes, image=False)["S1"]
    assert set(squares.geometry.geom_type) == {"Polygon"}
    np.testing.assert_allclose(squares.geometry.area, 190**2)
    large = without_genes.copy()
    large.obs["array_row"] += 500 * (large.obs["array_row"] > 2)  # more rows than an array of legacy ST
    assert set(to_spatialdata(large, image=False)["S1"].geometry.geom_type) == {"Polygon"}
    hexagonal = without_genes.copy()
    hexagonal.obs["array_col"] = 2 * hexagonal.obs["array_col"] + hexagonal.obs["array_row"] % 2
    assert set(to_spatialdata(hexagonal, image=False)["S1"].geometry.geom_type) == {"Point"}


def test_predictions_of_slides_without_genes_are_a_layer_over_the_panel(without_genes, _predicted):
    without_genes.obsm["gdml_other"] = without_genes.obsm["gdml"].iloc[:, :3].add_suffix("-x")
    without_genes.uns["gdml_other"] = {"predict": {"name": "other"}}
    table = to_spatialdata(without_genes, image=False)["table"]
    panel = list(_predicted[1].panel)
    assert table.X is None and list(table.var_names) == [*panel, *(f"{gene}-x" for gene in panel[:3])]
    np.testing.assert_array_equal(table[:, panel].layers["gdml"], without_genes.obsm["gdml"])
    assert np.isnan(table.layers["gdml"][:, 12:]).all() and np.isnan(table.layers["gdml_other"][:, :12]).all()
    assert (
        to_spatialdata(AnnData(obs=without_genes.obs, obsm={"spatial": without_genes.obsm["spatial"]}))["table"].n_vars
        == 0
    )


def test_a_predicted_gene_is_drawn(without_genes, _predicted):
    pytest.importorskip("spatialdata_plot")
    import matplotlib.pyplot as plt

    sdata, gene = to_spatialdata(without_genes), _predicted[1].panel[3]
    ax = plt.figure().add_subplot()
    sdata.pl.render_images("S1_lowres_image").pl.render_shapes("S1", color=gene, table_layer="gdml").pl.show(
        "S1", ax=ax
    )
    values = without_genes.obsm["gdml"].loc[without_genes.obs["library_id"] == "S1", gene]
    drawn = [one.get_facecolor() for one in ax.collections if len(one.get_paths()) == len(values)]
    low, high = values.min(), values.max()
    np.testing.assert_allclose(drawn[0], plt.get_cmap("viridis")((values - low) / (high - low)), atol=1e-2)
    plt.close("all")


def test_names_that_spatialdata_does_not_allow(predicted):
    renamed = {"S1": "biopsy 12/A", "S2": "Biopsy 12:a"}
    predicted.obs["library_id"] = predicted.obs["library_id"].map(renamed)
    predicted.uns["spatial"] = {renamed[k]: v for k, v in predicted.uns["spatial"].items()}
    sdata = to_spatialdata(predicted)
    assert set(sdata.shapes) == {"biopsy_12_A", "Biopsy_12_a_2"}
    assert list(from_spatialdata(sdata).uns["spatial"]) == list(renamed.values())


def test_a_slide_without_its_image(predicted):
    del predicted.uns["spatial"]["S1"]["metadata"]["source_image_path"]
    assert "S1_full_image" not in to_spatialdata(predicted).images
    given = to_spatialdata(predicted, image={"S1": np.zeros((SIZE, SIZE, 3), np.uint8), "S2": path_of(predicted, "S2")})
    assert not given["S1_full_image"]["scale0"]["image"].max().compute().item()
    predicted.uns["spatial"]["S1"]["metadata"]["source_image_path"] = "gone.jpg"
    with pytest.raises(FileNotFoundError, match=r"'gone.jpg'.*image=\{'S1': 'slide.tif'\}"):
        to_spatialdata(predicted)
    assert "S2_full_image" not in to_spatialdata(predicted, image=False).images


def test_the_anndata_is_left_alone(predicted):
    before = predicted.copy()
    to_spatialdata(predicted)
    assert list(predicted.obs) == list(before.obs) and "images" in predicted.uns["spatial"]["S1"]
    assert predicted.uns.keys() == before.uns.keys()


def test_spatialdata_is_an_extra(predicted, monkeypatch):
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    with pytest.raises(ImportError, match=r"pip install 'gdml\[spatial\]'"):
        to_spatialdata(predicted)


# there and back

position = st.tuples(st.floats(0, 60), st.floats(0, 40))
placement = st.tuples(st.floats(0.1, 10), st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))


@settings(max_examples=8, deadline=None)
@given(
    xy=st.lists(position, min_size=2, max_size=8, unique=True),
    names=st.lists(st.text("aB 1/_.é", min_size=1, max_size=4), min_size=2, max_size=2, unique=True),
    diameter=st.floats(0.5, 20),
    placement=placement,
)
def test_there_and_back(xy, names, diameter, placement):
    n = len(xy)
    adata = AnnData(np.ones((n, 2), np.float32), obs=pd.DataFrame(index=[f"spot {i}" for i in range(n)]))
    adata.obs["library_id"] = pd.Categorical([names[i % 2] for i in range(n)])
    adata.obsm["spatial"] = np.array(xy)
    adata.obsm["gdml"] = pd.DataFrame(np.random.default_rng(0).normal(size=(n, 3)), adata.obs_names, list("abc"))
    factors = {"spot_diameter_fullres": diameter}
    adata.uns["spatial"] = {name: {"scalefactors": dict(factors), "metadata": {"spot_pitch_um": 7.0}} for name in names}
    image = dict.fromkeys(names, np.full((40, 60, 3), 200, np.uint8))
    sdata = to_spatialdata(adata, image=image)
    scale, left, top = placement
    for element in [*sdata.images.values(), *sdata.shapes.values()]:  # moved together, in all of their systems
        for system, own in get_transformation(element, get_all=True).items():
            moved = Sequence([own, Scale([scale, scale], ("x", "y")), Translation([left, top], ("x", "y"))])
            set_transformation(element, moved, system)
    back = from_spatialdata(sdata)
    np.testing.assert_allclose(back.obsm["spatial"], adata.obsm["spatial"], atol=1e-6)
    assert list(back.obs_names) == list(adata.obs_names) and list(back.var_names) == list(adata.var_names)
    assert back.obs["library_id"].astype(str).tolist() == adata.obs["library_id"].astype(str).tolist()
    pd.testing.assert_frame_equal(back.obsm["gdml"], adata.obsm["gdml"])
    for name in names:
        entry = back.uns["spatial"][name]
        assert entry["scalefactors"]["spot_diameter_fullres"] == pytest.approx(diameter)
        assert entry["scalefactors"]["tissue_hires_scalef"] == 1 and entry["metadata"]["spot_pitch_um"] == 7
        assert entry["images"]["hires"].shape == (40, 60, 3)


def test_there_and_back_through_a_store(predicted, _predicted, tmp_path):
    to_spatialdata(predicted).write(tmp_path / "x.zarr")
    sdata = sd.read_zarr(tmp_path / "x.zarr")
    back = from_spatialdata(sdata)
    assert path_of(back, "S1") == path_of(predicted, "S1")  # the same pixels
    pd.testing.assert_frame_equal(back.obsm["gdml"], predicted.obsm["gdml"])

    # where the files are gone, the store has the images: for the AnnData, and for verbs on the SpatialData
    for name, entry in sdata["table"].uns["spatial"].items():
        entry["metadata"]["source_image_path"] = "gone.jpg"
        sdata["table"].uns["gdml"]["tiles"]["slides"][name]["image"] = "gone.jpg"
    del sdata["table"].uns["gdml"]["features"]
    pp.embed(sdata, "stain", tokens="pooled")
    np.testing.assert_allclose(sdata["table"].obsm["X_stain"], predicted.obsm["X_stain"])
    back = from_spatialdata(sdata)
    assert path_of(back, "S1") == str(tmp_path / "x.zarr" / "images" / "S1_full_image")
    back.write_h5ad(tmp_path / "x.h5ad")
    del back.uns["gdml"], back.obsm["gdml"]
    tl.predict(back, _predicted[1])
    np.testing.assert_allclose(back.obsm["gdml"], predicted.obsm["gdml"], atol=1e-5)
    np.testing.assert_array_equal(back.uns["spatial"]["S1"]["images"]["hires"].shape, (SIZE, SIZE, 3))


def test_a_file_with_other_pixels_is_not_named(predicted, tmp_path):
    shutil.copy(path_of(predicted, "S2"), tmp_path / "other.jpg")
    sdata = to_spatialdata(predicted)
    sdata["table"].uns["spatial"]["S1"]["metadata"]["source_image_path"] = str(tmp_path / "other.jpg")
    back = from_spatialdata(sdata)
    assert "source_image_path" not in back.uns["spatial"]["S1"]["metadata"]
    with pytest.raises(ValueError, match="only downscaled images"):
        pp.tile(back)


def test_an_image_that_was_replaced_in_memory_is_not_the_one_in_the_store(predicted, tmp_path):
    to_spatialdata(predicted).write(tmp_path / "x.zarr")
    sdata = sd.read_zarr(tmp_path / "x.zarr")
    for entry in sdata["table"].uns["spatial"].values():
        entry["metadata"]["source_image_path"] = "gone.jpg"
    places = get_transformation(sdata["S1_full_image"], get_all=True)
    white = np.full((3, SIZE, SIZE), 255, np.uint8)
    sdata.images["S1_full_image"] = Image2DModel.parse(white, dims=("c", "y", "x"), transformations=places)
    back = from_spatialdata(sdata)
    assert "source_image_path" not in back.uns["spatial"]["S1"]["metadata"]
    assert path_of(back, "S2") == str(tmp_path / "x.zarr" / "images" / "S2_full_image")


def test_scale_factors_of_other_coordinates_are_left_out(predicted):
    predicted.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"] = 0.5
    sdata = to_spatialdata(predicted)
    factors = lambda: from_spatialdata(sdata).uns["spatial"]["S1"]["scalefactors"]
    assert factors()["microns_per_pixel"] == 0.5
    sdata["table"].obsm["spatial"] = sdata["table"].obsm["spatial"] / 2
    assert "microns_per_pixel" not in factors()


# from a SpatialData of others


def test_elements_can_be_chosen(predicted):
    sdata = to_spatialdata(predicted)
    one = from_spatialdata(sdata, shapes="S2")
    assert list(one.uns["spatial"]) == ["S2"] and one.n_obs == (predicted.obs["library_id"] == "S2").sum()
    with pytest.raises(KeyError, match="`shapes` names 'S3'.*Did you mean"):
        from_spatialdata(sdata, shapes="S3")
    with pytest.raises(KeyError, match="`table` is 'tabel'.*Did you mean 'table'"):
        from_spatialdata(sdata, table="tabel")
    with pytest.raises(TypeError, match="must be a SpatialData, found AnnData"):
        from_spatialdata(predicted)
    sdata.tables["two"] = one
    assert from_spatialdata(sdata, shapes=["S1", "S2"]).n_obs == predicted.n_obs  # the table that has both


def test_an_element_without_a_table_gives_spots_without_genes(predicted, _predicted):
    sdata = to_spatialdata(predicted)
    expected = predicted[predicted.obs["library_id"] == "S1"]
    del sdata.tables["table"]
    slide = from_spatialdata(sdata, shapes="S1")
    assert slide.shape == (expected.n_obs, 0)
    np.testing.assert_allclose(slide.obsm["spatial"], expected.obsm["spatial"])
    scale = expected.uns["gdml"]["tiles"]["slides"]["S1"]["um_per_px"]
    tl.predict(slide, _predicted[1], image=path_of(predicted, "S1"), um_per_px=float(scale))
    np.testing.assert_allclose(slide.obsm["gdml"], expected.obsm["gdml"], atol=1e-5)


def write_back(sdata):
    adata = from_spatialdata(sdata, table="table")
    adata.obs["new"] = 1
    sdata.tables["table"] = adata
    return sdata


def test_the_table_can_be_put_back(predicted):
    sdata = write_back(to_spatialdata(predicted))
    assert "new" in sdata["table"].obs
    TableModel().validate(sdata["table"])


# real slides


@pytest.mark.real
def test_a_real_section_there_and_back(her2st_section):
    sdata = to_spatialdata(her2st_section)
    back = from_spatialdata(sdata)
    np.testing.assert_allclose(back.obsm["spatial"], her2st_section.obsm["spatial"])
    assert path_of(back, "C6") == path_of(her2st_section, "C6")
    expected = her2st_section.uns["spatial"]["C6"]["scalefactors"]["spot_diameter_fullres"]
    assert back.uns["spatial"]["C6"]["scalefactors"]["spot_diameter_fullres"] == pytest.approx(expected)
    pp.tile(back)
    pp.tile(sdata)
    one, other = (data.uns["gdml"]["tiles"]["slides"]["C6"] for data in (back, sdata["table"]))
    assert one["um_per_px"] == other["um_per_px"] and (one["width"], one["height"]) == (9288, 9907)


@pytest.mark.real
def test_a_slide_as_spatialdata_io_reads_it(data_dir):
    """The layout of spatialdata-io's Visium reader, and of the reader itself where it is installed."""
    folder = data_dir / "visium_colon"
    reader = pytest.importorskip("spatialdata_io")
    sdata = reader.visium(
        folder,
        dataset_id="colon",
        counts_file="filtered_feature_bc_matrix.h5",
        fullres_image_file=folder / "colon_d0_HE.jpg",
    )
    pp.tile(sdata)
    table = sdata["table"]
    record = table.uns["gdml"]["tiles"]["slides"]["colon"]
    assert record["image"] == "SpatialData image 'colon_full_image'" and record["um_per_px_source"] == "spot pitch"
    assert record["um_per_px"] == pytest.approx(0.97, abs=0.005)
    assert (
        table.uns["gdml"]["tiles"]["spatial_key"] == "spatial"
    )  # spatialdata-io's own coordinates are those of the image
    ours = to_spatialdata(from_spatialdata(sdata), image=False)
    assert set(ours.images) | {"colon_full_image"} == set(sdata.images) and set(ours.shapes) == set(sdata.shapes)
    assert set(ours.coordinate_systems) == set(sdata.coordinate_systems)
    np.testing.assert_allclose(ours["colon"]["radius"], sdata["colon"]["radius"])
