import io
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from PIL import Image

import gdml
from gdml.slides import open_slide
from gdml.spots.coordinates import check_adata, libraries, spot_coordinates
from gdml.spots.images import open_as_tiled, resolve_image, tiled_image

PITCH_PX, SIZE = 100, (700, 900)  # legacy ST: 200 um a step, 2 um per px


def open_tiled(adata, library, image=None, *, key="gdml"):
    """Open the image that gdml.pp.tile recorded for a slide, or the one in its place."""
    record = adata.uns[key]["tiles"]["slides"][library]
    return open_as_tiled(tiled_image(adata, library, image, key=key), library, record)


def make(names=("S1",), *, folder=None):
    """Slides of 6 x 8 spots on a square grid, 200 um apart, 100 px apart."""
    parts = []
    uns = {}
    for name in names:
        row, col = (a.ravel() for a in np.mgrid[:8, :6])
        part = ad.AnnData(
            np.ones((48, 3), np.float32),
            obs=pd.DataFrame(
                {"array_row": row, "array_col": col, "library_id": name},
                index=[f"{c}x{r}-{name}" for r, c in zip(row, col, strict=True)],
            ),
        )
        part.obsm["spatial"] = np.column_stack([col, row]) * float(PITCH_PX) + 100
        parts.append(part)
        uns[name] = {"images": {}, "scalefactors": {}, "metadata": {}}
        if folder is not None:
            path = folder / f"{name}.png"
            Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8)).save(path)
            uns[name]["metadata"]["source_image_path"] = str(path)
    adata = ad.concat(parts)
    adata.uns["spatial"] = uns
    return adata


@pytest.fixture
def one(tmp_path):
    return make(folder=tmp_path)


@pytest.fixture
def two(tmp_path):
    return make(("S1", "S2"), folder=tmp_path)


@pytest.fixture
def log():
    """What gdml and scanpy tell the user."""
    before, sc.settings.logfile = sc.settings.logfile, io.StringIO()
    yield sc.settings.logfile
    sc.settings.logfile = before


def refused(adata, error, match, **kwargs):
    """The call fails with this message and writes nothing."""
    before = adata.copy()
    with pytest.raises(error, match=match):
        gdml.pp.tile(adata, **kwargs)
    assert list(adata.obsm) == list(before.obsm) and "gdml" not in adata.uns and adata.shape == before.shape


def test_tiles_in_micrometres(two, tmp_path):
    assert gdml.pp.tile(two, tile_um=112) is None
    tiles = two.uns["gdml"]["tiles"]
    assert {k: tiles[k] for k in tiles if k != "slides"} == {
        "tile_um": 112.0,
        "tile_px": 224,
        "n_side": 5,
        "library_key": "library_id",
        "spatial_key": "spatial",
    }
    assert tiles["slides"]["S2"] == {
        "image": str(tmp_path / "S2.png"),
        "fingerprint": open_slide(tmp_path / "S2.png").fingerprint(),
        "um_per_px": pytest.approx(2.0),
        "um_per_px_source": "spot pitch",
        "side_px": pytest.approx(56.0),
        "width": 700,
        "height": 900,
        "left": 0.0,
        "top": 0.0,
    }
    mask = two.obsm["gdml_neighbor_mask"]
    assert mask.shape == (96, 25) and mask.dtype == bool
    # the first spot is at (100, 100): two tiles to the left and above leave the image (100 - 2.5 x 56 < 0)
    expected = np.ones((5, 5), bool)
    expected[0] = expected[:, 0] = False
    np.testing.assert_array_equal(mask[0].reshape(5, 5), expected)


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_record_survives_a_file(two, tmp_path, ending):
    gdml.pp.tile(two, key_added="mine")
    path = tmp_path / f"tiled.{ending}"
    getattr(two, f"write_{ending}")(path)
    back = getattr(ad, f"read_{ending}")(path)
    assert back.uns["mine"]["tiles"]["slides"]["S1"] == two.uns["mine"]["tiles"]["slides"]["S1"]
    np.testing.assert_array_equal(back.obsm["mine_neighbor_mask"], two.obsm["mine_neighbor_mask"])
    assert open_tiled(back, "S1", key="mine").size == SIZE


