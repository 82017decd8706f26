"""Images of SpatialData objects, whose coordinates are those of a coordinate system."""

import gc

import dask.array as da
import numpy as np
import pytest
import zarr
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

from gdml.slides import open_slide
from gdml.slides._chunks import Chunks
from gdml.slides.thumbnail import thumbnail

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


def image(transformation, *, system="global", **kwargs):
    transformations = transformation if isinstance(transformation, dict) else {system: transformation}
    return Image2DModel.parse(
        np.moveaxis(PIXELS, -1, 0), dims=("c", "y", "x"), transformations=transformations, **kwargs
    )


@pytest.mark.parametrize("multiscale", [{}, {"scale_factors": [2]}], ids=["single", "multiscale"])
def test_scale_and_shift_are_applied(multiscale):
    slide = open_slide(image(Sequence([Scale([4, 4], ("x", "y")), Translation([100, -20], ("x", "y"))]), **multiscale))
    assert slide.size == (320, 240) and slide.origin == (100, -20)
    # pixels [10, 30) x [5, 20) lie at x = 100 + 4 * 10, y = -20 + 4 * 5
    np.testing.assert_array_equal(slide.read_region(140, 0, 80, 60, (20, 15)), PIXELS[5:20, 10:30])
    np.testing.assert_array_equal(thumbnail(slide), PIXELS)
    assert open_slide(slide, um_per_px=0.5).origin == (100, -20)


def test_identity_is_the_image_itself():
    slide = open_slide(image(Identity()))
    assert slide.size == (80, 60) and slide.fingerprint() == open_slide(image(Identity(), system="mm")).fingerprint()
    scaled = open_slide(image(Scale([2, 2], ("x", "y"))))
    shifted = open_slide(image(Translation([2, 2], ("x", "y"))))
    assert len({slide.fingerprint(), scaled.fingerprint(), shifted.fingerprint()}) == 3


def test_coordinate_systems():
    scaled = {"um": Scale([2, 2], ("x", "y")), "global": Identity()}
    assert open_slide(image(scaled)).size == (80, 60)
    assert open_slide(image(Scale([2, 2], ("x", "y")), system="um")).size == (160, 120)
    with pytest.raises(ValueError, match="coordinate systems um, mm and no 'global'"):
        open_slide(image({"um": Identity(), "mm": Identity()}))


@pytest.mark.parametrize(
    "matrix",
    [[[0, -1, 60], [1, 0, 0]], [[-1, 0, 80], [0, 1, 0]], [[1, 0.1, 0], [0, 1, 0]], [[1, 0, 0], [0, 1.1, 0]]],
    ids=["rotated", "mirrored", "sheared", "stretched"],
)
def test_other_transformations_are_refused(matrix):
    affine = Affine(np.vstack([matrix, [0, 0, 1]]), ("x", "y"), ("x", "y"))
    with pytest.raises(ValueError, match=r"rotated, mirrored, sheared or stretched.*spatialdata\.transform\("):
        open_slide(image(affine))


def test_a_coordinate_system_can_be_named():
    both = image({"um": Scale([2, 2], ("x", "y")), "mm": Identity()})
    assert open_slide(both, coordinate_system="um").size == (160, 120)
    with pytest.raises(KeyError, match="`coordinate_system` is 'cm', but the SpatialData image has um, mm"):
        open_slide(both, coordinate_system="cm")


@pytest.mark.parametrize("multiscale", [{}, {"scale_factors": [2]}], ids=["single", "multiscale"])
def test_an_image_in_a_store_is_opened_by_its_path(tmp_path, multiscale):
    element = image(Scale([4, 4], ("x", "y")), **multiscale)
    SpatialData(images={"he": element}).write(tmp_path / "x.zarr")
    slide = open_slide(tmp_path / "x.zarr" / "images" / "he")
    assert slide.size == (80, 60) and slide.um_per_px is None  # its own pixels
    np.testing.assert_array_equal(slide.read_region(10, 5, 20, 15, (20, 15)), PIXELS[5:20, 10:30])
    np.testing.assert_array_equal(thumbnail(slide), PIXELS)
    assert slide.fingerprint() == open_slide(image(Identity())).fingerprint()
    with pytest.raises(FileNotFoundError, match="Zarr store without OME metadata.*it has: images/he"):
        open_slide(tmp_path / "x.zarr")
    with pytest.raises(FileNotFoundError, match="is a folder, not an image"):
        open_slide(tmp_path)


