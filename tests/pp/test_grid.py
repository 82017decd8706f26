"""Tiles on the tissue of slides that have only an image."""

import json
import re
import warnings

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from hypothesis import given
from hypothesis import strategies as st

import gdml
from gdml.slides import open_slide
from gdml.slides.geometry import grid_kind, um_per_px_from_grid
from gdml.slides.lattice import lattice
from gdml.spots.resolve import Spots

SIZE = 1200, 900  # width, height of the image


@pytest.fixture(scope="module")
def image():
    """Glass with a rectangle of texture, x 300 to 900 and y 200 to 700."""
    rng = np.random.default_rng(0)
    image = np.full((SIZE[1], SIZE[0], 3), 245, np.uint8)
    image[200:700, 300:900] = rng.integers(60, 200, (500, 600, 3))
    return image


@pytest.fixture
def file(image, tmp_path):
    from PIL import Image

    path = tmp_path / "biopsy 7.png"
    Image.fromarray(image).save(path)
    return path


def grid(image, tile_um=50, **options):
    return gdml.pp.grid(image, tile_um, **{"um_per_px": 0.5, "tissue": False, **options})


# -- the lattice --------------------------------------------------------------------------------------------------------

boxes = st.tuples(
    st.floats(-500, 500), st.floats(-500, 500), st.floats(1, 800), st.floats(1, 800)
).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))  # fmt: skip


@given(boxes, st.floats(20, 120), st.floats(20, 200), st.sampled_from(["square", "hex"]))
def test_tiles_of_a_lattice_lie_inside_the_box_and_no_other_one_would(box, side, spacing, layout):
    xy, row, col = lattice(box, side, spacing, layout)
    low, high = np.array(box[:2]) + side / 2, np.array(box[2:]) - side / 2
    assert ((xy >= low - 1e-3) & (xy <= high + 1e-3)).all()
    # every position of the endless lattice that would fit is there
    step = spacing * (np.sqrt(3) / 2 if layout == "hex" else 1)
    rows = np.arange(0, 60)
    expected = 0
    for r in rows[low[1] + rows * step <= high[1] + 1e-6 * spacing]:
        first = low[0] + (spacing / 2 if layout == "hex" and r % 2 else 0)
        expected += (first + np.arange(0, 60) * spacing <= high[0] + 1e-6 * spacing).sum()
    assert len(xy) == len(row) == len(col) == expected
    assert len(set(zip(row.tolist(), col.tolist(), strict=True))) == expected
    if expected:
        np.testing.assert_allclose(xy[0], low)


@pytest.mark.parametrize("layout", ["square", "hex"])
@pytest.mark.parametrize("spacing_um", [None, 35.0, 80.0])
def test_the_scale_follows_from_the_written_positions(image, layout, spacing_um):
    slide = grid(image, 40, spacing_um=spacing_um, layout=layout, um_per_px=0.47)
    row, col = slide.obs["array_row"], slide.obs["array_col"]
    assert grid_kind(row, col) == layout
    assert slide.uns["spatial"]["slide"]["metadata"]["spot_pitch_um"] == pytest.approx(spacing_um or 40)
    found = um_per_px_from_grid(slide.obsm["spatial"], row, col, spacing_um or 40)
    assert found == pytest.approx(0.47, rel=1e-9)
    at = Spots.resolve(slide).grid("slide")
    assert np.array_equal(at[:, 0], row) and (np.diff(at[at[:, 0] == 1, 1]) == 1).all()


def test_neighbours_of_a_hexagonal_lattice_are_equally_far(image):
    from scipy.spatial import KDTree

    slide = grid(image, 30, spacing_um=40, layout="hex")
    distance = KDTree(slide.obsm["spatial"]).query(slide.obsm["spatial"], k=7)[0]
    inside = distance[:, 6] < 81
    assert inside.sum() > 50
    np.testing.assert_allclose(distance[inside, 1:], 80, rtol=1e-6)


def test_a_lattice_starts_at_the_corner_of_its_region_and_is_the_same_each_time(image):
    a, b = (grid(image, region=(130.5, 90, 700, 600)) for _ in range(2))
    np.testing.assert_array_equal(a.obsm["spatial"][0], [180.5, 140])
    assert a.obsm["spatial"].max(0).tolist() == [580.5, 540.0]
    assert a.obs.equals(b.obs) and np.array_equal(a.obsm["spatial"], b.obsm["spatial"])