def test_copy(one):
    tiled = gdml.pp.tile(one, copy=True)
    assert "gdml" in tiled.uns and "gdml" not in one.uns and "gdml_neighbor_mask" not in one.obsm
    assert gdml.pp.tile(one[:20], copy=True).n_obs == 20  # a view does no harm then


def test_scale_argument_wins_over_metadata_over_pitch(one, tmp_path):
    pixels = np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)

    def source(**kwargs):
        gdml.pp.tile(one, **kwargs)
        slide = one.uns["gdml"]["tiles"]["slides"]["S1"]
        return slide["um_per_px"], slide["um_per_px_source"]

    assert source(image=pixels) == (pytest.approx(2.0), "spot pitch")
    assert source(image=open_slide(pixels, um_per_px=1.9)) == (1.9, "image metadata")
    assert source(image=open_slide(pixels, um_per_px=1.9), um_per_px=2.1) == (2.1, "argument")
    assert source(image=pixels, um_per_px={"S1": 2.1}) == (2.1, "argument")
    assert source(image=pixels, um_per_px={}) == (pytest.approx(2.0), "spot pitch")
    assert source(image=pixels, spot_pitch_um=100) == (pytest.approx(1.0), "spot pitch")
    one.uns["spatial"]["S1"]["metadata"]["spot_pitch_um"] = 300.0
    assert source(image=pixels) == (pytest.approx(3.0), "spot pitch")
    assert source(image=pixels, spot_pitch_um=100) == (pytest.approx(1.0), "spot pitch")
    del one.obs["array_row"]  # no grid: nearest neighbours
    assert source(image=pixels) == (pytest.approx(3.0), "spot pitch")


def test_visium_grid_is_recognised(one):
    row = one.obs["array_row"].to_numpy()
    one.obs["array_col"] = 2 * one.obs["array_col"].to_numpy() + row % 2
    one.obsm["spatial"] = np.column_stack([one.obs["array_col"] * 50.0 + 60, row * 50 * np.sqrt(3) + 60])
    gdml.pp.tile(one)
    assert one.uns["gdml"]["tiles"]["slides"]["S1"]["um_per_px"] == pytest.approx(1.0)


