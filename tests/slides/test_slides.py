import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gdml.slides import Slide, open_slide
from gdml.slides.scaled import ScaledSlide

WIDTH, HEIGHT = 301, 407


@pytest.fixture(scope="module")
def pixels():
    """Smooth shapes with some grain, so that a shift of one pixel shows."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [np.sin(x / 9) * np.cos(y / 14), np.sin((x + y) / 21), np.cos(x / 17 - y / 5)]
    grain = np.random.default_rng(0).normal(0, 6, (HEIGHT, WIDTH, 3))
    return np.clip(128 + 90 * np.stack(waves, -1) + grain, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def readers(pixels, tmp_path_factory):
    """The same pixels behind every reader."""
    import pyvips
    import xarray as xr
    from squidpy.im import ImageContainer

    folder = tmp_path_factory.mktemp("slides")
    Image.fromarray(pixels).save(folder / "flat.png")
    image = pyvips.Image.new_from_array(pixels)
    image.tiffsave(str(folder / "pyramid.tif"), tile=True, pyramid=True, tile_width=64, tile_height=64)
    image.tiffsave(str(folder / "striped.tif"))
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    return {
        "array": open_slide(pixels),
        "float": open_slide(pixels / 255),
        "rgba": open_slide(alpha),
        "png": open_slide(folder / "flat.png"),
        "pyramid": open_slide(str(folder / "pyramid.tif")),
        "striped": open_slide(folder / "striped.tif"),
        "xarray": open_slide(xr.DataArray(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"))),
        "container": open_slide(ImageContainer(pixels, layer="he")),
        "scaled": open_slide(open_slide(pixels), um_per_px=0.5),
    }


def test_every_source_is_a_slide(readers):
    for name, slide in readers.items():
        assert isinstance(slide, Slide), name
        assert slide.size == (WIDTH, HEIGHT), name
    assert type(readers["pyramid"]).__name__ == "PyramidSlide"
    assert type(readers["png"]).__name__ == type(readers["striped"]).__name__ == "FlatSlide"


spans = st.tuples(st.floats(-80, 380), st.floats(5, 200), st.integers(3, 90))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spans, spans)
def test_all_readers_read_the_same(readers, horizontal, vertical):
    (x, width, out_w), (y, height, out_h) = horizontal, vertical
    expected = readers["array"].read_region(x, y, width, height, (out_w, out_h))
    assert expected.shape == (out_h, out_w, 3) and expected.dtype == np.uint8
    coarse = min(width / out_w, height / out_h) >= 1.9  # then the pyramid reads a smaller level
    for name, slide in readers.items():
        found = slide.read_region(x, y, width, height, (out_w, out_h))
        if name != "pyramid" or not coarse:
            np.testing.assert_array_equal(found, expected, err_msg=name)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# not the far edges: the last few pixels are on no level, their number being no multiple of the factor
@given(st.floats(0, 400), st.floats(0, 400), st.floats(250, 600), st.integers(20, 100))
def test_pyramid_reads_nearly_the_same_from_its_smaller_levels(smooth, x, y, extent, out):
    array, pyramid = smooth
    expected = array.read_region(x, y, extent, extent, (out, out)).astype(int)
    difference = np.abs(pyramid.read_region(x, y, extent, extent, (out, out)) - expected)
    assert difference.mean() < 1.5 and difference.max() < 8


@pytest.fixture(scope="module")
def smooth(tmp_path_factory):
    import pyvips

    y, x = np.mgrid[:1030, :1025]
    waves = [np.sin(x / 40) * np.cos(y / 60), np.sin((x + y) / 55), np.cos(x / 70 - y / 45)]
    image = (128 + 100 * np.stack(waves, -1)).astype(np.uint8)
    path = tmp_path_factory.mktemp("pyramid") / "smooth.tif"
    pyvips.Image.new_from_array(image).tiffsave(str(path), tile=True, pyramid=True, tile_width=64, tile_height=64)
    return open_slide(image), open_slide(path)


def test_native_pixels_are_copied(readers, pixels):
    for name, slide in readers.items():
        np.testing.assert_array_equal(slide.read_region(20, 30, 50, 60, (50, 60)), pixels[30:90, 20:70], err_msg=name)
        # a corner between pixels goes to the nearest one
        np.testing.assert_array_equal(slide.read_region(20.4, 29.6, 50, 60, (50, 60)), pixels[30:90, 20:70])


def test_outside_is_white(pixels):
    slide = open_slide(pixels)
    region = slide.read_region(-30, -20, 60, 60, (60, 60))
    assert (region[:20] == 255).all() and (region[:, :30] == 255).all()
    np.testing.assert_array_equal(region[20:, 30:], pixels[:40, :30])
    assert (slide.read_region(5000, 0, 50, 50, (20, 20)) == 255).all()
    assert (slide.read_region(-65.5, 0, 60, 60, (20, 20)) == 255).all()


def test_edge_of_the_image_gets_no_white_fringe():
    slide = open_slide(np.full((50, 50, 3), 40, np.uint8))
    assert (slide.read_region(0, 0, 33.3, 50, (77, 77)) == 40).all()
    assert (slide.read_region(16.7, 0, 33.3, 50, (20, 20)) == 40).all()


@given(st.floats(2, 8))
def test_shrinking_does_not_alias(shrink):
    stripes = np.zeros((120, 120, 3), np.uint8)
    stripes[:, ::2] = 255
    region = open_slide(stripes).read_region(10, 10, 90, 90, (int(90 / shrink), int(90 / shrink)))
    assert np.abs(region.astype(int) - 127.5).max() < 30


def test_regions_keep_their_place_at_any_scale():
    blob = np.exp(-((np.arange(200) - 119.5) ** 2) / 200)
    image = np.repeat((blob[:, None] * blob[None] * 255).astype(np.uint8)[..., None], 3, 2)
    for out in (37, 100, 280):
        region = open_slide(image).read_region(60, 60, 120, 120, (out, out))[..., 0].astype(float)
        centre = (region.sum(0) * (np.arange(out) + 0.5)).sum() / region.sum() * 120 / out + 60
        assert centre == pytest.approx(120, abs=0.15)


def test_transparent_is_white():
    rgba = np.zeros((10, 10, 4), np.uint8)
    rgba[:, :5, 3] = 255
    region = open_slide(rgba).read_region(0, 0, 10, 10, (10, 10))
    assert (region[:, :5] == 0).all() and (region[:, 5:] == 255).all()


def test_reading_leaves_the_array_alone(pixels):
    slide = open_slide(pixels)
    slide.read_region(0, 0, 20, 20, (20, 20))[:] = 0
    assert pixels[:20, :20].any()


def test_flat_file_any_order_any_thread(readers, pixels):
    slide = readers["png"]
    for y in (0, 300, 10, 380, 128, 5):
        np.testing.assert_array_equal(slide.read_region(3, y, 40, 20, (40, 20)), pixels[y : y + 20, 3:43])
    found = {}
    thread = threading.Thread(target=lambda: found.update(a=slide.read_region(3, 200, 40, 20, (40, 20))))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found["a"], pixels[200:220, 3:43])
    slide.close()
    np.testing.assert_array_equal(slide.read_region(3, 7, 40, 20, (40, 20)), pixels[7:27, 3:43])


def test_flat_file_is_read_once_in_order_of_y(tmp_path):
    tall = np.random.default_rng(1).integers(0, 255, (3000, 64, 3), np.uint8)
    Image.fromarray(tall).save(tmp_path / "tall.png")
    slide = open_slide(tmp_path / "tall.png")
    restarts, restart = [], slide._restart
    slide._restart = lambda: (restarts.append(1), restart())
    for y in np.linspace(-50, 2900, 120):
        slide.read_region(-5, y, 90, 200, (45, 100))
        assert sum(len(strip) for strip in slide._strips) < 500  # the window, not the image
    assert len(restarts) == 1


def test_multiscale_spatialdata_image(pixels):
    from spatialdata.models import Image2DModel

    tree = Image2DModel.parse(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), scale_factors=[2, 2])
    slide = open_slide(tree)
    assert slide.size == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(slide.read_region(5, 6, 30, 40, (30, 40)), pixels[6:46, 5:35])
    coarse = slide.read_region(0, 0, WIDTH, HEIGHT, (75, 101))
    np.testing.assert_array_equal(coarse, open_slide(pixels).read_region(0, 0, WIDTH, HEIGHT, (75, 101)))


def test_scaled_slide(pixels):
    inner = open_slide(pixels)
    slide = ScaledSlide(inner, 0.1)
    assert slide.size == (3010, 4070)
    np.testing.assert_array_equal(
        slide.read_region(500, 700, 1000, 900, (50, 45)), inner.read_region(50, 70, 100, 90, (50, 45))
    )
    assert slide.fingerprint() != inner.fingerprint()
    assert ScaledSlide(open_slide(inner, um_per_px=5.0), 0.1).um_per_px == pytest.approx(0.5)
    with pytest.raises(ValueError, match="scale"):
        ScaledSlide(inner, 0)


def test_metadata_scale(pixels, tmp_path):
    import pyvips

    image = pyvips.Image.new_from_array(pixels)
    for name, px_per_mm, expected in [("half", 2000, 0.5), ("screen", 72 / 25.4, None)]:
        for ending, options in [("png", {}), ("tif", {"tile": True, "pyramid": True, "tile_width": 64})]:
            path = tmp_path / f"{name}.{ending}"
            image.copy(xres=px_per_mm, yres=px_per_mm).write_to_file(str(path), **options)
            found = open_slide(path).um_per_px
            assert found is None if expected is None else found == pytest.approx(expected, rel=1e-3)
    assert open_slide(tmp_path / "half.png", um_per_px=0.25).um_per_px == 0.25


OME = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" {}/></Image></OME>'
)


@pytest.mark.parametrize(
    ("sizes", "um_per_px"),
    [
        ('PhysicalSizeX="0.2738" PhysicalSizeY="0.2738"', 0.2738),  # um where no unit is given
        ('PhysicalSizeX="0.2738" PhysicalSizeXUnit="µm" PhysicalSizeY="0.2738" PhysicalSizeYUnit="µm"', 0.2738),
        ('PhysicalSizeX="273.8" PhysicalSizeXUnit="nm" PhysicalSizeY="2.738E-4" PhysicalSizeYUnit="mm"', 0.2738),
        ('PhysicalSizeX="1" PhysicalSizeXUnit="pixel" PhysicalSizeY="1" PhysicalSizeYUnit="pixel"', None),
        ('PhysicalSizeX="0.27" PhysicalSizeY="0.5"', None),
        ('PhysicalSizeX="0.27"', None),
        ('PhysicalSizeX="25" PhysicalSizeY="25"', None),  # implausible
        ("", None),
    ],
)
@pytest.mark.parametrize("tiled", [True, False], ids=["tiled", "striped"])
def test_physical_size_of_ome_tiff(sizes, um_per_px, tiled, tmp_path, pixels):
    import tifffile

    path = tmp_path / "slide.ome.tif"
    tile = (64, 64) if tiled else None
    tifffile.imwrite(path, pixels, photometric="rgb", tile=tile, description=OME.format(sizes).encode(), metadata=None)
    slide = open_slide(path)
    assert type(slide).__name__ == ("PyramidSlide" if tiled else "FlatSlide")
    assert slide.um_per_px == (None if um_per_px is None else pytest.approx(um_per_px))


def test_damaged_ome_description_is_no_scale(tmp_path, pixels):
    import tifffile

    path = tmp_path / "slide.ome.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", description=OME[:-6].encode(), metadata=None)
    assert open_slide(path).um_per_px is None


def test_ome_tiff_as_tifffile_writes_it(tmp_path, pixels):
    import tifffile

    path = tmp_path / "slide.ome.tif"
    meta = {
        "axes": "YXS",
        "PhysicalSizeX": 0.5,
        "PhysicalSizeY": 0.5,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm",
    }
    tifffile.imwrite(path, pixels, ome=True, photometric="rgb", tile=(64, 64), metadata=meta)
    assert open_slide(path).um_per_px == pytest.approx(0.5)


def test_grey_and_16_bit_files(tmp_path):
    ramp = np.tile(np.arange(0, 250, 5, dtype=np.uint8), (20, 1))
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    region = open_slide(tmp_path / "grey.png").read_region(0, 0, 50, 20, (50, 20))
    assert region.shape == (20, 50, 3) and (region == ramp[..., None]).all()
    import pyvips

    deep = np.repeat(ramp[..., None], 3, 2).astype(np.uint16) * 257
    pyvips.Image.new_from_array(deep, interpretation="rgb16").write_to_file(str(tmp_path / "deep.png"))
    region = open_slide(tmp_path / "deep.png").read_region(0, 0, 50, 20, (50, 20))
    np.testing.assert_allclose(region, np.repeat(ramp[..., None], 3, 2), atol=1)


def test_fingerprint_tells_content(readers, pixels, tmp_path):
    other = pixels.copy()
    other[200, 100] ^= 1
    Image.fromarray(pixels).save(tmp_path / "same.png")
    Image.fromarray(other).save(tmp_path / "other.png")
    assert readers["array"].fingerprint() == open_slide(pixels.copy()).fingerprint()
    assert readers["array"].fingerprint() != open_slide(other).fingerprint()
    assert readers["png"].fingerprint() == open_slide(tmp_path / "same.png").fingerprint()
    assert readers["png"].fingerprint() != open_slide(tmp_path / "other.png").fingerprint()
    assert readers["xarray"].fingerprint() != readers["array"].fingerprint()


def test_fingerprint_of_a_large_file_samples_blocks(tmp_path, monkeypatch, pixels):
    import gdml.slides._file as files

    monkeypatch.setattr(files, "_BLOCK", 1024)
    monkeypatch.setattr(files, "_BLOCKS", 8)
    path = tmp_path / "large.png"
    Image.fromarray(pixels).save(path)
    before = open_slide(path).fingerprint()
    content = bytearray(path.read_bytes())
    assert len(content) > 16 * 1024
    content[-1] ^= 1
    path.write_bytes(content)
    assert open_slide(path).fingerprint() != before


def test_truncated_jpeg(tmp_path, pixels):
    Image.fromarray(np.tile(pixels, (3, 3, 1))).save(tmp_path / "whole.jpg")
    path = tmp_path / "half.jpg"
    path.write_bytes((tmp_path / "whole.jpg").read_bytes()[:60_000])
    slide = open_slide(path)
    with pytest.raises(ValueError, match=r"half\.jpg.*truncated"):
        slide.read_region(0, 0, WIDTH * 3, HEIGHT * 3, (50, 50))


def test_truncated_pyramid(tmp_path, pixels):
    import pyvips

    path = tmp_path / "half.tif"
    image = pyvips.Image.new_from_array(np.tile(pixels, (2, 2, 1)))
    image.tiffsave(str(path), tile=True, pyramid=True, tile_width=64, tile_height=64)
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(ValueError, match=r"half\.tif"):
        open_slide(path).read_region(0, 0, WIDTH * 2, HEIGHT * 2, (WIDTH * 2, HEIGHT * 2))


def test_files_that_are_no_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.tif.*does not exist"):
        open_slide(tmp_path / "gone.tif")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        open_slide(tmp_path)
    (tmp_path / "notes.tif").write_text("not an image")
    with pytest.raises(ValueError, match=r"notes\.tif.*cannot be opened"):
        open_slide(tmp_path / "notes.tif")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (np.zeros((10, 10), np.uint8), ValueError, "RGB"),
        (np.zeros((3, 10, 10), np.uint8), ValueError, "moveaxis"),
        (np.zeros((10, 10, 3), np.uint16), ValueError, "uint16"),
        (np.full((10, 10, 3), 200.0), ValueError, r"\[0, 1\]"),
        (np.full((10, 10, 3), np.nan), ValueError, r"\[0, 1\]"),
        (object(), TypeError, "object"),
    ],
)
def test_arrays_that_are_no_images(source, error, message):
    with pytest.raises(error, match=message):
        open_slide(source)


@pytest.mark.parametrize("um_per_px", [0, -1, np.nan, np.inf])
def test_absurd_scale(um_per_px, pixels):
    with pytest.raises(ValueError, match="um_per_px"):
        open_slide(pixels, um_per_px=um_per_px)


@pytest.mark.parametrize("region", [(0, 0, 0, 5, (5, 5)), (np.nan, 0, 5, 5, (5, 5)), (0, 0, 5, 5, (0, 5))])
def test_absurd_region(region, pixels):
    with pytest.raises(ValueError, match="read_region"):
        open_slide(pixels).read_region(*region)


def test_slides_load_neither_torch_nor_anndata():
    import subprocess
    import sys

    code = "import sys, gdml.slides; sys.exit(any(m in sys.modules for m in ('torch', 'anndata', 'scanpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def blocks():
    """Large even blocks, which all levels of a pyramid show alike."""
    return np.random.default_rng(0).integers(60, 230, (8, 8, 3), np.uint8).repeat(64, 0).repeat(64, 1)


def damaged(path, pixels, level):
    """Pyramid of three levels, in one of which the data of every tile are overwritten."""
    import pyvips
    import tifffile

    image = pyvips.Image.new_from_array(pixels)
    image.tiffsave(str(path), tile=True, pyramid=True, tile_width=128, tile_height=128, compression="lzw")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[level]
        for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            content[offset : offset + length] = bytes(length)
    path.write_bytes(content)
    return path


def test_a_broken_level_is_replaced_by_the_next_finer_one(tmp_path, blocks):
    path = damaged(tmp_path / "broken.tif", blocks, 1)
    slide = open_slide(path)
    with pytest.warns(UserWarning, match=r"Level 1 of the 3 levels.*broken\.tif.*damaged.*tiffsave") as caught:
        region = slide.read_region(0, 0, 512, 512, (256, 256))
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(region[8::32, 8::32], blocks[16::64, 16::64])
    # the other levels go on as before, without a word
    np.testing.assert_array_equal(slide.read_region(0, 0, 512, 512, (512, 512)), blocks)
    np.testing.assert_allclose(slide.read_region(0, 0, 512, 512, (128, 128))[8::16, 8::16], blocks[32::64, 32::64])
    mend = str(caught[0].message).split("anew: ")[1].split(". Its regions")[0]
    import pyvips

    eval(mend.replace("'mended.tif'", repr(str(tmp_path / "mended.tif"))), {"pyvips": pyvips})
    mended = open_slide(tmp_path / "mended.tif").read_region(0, 0, 512, 512, (512, 512)).astype(int)
    np.testing.assert_allclose(mended[32::64, 32::64], blocks[32::64, 32::64], atol=3)


def test_broken_full_resolution(tmp_path, blocks):
    slide = open_slide(damaged(tmp_path / "broken.tif", blocks, 0))
    for _ in range(2):  # not only at first
        with pytest.raises(ValueError, match=r"broken\.tif.*damaged.*copy it again.*level 0"):
            slide.read_region(0, 0, 512, 512, (512, 512))
    np.testing.assert_allclose(slide.read_region(0, 0, 512, 512, (128, 128))[8::16, 8::16], blocks[32::64, 32::64])


def test_threads_survive_the_broken_level_of_another(tmp_path, blocks):
    from concurrent.futures import ThreadPoolExecutor

    slide = open_slide(damaged(tmp_path / "broken.tif", blocks, 1))

    def read(i):
        out = 256 if i % 2 else 512
        return (slide.read_region(0, 0, 512, 512, (out, out))[out // 32 :: out // 8, out // 32 :: out // 8]).tolist()

    with pytest.warns(UserWarning, match="Level 1"), ThreadPoolExecutor(4) as pool:
        assert all(found == blocks[16::64, 16::64].tolist() for found in pool.map(read, range(40)))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("slide.svs", b"barcode\tx\ty\n" * 20, r"slide\.svs' cannot be opened \(it is text\)"),
        ("slide.tif", b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", "it is a PDF document"),
        ("slide.tif", b"PK\x03\x04" + bytes(20), "it is a ZIP archive"),
        ("slide.tif", b"", "it is empty"),
        ("slide.ndpi", b"\x01\x02\xff\xfe" * 50, "not a known file format"),
        ("slide.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "is a SVG file, not the scan"),
        ("slide.csv", b"1,2,3\n4,5,6\n", "is a CSV file, not the scan"),
    ],
)
def test_files_of_other_kinds(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says):
        open_slide(tmp_path / name)
