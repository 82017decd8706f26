import numpy as np
import pytest

from gdml.slides import open_slide
from gdml.slides.glass import coverage, glass
from gdml.slides.thumbnail import read_in_bands, thumbnail

WIDTH, HEIGHT = 900, 700
CORNER = (slice(80, 420), slice(520, 860))  # tissue: upper right


def scan(tint=(236, 228, 240)) -> np.ndarray:
    """Textured tissue in a corner of tinted glass with some noise of the camera."""
    rng = np.random.default_rng(0)
    image = np.full((HEIGHT, WIDTH, 3), tint, float) + rng.normal(0, 1, (HEIGHT, WIDTH, 1))
    grain = rng.random((HEIGHT // 5, WIDTH // 5)).repeat(5, 0).repeat(5, 1)[..., None]
    image[CORNER] = (np.array([150, 90, 160]) + 90 * (grain - 0.5))[CORNER]
    return np.clip(image, 0, 255).astype(np.uint8)


def spots() -> np.ndarray:
    x, y = np.meshgrid(np.arange(540, 850, 30.0), np.arange(100, 410, 30.0))
    return np.column_stack([x.ravel(), y.ravel()])


@pytest.mark.parametrize("tint", [(255, 255, 255), (236, 228, 240), (205, 195, 220)])
def test_glass_of_any_tint(tint):
    mask = glass(scan(tint))
    truth = np.ones((HEIGHT, WIDTH), bool)
    truth[CORNER] = False
    assert (mask == truth).mean() > 0.97


@pytest.mark.parametrize(
    "image",
    [
        np.full((300, 300, 3), 255, np.uint8),
        np.zeros((300, 300, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8),
        scan()[CORNER],
        255 - scan(),
        scan()[60:120, 500:560],
    ],
    ids=["glass", "black", "noise", "tissue", "dark field", "small"],
)
def test_images_without_both_are_not_judged(image):
    assert glass(image) is None
    assert coverage(image, np.array([[5.0, 5.0]]), image.shape[1::-1]) is None


def test_right_coordinates_are_not_suspicious():
    found = coverage(scan(), spots(), (WIDTH, HEIGHT))
    assert found.over_glass == 0 and not found.suspicious and found.n_spots == 121


@pytest.mark.parametrize(
    ("wrong", "undone"),
    [
        (lambda x, y: (y, x), "x and y are swapped"),
        (lambda x, y: (WIDTH - x, y), "flipped left to right"),
        (lambda x, y: (x, HEIGHT - y), "flipped top to bottom"),
        (lambda x, y: (WIDTH - x, HEIGHT - y), "turned by 180 degrees"),
        # back from the coordinates after a quarter turn clockwise
        (lambda x, y: (y, HEIGHT - x), "turned by 90 degrees clockwise"),
        (lambda x, y: (WIDTH - y, x), "turned by 90 degrees counterclockwise"),
    ],
)
def test_wrong_coordinates_and_what_mends_them(wrong, undone):
    found = coverage(scan(), np.column_stack(wrong(*spots().T)), (WIDTH, HEIGHT))
    assert found.suspicious and found.over_glass > 0.5
    assert (found.best, found.best_over_glass) == (undone, 0)


def test_hires_coordinates():
    found = coverage(scan(), spots() * 0.1, (WIDTH, HEIGHT), {"enlarged": 10.0})
    assert found.over_glass == 1 and (found.best, found.best_over_glass) == ("enlarged", 0)


def test_few_spots_over_glass_are_no_reason_to_doubt():
    stray = np.vstack([spots()[:20], np.full((4, 2), 20.0)])
    assert coverage(scan(), stray, (WIDTH, HEIGHT)).over_glass == pytest.approx(4 / 24)
    assert not coverage(scan(), stray, (WIDTH, HEIGHT)).suspicious


def test_thumbnails_of_all_sources_agree(tmp_path):
    import pyvips
    import xarray as xr
    from PIL import Image

    pixels = np.tile(scan(), (2, 3, 1))
    Image.fromarray(pixels).save(tmp_path / "flat.jpg", quality=95)
    Image.fromarray(pixels).save(tmp_path / "flat.png")
    pyvips.Image.new_from_array(pixels).tiffsave(str(tmp_path / "p.tif"), tile=True, pyramid=True, tile_width=128)
    array = open_slide(pixels)
    expected = thumbnail(array, 300).astype(int)
    assert expected.shape == (156, 300, 3)
    for name, slide in {
        "jpeg": open_slide(tmp_path / "flat.jpg"),
        "png": open_slide(tmp_path / "flat.png"),
        "pyramid": open_slide(tmp_path / "p.tif"),
        "lazy": open_slide(xr.DataArray(np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"))),
        "scaled": open_slide(array, um_per_px=0.5),
    }.items():
        small = thumbnail(slide, 300)
        assert small.shape == expected.shape and small.dtype == np.uint8, name
        assert np.abs(small - expected).mean() < 4, name
    assert thumbnail(array, 10_000).shape == pixels.shape  # not enlarged
    np.testing.assert_array_equal(read_in_bands(array, 300), expected)


def test_thumbnail_reads_few_pixels(tmp_path, monkeypatch):
    import pyvips

    from gdml.slides import _slide

    path = tmp_path / "p.tif"
    pyvips.Image.new_from_array(np.tile(scan(), (4, 4, 1))).tiffsave(str(path), tile=True, pyramid=True)
    slide, read = open_slide(path), []
    pixels = type(slide)._pixels
    monkeypatch.setattr(
        type(slide),
        "_pixels",
        lambda self, level, *box: read.append((box[2] - box[0]) * (box[3] - box[1])) or pixels(self, level, *box),
    )
    assert thumbnail(slide, 450).shape == (350, 450, 3)
    assert (
        sum(read) < 3 * 900 * 700
    )  # level of a quarter, with the margins of the bands; the slide has 16 times as many
    monkeypatch.setattr(_slide, "MOST_PX", 1000)
    assert thumbnail(slide, 450) is None


def test_thumbnail_of_a_truncated_file(tmp_path):
    from PIL import Image

    Image.fromarray(scan()).save(tmp_path / "whole.jpg")
    path = tmp_path / "half.jpg"
    path.write_bytes((tmp_path / "whole.jpg").read_bytes()[:30_000])
    with pytest.raises(ValueError, match=r"half\.jpg.*truncated"):
        thumbnail(open_slide(path))