def test_scales_that_disagree_are_told(one):
    pixels = np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)
    with pytest.warns(
        UserWarning, match="disagree.*image metadata 0.5; spot pitch 2 .200 um pitch assumed.; image metadata used"
    ):
        gdml.pp.tile(one, image=open_slide(pixels, um_per_px=0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        gdml.pp.tile(one, image=open_slide(pixels, um_per_px=1.9))


def test_native_pixels(one):
    del one.obs["array_row"], one.obs["array_col"]
    gdml.pp.tile(one, None, tile_px=64, n_side=3)
    slide = one.uns["gdml"]["tiles"]["slides"]["S1"]
    assert slide["side_px"] == 64.0 and np.isnan(slide["um_per_px"]) and slide["um_per_px_source"] == "unknown"
    assert np.isnan(one.uns["gdml"]["tiles"]["tile_um"])
    assert open_tiled(one, "S1").um_per_px is None


def test_spots_outside(one):
    one.obsm["spatial"][[3, 7]] = [[-1, 100], [100, 900]]
    refused(one, ValueError, r"2 of 48 spots of slide 'S1' lie outside its image of 700 x 900 px.*outside=\"drop\"")
    names = one.obs_names.drop(one.obs_names[[3, 7]])
    gdml.pp.tile(one, outside="drop")
    assert list(one.obs_names) == list(names) and one.obsm["gdml_neighbor_mask"].shape == (46, 25)
    one.obsm["spatial"] = one.obsm["spatial"] + 5000
    with pytest.raises(ValueError, match="46 of 46 spots"):
        gdml.pp.tile(one, outside="drop")


def test_only_hires(one):
    one.uns["spatial"]["S1"] = {
        "images": {"hires": np.full((90, 70, 3), 0.5, np.float32)},
        "scalefactors": {"tissue_hires_scalef": 0.1},
    }
    refused(one, ValueError, "full-resolution image is needed.*image=.*hires")
    with pytest.warns(UserWarning, match="too few pixels wide.*: 6 px on slide 'S1'"):
        gdml.pp.tile(one, image="hires")
    slide = one.uns["gdml"]["tiles"]["slides"]["S1"]
    assert (slide["image"], slide["width"], slide["height"]) == ("hires", 700, 900)
    assert open_tiled(one, "S1").read_region(50, 50, 56, 56, (8, 8)).mean() == pytest.approx(128, abs=1)
    del one.uns["spatial"]["S1"]["scalefactors"]
    with pytest.raises(KeyError, match="no hires image with its scale factor"):
        gdml.pp.tile(one, image="hires")


def test_images_by_slide(two, tmp_path):
    pixels = np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)
    refused(two, ValueError, "one image, but there are 2 slides", image=pixels)
    refused(two, ValueError, "one image, but there are 2 slides", image=str(tmp_path / "S1.png"))
    refused(two, KeyError, "no entry for slide 'S2'", image={"S1": pixels})
    gdml.pp.tile(two, image={"S1": pixels, "S2": tmp_path / "S2.png"})
    slides = two.uns["gdml"]["tiles"]["slides"]
    assert slides["S1"]["image"] == "in memory" and slides["S2"]["image"] == str(tmp_path / "S2.png")
    with pytest.raises(ValueError, match="given in memory; give it again"):
        open_tiled(two, "S1")
    assert open_tiled(two, "S1", {"S1": pixels}).um_per_px == pytest.approx(2.0)
    with pytest.raises(ValueError, match="10 x 10 px, 700 x 900 when it was tiled"):
        open_tiled(two, "S1", {"S1": pixels[:10, :10]})


def test_one_slide_needs_no_column(one):
    del one.obs["library_id"]
    gdml.pp.tile(one)
    assert list(one.uns["gdml"]["tiles"]["slides"]) == ["S1"]
    image = one.uns.pop("spatial")["S1"]["metadata"]["source_image_path"]
    gdml.pp.tile(one, image=image)
    assert list(one.uns["gdml"]["tiles"]["slides"]) == ["slide"]


def test_libraries(two):
    order = np.random.default_rng(0).permutation(96)
    two = two[order].copy()
    rows = libraries(two)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(96))
    assert all((two.obs["library_id"].to_numpy()[r] == name).all() for name, r in rows.items())
    assert next(iter(rows)) == two.obs["library_id"].iloc[0]
    two.obs["library_id"] = two.obs["library_id"].where(np.arange(96) > 2)
    with pytest.raises(ValueError, match="missing for 3 spots"):
        libraries(two)
    with pytest.raises(KeyError, match="`library_key` is 'batch', which is no column of obs"):
        libraries(two, "batch")
    del two.obs["library_id"]
    with pytest.raises(KeyError, match="holds 2 slides"):
        libraries(two)