# -- tissue --------------------------------------------------------------------------------------------------------------


def test_tiles_lie_on_the_tissue(image):
    slide = grid(image, tissue=True)
    x, y = slide.obsm["spatial"].T
    # a tile is 100 px wide; detection smooths the edge a little
    assert ((x > 290) & (x < 910) & (y > 190) & (y < 710)).all() and slide.n_obs >= 25
    assert slide.obs["tissue_fraction"].dtype == np.float32 and slide.obs["tissue_fraction"].min() >= 0.25
    record = slide.uns["gdml"]["tissue"]["slide"]
    assert record["source"] == "detected" and record["labels"].dtype == np.uint8


@pytest.mark.parametrize("least", [0.0, 0.1, 0.5, 1.0])
def test_a_mask_and_its_outline_give_the_same_tiles(image, least, tmp_path):
    mask = np.zeros((90, 120), bool)
    mask[20:70, 30:90] = True
    ring = [[300, 200], [900, 200], [900, 700], [300, 700], [300, 200]]
    outline = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    path = tmp_path / "outline.geojson"
    path.write_text(json.dumps(outline))
    drawn = [grid(image, 56, tissue=one, min_tissue=least) for one in (mask, path, outline)]
    share = np.outer(*(np.clip((np.minimum(high, edge + 112) - np.maximum(low, edge)) / 112, 0, 1) for low, high, edge in (
        (200, 700, np.arange(8) * 112), (300, 900, np.arange(10) * 112)
    )))  # fmt: skip
    for slide in drawn:
        assert slide.n_obs == (share >= least).sum()
        np.testing.assert_allclose(
            slide.obs["tissue_fraction"], share[slide.obs["array_row"], slide.obs["array_col"]], atol=1e-5
        )
    assert [slide.uns["gdml"]["tissue"]["slide"]["source"] for slide in drawn] == ["mask", str(path), "GeoJSON"]


def test_a_map_that_was_made_before(image):
    from gdml.slides.tissue import find_tissue

    found = find_tissue(open_slide(image), um_per_px=0.5)
    assert grid(image, tissue=found).obs.equals(grid(image, tissue=True).obs)
    with pytest.raises(ValueError, match="map of a slide of 1200 x 900 px, but this one has 600 x 900"):
        grid(image[:, :600], tissue=found)


def test_without_tissue_the_whole_image_is_tiled(image):
    slide = grid(image)
    assert slide.n_obs == 12 * 9 and (slide.obs["tissue_fraction"] == 1).all()
    assert slide.uns["gdml"]["tissue"]["slide"]["source"] == "all"


# -- what is written -----------------------------------------------------------------------------------------------------


def test_it_is_a_visium_anndata_without_genes(file):
    slide = grid(file)
    assert slide.shape == (108, 0) and slide.obs["library_id"].unique().tolist() == ["biopsy 7"]
    assert slide.obs_names[13] == "1x1-biopsy 7" and slide.obs_names.is_unique
    assert slide.obs["array_row"].dtype == slide.obs["array_col"].dtype == np.int64
    entry = slide.uns["spatial"]["biopsy 7"]
    assert entry["images"]["hires"].shape == (900, 1200, 3) and entry["images"]["lowres"].shape == (450, 600, 3)
    factors = entry["scalefactors"]
    assert factors["tissue_hires_scalef"] == 1 and factors["tissue_lowres_scalef"] == 0.5
    assert factors["spot_diameter_fullres"] == 100 and factors["microns_per_pixel"] == 0.5
    assert entry["metadata"] == {"source_image_path": str(file), "spot_pitch_um": 50.0}


def test_the_geometry_is_that_of_tile(file):
    slide = grid(file, n_side=3, tile_px=64)
    again = slide.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # neither the tissue nor the scale is doubted
        gdml.pp.tile(again, 50, n_side=3, tile_px=64)
    ours, theirs = slide.uns["gdml"]["tiles"], again.uns["gdml"]["tiles"]
    assert theirs["slides"]["biopsy 7"].pop("um_per_px_source") == "scalefactors"
    assert ours["slides"]["biopsy 7"].pop("um_per_px_source") == "argument"
    assert ours == theirs
    assert np.array_equal(slide.obsm["gdml_neighbor_mask"], again.obsm["gdml_neighbor_mask"])