def ome_zarr(folder, axes="tczyx", **changes):
    """An image as microscopes write it, version 0.4, with units."""
    array = PIXELS if axes == "yxc" else np.moveaxis(PIXELS, -1, 0)[None, :, None]
    zarr.save_array(folder / "0", array, zarr_format=2)
    group = zarr.open_group(folder, mode="a", zarr_format=2)
    names = [{"name": name, **({"unit": "micrometer"} if name in "xy" else {})} for name in axes]
    scale = {"type": "scale", "scale": [0.25 if name in "xy" else 1.0 for name in axes]}
    datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": names, "datasets": datasets, **changes}]
    return folder


@pytest.mark.parametrize("axes", ["tczyx", "yxc"])
def test_ome_zarr_of_others(tmp_path, axes):
    slide = open_slide(ome_zarr(tmp_path / "image.zarr", axes))
    assert slide.um_per_px == 0.25
    np.testing.assert_array_equal(slide.read_region(10, 5, 20, 15, (20, 15)), PIXELS[5:20, 10:30])


@pytest.mark.parametrize("changes", [{"datasets": []}, {"datasets": [{"path": "7"}]}, {"axes": ["y", "x"]}])
def test_damaged_metadata_of_an_ome_zarr(tmp_path, changes):
    with pytest.raises(ValueError, match="image.zarr"):
        open_slide(ome_zarr(tmp_path / "image.zarr", **changes))


def test_no_path_leads_out_of_an_ome_zarr(tmp_path):
    ome_zarr(tmp_path / "secret.zarr")
    folder = ome_zarr(tmp_path / "image.zarr", datasets=[{"path": "../secret.zarr/0"}])
    with pytest.raises(ValueError, match="OME metadata"):
        open_slide(folder)


@pytest.mark.parametrize(
    ("chunks", "kept"),
    [
        ((3, 2000, 2500), 1 << 29),
        ((3, 500, 500), 1 << 29),
        ((3, 2000, 2500), 10_000_000),
        ((1, 1500, 1500), 10_000_000),
    ],
)
def test_large_chunks_are_read_once_for_all_their_regions(chunks, kept, monkeypatch):
    """An image that spatialdata-io reads from a JPEG is one chunk, of which every region costs reading all of it."""
    chunks_kept = Chunks(1 << 29)
    monkeypatch.setattr("gdml.slides._array._KEPT", kept)
    monkeypatch.setattr("gdml.slides._array._kept", chunks_kept)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 2000, 2500), dtype=np.uint8)
    read = []

    def chunk(block_info):
        (where,) = block_info.values()
        read.append(where["chunk-location"])
        return pixels[tuple(slice(*edges) for edges in where["array-location"])]

    sizes = da.core.normalize_chunks(chunks, pixels.shape)
    lazy = da.map_blocks(chunk, chunks=sizes, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    read.clear()
    slide = open_slide(Image2DModel.parse(lazy, dims=("c", "y", "x"), c_coords=["r", "g", "b"]))
    for x, y, width, height in [(0, 0, 90, 80), (1450, 1480, 100, 60), (2400, 1900, 100, 100), (0, 0, 2500, 2000)]:
        region = slide.read_region(x, y, width, height, out=(width, height))
        np.testing.assert_array_equal(region, pixels[:, y : y + height, x : x + width].transpose(1, 2, 0))
    assert len(read) == len(set(read)) == np.prod([len(along) for along in sizes])
    slide.close()
    slide.read_region(0, 0, 10, 10, out=(10, 10))
    assert len(read) > len(set(read)) and chunks_kept._kept
    del slide
    gc.collect()
    assert not chunks_kept._kept


def test_images_that_are_read_in_turn_do_not_show_each_other():
    pixels = [np.full((3, 40, 40), value, np.uint8) for value in (50, 200)]
    slides = [
        open_slide(Image2DModel.parse(da.from_array(one, chunks=(3, 20, 20)), dims=("c", "y", "x"))) for one in pixels
    ]
    for _ in range(2):
        assert [int(slide.read_region(0, 0, 30, 30, (30, 30)).mean()) for slide in slides] == [50, 200]
    slides[0].close()
    assert slides[1].read_region(0, 0, 30, 30, (30, 30)).mean() == 200


def test_chunks_of_all_images_share_one_bound():
    kept, made = Chunks(250), []

    def get(image, place):
        return kept.get(image, place, lambda: made.append((image, place)) or np.full(100, image, np.uint8))

    for image in range(3):
        assert (get(image, 0) == image).all()
    get(2, 0), get(1, 0)
    assert made == [(0, 0), (1, 0), (2, 0)]
    get(0, 0)  # was dropped when the third was made; now the one asked for longest ago goes
    get(1, 0)
    assert made == [(0, 0), (1, 0), (2, 0), (0, 0)]
    kept.drop(1)
    get(0, 0), get(1, 0)
    assert made[4:] == [(1, 0)]
    assert (kept.get(3, 0, lambda: np.zeros(1000, np.uint8)) == 0).all() and len(kept._kept) == 1