def test_moved_tiles_forget_their_features(one):
    gdml.pp.tile(one)
    one.uns["gdml"]["features"] = {"encoder": "stain"}
    one.uns["gdml"]["fit"] = {"seed": 0}
    gdml.pp.tile(one)
    assert one.uns["gdml"]["features"] == {"encoder": "stain"}  # the same tiles
    gdml.pp.tile(one, tile_um=56)
    assert "features" not in one.uns["gdml"] and one.uns["gdml"]["fit"] == {"seed": 0}


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"tile_um": 0}, ValueError, "tile_um"),
        ({"tile_um": np.nan}, ValueError, "tile_um"),
        ({"tile_um": 0.01}, ValueError, "enlarge `tile_um`"),
        ({"tile_px": 0}, ValueError, "tile_px"),
        ({"tile_px": 22.4}, ValueError, "tile_px"),
        ({"n_side": 4}, ValueError, "n_side"),
        ({"outside": "dorp"}, ValueError, "Did you mean 'drop'"),
        ({"um_per_px": 0}, ValueError, "um_per_px"),
        ({"um_per_px": -0.5}, ValueError, "um_per_px"),
        ({"um_per_px": np.nan}, ValueError, "um_per_px"),
        ({"um_per_px": 352.8}, ValueError, "outside the plausible range"),
        ({"um_per_px": {"S9": 0.5}}, KeyError, "unknown slides: S9"),
        ({"spot_pitch_um": 0}, ValueError, "spot_pitch_um"),
        ({"spot_pitch_um": 2000}, ValueError, "20 .spot pitch., outside the plausible range"),
        ({"spatial_key": "nowhere"}, KeyError, "obsm.*nowhere.*is missing"),
        ({"image": "gone.tif"}, FileNotFoundError, "gone.tif"),
    ],
)
def test_bad_arguments(one, kwargs, error, match):
    refused(one, error, match, **kwargs)


def test_scale_unknown(one):
    del one.obs["array_row"]
    refused(one, ValueError, "um per px of slide 'S1' is unknown.*um_per_px=")


def test_missing_images(one, tmp_path):
    one.uns["spatial"]["S1"]["metadata"]["source_image_path"] = str(tmp_path / "gone.tif")
    refused(one, FileNotFoundError, r"slide 'S1'.*gone\.tif.*image=")
    del one.uns["spatial"]
    refused(one, ValueError, "No image is known for slide 'S1'.*image=")
    with pytest.raises(ValueError, match="No image is known"):
        resolve_image(one, "S1")


def test_bad_coordinates(one):
    one.obsm["spatial"][5, 1] = np.inf
    refused(one, ValueError, "NaN or infinite coordinates in 1 spots")
    one.obsm["spatial"] = np.ones((48, 3))
    refused(one, ValueError, r"shape \(48, 2\)")
    del one.obsm["spatial"]
    refused(one, KeyError, "spatial.*is missing")
    one.obsm["spatial"] = pd.DataFrame(np.ones((48, 2), int), index=one.obs_names, columns=["x", "y"])
    assert spot_coordinates(one).dtype == np.float64


def test_adata_that_cannot_be_written_to(one, tmp_path):
    with pytest.raises(ValueError, match=r"is a view: call adata = adata\.copy\(\)"):
        gdml.pp.tile(one[:10])
    one.write_h5ad(tmp_path / "one.h5ad")
    backed = ad.read_h5ad(tmp_path / "one.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"backed.*to_memory\(\)"):
        gdml.pp.tile(backed)
    with pytest.raises(ValueError, match="no spots"):
        check_adata(one[:0].copy())
    with pytest.raises(TypeError, match="DataFrame"):
        check_adata(pd.DataFrame())
    twice = one.copy()
    twice.obs_names = ["a"] * 48
    refused(twice, ValueError, r"duplicate spot names.*: a; call adata\.obs_names_make_unique\(\)")
    one.var_names = ["a", "b", "b"]
    refused(one, ValueError, r"duplicate gene names.*: b; call adata\.var_names_make_unique\(\)")


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"tile_um": "112"}, "tile_um"),
        ({"um_per_px": "0.5"}, "um_per_px"),
        ({"um_per_px": {"S1": "0.5"}}, r"um_per_px\['S1'\]"),
        ({"um_per_px": {"S1": None}}, r"um_per_px\['S1'\]"),
        ({"spot_pitch_um": "100"}, "spot_pitch_um"),
        ({"tile_um": True}, "tile_um"),
    ],
)
def test_text_where_a_number_is_needed(one, kwargs, name):
    refused(one, TypeError, f"`{name}` must be a number", **kwargs)
    refused(one, TypeError, "`tile_px` must be a whole number of at least 1, found '224'", tile_px="224")