@pytest.mark.parametrize("layout", ["square", "hex"])
def test_native_pixels_need_no_scale_and_invent_none(image, layout):
    slide = gdml.pp.grid(image, None, tissue=False, tile_px=100, layout=layout)
    tiles = slide.uns["gdml"]["tiles"]
    assert np.isnan(tiles["tile_um"]) and np.isnan(tiles["slides"]["slide"]["um_per_px"])
    assert tiles["slides"]["slide"]["side_px"] == 100 and slide.uns["spatial"]["slide"]["metadata"] == {}
    gdml.pp.tile(slide, None, tile_px=100, image=image)
    assert np.isnan(slide.uns["gdml"]["tiles"]["slides"]["slide"]["um_per_px"])


@pytest.mark.parametrize("write", ["h5ad", "zarr"])
def test_it_is_read_back_as_it_was_written(file, tmp_path, write):
    slide = grid(file, 100, tissue=True, n_side=1)
    gdml.pp.embed(slide, "stain")
    getattr(slide, f"write_{write}")(tmp_path / f"slide.{write}")
    again = getattr(ad, f"read_{write}")(tmp_path / f"slide.{write}")
    assert slide.obs.equals(again.obs) and list(slide.obsm) != []
    for name in slide.obsm:
        np.testing.assert_array_equal(slide.obsm[name], again.obsm[name])
    assert plain(slide.uns) == plain(again.uns)
    encoded = gdml.pp.embed(again, "stain", copy=True)
    np.testing.assert_array_equal(encoded.obsm["X_stain"], slide.obsm["X_stain"])


def plain(stored):
    """What ``uns`` holds, comparable."""
    if hasattr(stored, "items"):
        return {name: plain(value) for name, value in stored.items()}
    return np.asarray(stored).tolist()


def test_slides_are_joined_to_one_anndata(file):
    slides = [grid(file, 150, library_id=name) for name in ("A", "B")]
    both = ad.concat(slides, uns_merge="unique")
    gdml.pp.embed(both, "stain")
    assert both.n_obs == 24 and both.obsm["X_stain"].any(1).all()


def test_coordinates_of_a_slide_with_an_origin(image):
    from gdml.slides.scaled import ScaledSlide

    shifted = ScaledSlide(open_slide(image), um_per_px=0.5, origin=(1000.0, 500.0))
    slide, plain_one = grid(shifted, tissue=True, um_per_px=None), grid(image, tissue=True)
    np.testing.assert_array_equal(slide.obsm["spatial"], plain_one.obsm["spatial"] + [1000, 500])
    np.testing.assert_array_equal(slide.obs["tissue_fraction"], plain_one.obs["tissue_fraction"])


def test_key_added_and_library_key(image):
    slide = grid(image, key_added="other", library_key="sample", library_id="A")
    assert set(slide.uns) == {"spatial", "other"} and slide.obs["sample"].unique().tolist() == ["A"]
    assert slide.uns["other"]["tiles"]["library_key"] == "sample"


def test_one_line_says_what_was_done(image, monkeypatch, tmp_path):
    log = (tmp_path / "log").open("w+")
    monkeypatch.setattr(sc.settings, "_logfile", log)
    grid(image, tissue=True)
    log.seek(0)
    (line,) = log.read().splitlines()
    assert re.fullmatch(
        r"grid: \d+ tiles of 50 um of 108 with at least 25% tissue \(detected\) on slide 'slide', um per px 0.5 "
        r"\(argument\)",
        line,
    )