def test_named_columns_must_exist(one):
    refused(one, KeyError, "batch", library_key="batch")
    refused(one, KeyError, "pixels", spatial_key="pixels")
    refused(one, KeyError, "batch", library_key="batch", copy=True)


def test_slides_named_by_numbers(two):
    two.obs["library_id"] = two.obs["library_id"].map({"S1": 6, "S2": 7}).astype(int)
    entry = two.uns["spatial"]
    two.uns["spatial"] = {6: entry["S1"], 7: entry["S2"]}
    pixels = np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)
    gdml.pp.tile(two, um_per_px={6: 2.1})
    slides = two.uns["gdml"]["tiles"]["slides"]
    assert {name: slide["um_per_px"] for name, slide in slides.items()} == {"6": 2.1, "7": pytest.approx(2.0)}
    gdml.pp.tile(two, image={6: pixels, 7: pixels})
    assert two.uns["gdml"]["tiles"]["slides"]["7"]["image"] == "in memory"


def test_one_line_for_all_slides(two, log):
    gdml.pp.tile(two)
    gdml.pp.tile(two, um_per_px={"S1": 1.9})
    gdml.pp.tile(two, None)
    assert log.getvalue().splitlines() == [
        "tile: tiles of 112 um on 2 slides, 2 um per px (spot pitch)",
        "tile: tiles of 112 um on 2 slides, 1.9 to 2 um per px (argument: 1, spot pitch: 1)",
        "tile: tiles of 224 native px on 2 slides, 2 um per px (spot pitch)",
    ]


def test_another_image_at_the_same_path_forgets_features(one, tmp_path):
    gdml.pp.tile(one)
    one.uns["gdml"]["features"] = {"encoder": "stain"}
    Image.fromarray(np.zeros((SIZE[1], SIZE[0], 3), np.uint8)).save(tmp_path / "S1.png")
    gdml.pp.tile(one)
    assert "features" not in one.uns["gdml"]


# tissue under the spots of `make`, in the upper left of a larger image
WIDE = (1500, 1000)


def tissue_image() -> np.ndarray:
    rng = np.random.default_rng(0)
    image = np.full((WIDE[1], WIDE[0], 3), 240, float) + rng.normal(0, 1, (WIDE[1], WIDE[0], 1))
    grain = rng.random((WIDE[1] // 8, WIDE[0] // 8)).repeat(8, 0).repeat(8, 1)[..., None]
    image[80:840, 80:640] = (120 + 90 * grain)[80:840, 80:640]
    return np.clip(image, 0, 255).astype(np.uint8)


def test_spots_on_tissue_are_not_doubted(one):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        gdml.pp.tile(one, tile_um=200, image=tissue_image())


@pytest.mark.parametrize(
    ("wrong", "best"),
    [
        (lambda xy: np.column_stack([WIDE[0] - xy[:, 0], xy[:, 1]]), "0% when flipped left to right"),
        (lambda xy: xy * 0.1, "0% when divided by the scale factor of the hires image"),
    ],
)
def test_spots_over_glass(one, wrong, best):
    one.obsm["spatial"] = wrong(one.obsm["spatial"])
    one.uns["spatial"]["S1"]["scalefactors"]["tissue_hires_scalef"] = 0.1
    kwargs = {"tile_um": 200, "image": tissue_image(), "um_per_px": 2.0}
    with pytest.warns(UserWarning) as caught:
        gdml.pp.tile(one, **kwargs)
    message = next(str(w.message) for w in caught if "over glass" in str(w.message))
    assert f"100% on slide 'S1' ({best})" in message and next(w for w in caught).filename == __file__
    for cause in ("x and y are swapped", "hires image", "flipped or rotated", "another slide"):
        assert cause in message
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*over glass")
        gdml.pp.tile(one, check=False, **kwargs)


def test_spots_beside_the_tissue_are_left_out_of_the_share(one):
    over_glass = one.obsm["spatial"][:, 0] > 350
    one.obsm["spatial"][over_glass, 0] += 600
    with pytest.warns(UserWarning, match="50% on slide 'S1'"):
        gdml.pp.tile(one, tile_um=200, um_per_px=2.0, image=tissue_image())
    one.obs["in_tissue"] = (~over_glass).astype(int)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*over glass")
        gdml.pp.tile(one, tile_um=200, um_per_px=2.0, image=tissue_image())


def test_spatialdata_image_that_is_scaled_and_shifted(one):
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine, Scale, Sequence, Translation

    pixels = np.moveaxis(tissue_image()[::2, ::2], -1, 0)
    shift = np.array([-300.0, 40.0])
    placed = Sequence([Scale([2, 2], ("x", "y")), Translation(shift, ("x", "y"))])
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={"global": placed})
    one.obsm["spatial"] = one.obsm["spatial"] + shift
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*over glass")
        gdml.pp.tile(one, tile_um=200, image=image)
    slide = one.uns["gdml"]["tiles"]["slides"]["S1"]
    assert (slide["width"], slide["height"], slide["left"], slide["top"]) == (*WIDE, -300, 40)
    assert slide["um_per_px"] == pytest.approx(2.0)  # per unit of the coordinates
    # the same tiles on the plain image
    plain = one.copy()
    plain.obsm["spatial"] = one.obsm["spatial"] - shift
    gdml.pp.tile(plain, tile_um=200, image=tissue_image())
    np.testing.assert_array_equal(one.obsm["gdml_neighbor_mask"], plain.obsm["gdml_neighbor_mask"])
    opened = open_tiled(one, "S1", image)
    x, y = one.obsm["spatial"][20]
    region = opened.read_region(x - 50, y - 50, 100, 100, (50, 50))
    assert (
        np.abs(
            region.astype(int) - tissue_image()[::2, ::2][int(y - 40 - 50) // 2 :, int(x + 300 - 50) // 2 :][:50, :50]
        ).max()
        <= 1
    )

    several = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={"global": placed}, scale_factors=[2])
    gdml.pp.tile(one, tile_um=200, image=several)
    assert one.uns["gdml"]["tiles"]["slides"]["S1"]["width"] == WIDE[0]

    turned = Affine(np.array([[0, -1, WIDE[1]], [1, 0, 0], [0, 0, 1]]), ("x", "y"), ("x", "y"))
    other = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations={"global": turned})
    with pytest.raises(ValueError, match=r"spatialdata\.transform\("):
        gdml.pp.tile(one, image=other)


def test_no_false_alarm_on_synthetic_slides(synthetic_adata):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        gdml.pp.tile(synthetic_adata)


@pytest.mark.real
def test_wrong_coordinates_of_a_real_section(her2st_section):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        gdml.pp.tile(her2st_section)
    right = her2st_section.obsm["spatial"].copy()
    her2st_section.obsm["spatial"] = right[:, ::-1].copy()
    with pytest.warns(UserWarning, match=r"4\d% on slide 'C6' \(0% when x and y are swapped\)"):
        gdml.pp.tile(her2st_section)


@pytest.mark.real
def test_real_section(her2st_section):
    gdml.pp.tile(her2st_section)
    slide = her2st_section.uns["gdml"]["tiles"]["slides"]["C6"]
    assert slide["um_per_px_source"] == "spot pitch"
    assert slide["um_per_px"] == pytest.approx(0.688, abs=0.005)  # the same scanner for all sections
    opened = open_tiled(her2st_section, "C6")
    side, xy = slide["side_px"], her2st_section.obsm["spatial"]
    xy = xy[np.argsort(xy[:, 1])][::12]
    tissue = [opened.read_region(*(c - side / 2), side, side, (56, 56)).min(axis=2).mean() for c in xy]
    glass = opened.read_region(100, 9000, side, side, (56, 56)).min(axis=2).mean()
    assert np.median(tissue) < glass - 40  # the spots lie on tissue