# -- bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tile_um": -1}, ValueError, "`tile_um` must be positive"),
        ({"tile_um": "112"}, TypeError, "`tile_um` must be a number"),
        ({"spacing_um": 0}, ValueError, "`spacing_um` must be positive"),
        ({"spacing_um": 0.3}, ValueError, "`spacing_um` is 0.6 px.*enlarge it"),
        ({"layout": "hexagon"}, ValueError, "`layout` is 'hexagon'. Did you mean 'hex'"),
        ({"min_tissue": 1.5}, ValueError, "`min_tissue` must be at most 1"),
        ({"min_tissue": -0.1}, ValueError, "`min_tissue` must be at least 0"),
        ({"um_per_px": 25}, ValueError, "`um_per_px` is 25, outside the plausible range"),
        ({"um_per_px": None}, ValueError, r"Pass um_per_px= to gdml.pp.grid, or tile_um=None"),
        ({"um_per_px": None, "tile_um": None, "spacing_um": 50}, ValueError, "Pass um_per_px= to gdml.pp.grid"),
        ({"tile_px": 0}, ValueError, "`tile_px` must be a whole number"),
        ({"n_side": 4}, ValueError, "`n_side` must be an odd"),
        ({"tile_um": 5000}, ValueError, "No tile of 10000 px fits into the image of 1200 x 900 px"),
        ({"region": (0, 0, 60, 60)}, ValueError, "No tile of 100 px fits into the `region` of 60 x 60 px"),
        ({"region": (500, 0, 100, 300)}, ValueError, r"`region` is \(500, 0, 100, 300\).*left below right"),
        ({"region": (2000, 0, 2500, 300)}, ValueError, r"wholly outside the image, which is \(0, 0, 1200, 900\)"),
        ({"region": (0, 0, 100)}, ValueError, r"`region` must be \(left, top, right, bottom\)"),
        ({"region": "all"}, ValueError, r"`region` must be \(left, top, right, bottom\)"),
        ({"tissue": 3}, TypeError, "`tissue` must be True"),
        ({"tissue": np.ones((50, 50), bool)}, ValueError, "50 x 50.*1200 x 900"),
        ({"tissue": "nowhere.geojson"}, FileNotFoundError, "nowhere.geojson"),
        ({"library_id": "a/b"}, ValueError, "`library_id` must be a name without '/'"),
        ({"library_key": ""}, ValueError, "`library_key` must be a name"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_with_their_mend(image, options, error, message):
    with pytest.raises(error, match=message):
        grid(image, **options)


def test_too_many_positions(image, monkeypatch):
    monkeypatch.setattr(gdml.spots.lattice, "_MOST", 100)
    with pytest.raises(
        ValueError, match=r"9 x 12 tiles of 100 px, 100 px apart, are more than 100; enlarge `spacing_um`"
    ):
        grid(image)


def test_a_file_that_does_not_exist():
    with pytest.raises(FileNotFoundError, match="nowhere.svs"):
        gdml.pp.grid("nowhere.svs")


def test_too_little_tissue_says_how_much_there_is(image):
    mask = np.zeros((90, 120), bool)
    mask[20:23, 30:40] = True
    with pytest.raises(
        ValueError, match=r"None of the 108 tiles of 100 px.* 0.5; the largest is 0.30. Lower min_tissue="
    ):
        grid(image, tissue=mask, min_tissue=0.5)
    assert grid(image, tissue=mask, min_tissue=0.3).n_obs == 1


def test_a_region_that_reaches_beyond_the_image_is_cut_and_told(image):
    with pytest.warns(UserWarning, match=r"\(1000, -100, 1500, 250\).*was cut to \(1000, 0, 1200, 250\)") as told:
        slide = gdml.pp.grid(image, 50, region=(1000, -100, 1500, 250), um_per_px=0.5, tissue=False)
    assert told[0].filename == __file__
    assert slide.obsm["spatial"].tolist() == [[1050, 50], [1150, 50], [1050, 150], [1150, 150]]


def test_a_scale_that_the_metadata_contradict_is_told(image):
    slide = open_slide(image, um_per_px=0.25)
    with pytest.warns(UserWarning, match=r"argument 0.5; image metadata 0.25; .*argument used"):
        assert grid(slide).uns["gdml"]["tiles"]["slides"]["slide"]["um_per_px"] == 0.5


# -- real slides ---------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_tiles_of_a_real_slide_lie_where_space_ranger_saw_tissue(data_dir):
    from scipy.spatial import KDTree

    folder = data_dir / "visium_colon"
    # barcode, in_tissue, array row and column, y, x; of spots on tissue alone
    spots = np.loadtxt(folder / "spatial" / "tissue_positions_list.csv", delimiter=",", usecols=(5, 4))
    slide = gdml.pp.grid(folder / "colon_d0_HE.jpg", um_per_px=0.97)
    tiles, side = slide.obsm["spatial"], 112 / 0.97
    in_a_tile = KDTree(tiles).query(spots, p=np.inf)[0] <= side / 2
    near_a_spot = KDTree(spots).query(tiles)[0] <= 100 / 0.97
    assert in_a_tile.mean() > 0.98, "spots on tissue that no tile covers"
    assert near_a_spot.mean() > 0.97, "tiles on glass"
