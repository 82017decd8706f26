"""Maps of slides that have only an image."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import gdml


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def image():
    """Glass with a rectangle of texture, x 200 to 700 and y 200 to 600."""
    image = np.full((800, 1000, 3), 245, np.uint8)
    image[200:600, 200:700] = np.random.default_rng(0).integers(60, 200, (400, 500, 3))
    return image


def draw(image, img=True, shape=None, um_per_px=1.0, **options):
    mask = np.zeros((8, 10), bool)
    mask[2:6, 2:7] = True
    slide = gdml.pp.grid(image, 50, tissue=mask, um_per_px=um_per_px, min_tissue=0.5, **options)
    values = np.random.default_rng(0).random((slide.n_obs, 1))
    slide.obsm["gdml"] = pd.DataFrame(values, index=slide.obs_names, columns=["TAGLN"])
    (ax,) = gdml.pl.spatial_pred(slide, "TAGLN", img=img, shape=shape)
    return slide, ax, ax.collections[0]


def corners(drawn):
    """Left, top, right and bottom of each polygon."""
    points = np.array([path.vertices[:-1] for path in drawn.get_paths()])
    return np.hstack([points.min(1), points.max(1)])


@pytest.mark.parametrize("img", [False, True])
def test_tiles_are_squares_at_their_true_size(image, img):
    slide, _, drawn = draw(image, img)
    centre = slide.obsm["spatial"]
    np.testing.assert_allclose(corners(drawn), np.hstack([centre - 25, centre + 25]))


def test_glass_is_left_empty(image):
    slide, ax, drawn = draw(image)
    assert slide.n_obs == 8 * 10  # of 16 x 20
    box = corners(drawn)
    assert box[:, :2].min(0).tolist() == [200, 200] and box[:, 2:].max(0).tolist() == [700, 600]
    assert ax.images[0].get_extent() == [0, 1000, 800, 0]


def test_the_tissue_shows_through_and_no_mesh_is_drawn(image):
    _, ax, drawn = draw(image)
    assert 0.5 < drawn.get_alpha() < 1 and ax.images[0].get_alpha() == 0.5
    assert not drawn.get_antialiased()[0] and drawn.get_linewidth()[0] == 0
    # tiles side by side leave no line between them: every pixel of a row of equal tiles has one colour
    ax.images[0].remove()
    drawn.set_array(np.ones(len(drawn.get_array())))
    ax.figure.canvas.draw()
    pixels = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3]
    (left, bottom), (right, top) = ax.transData.transform([(210, 590), (690, 210)])
    inside = pixels[len(pixels) - int(top) : len(pixels) - int(bottom), int(left) : int(right)]
    assert inside.size > 10_000 and np.ptp(inside.reshape(-1, 3).astype(int), axis=0).max() <= 1


def test_the_title_counts_tiles(image):
    slide, ax, _ = draw(image)
    assert f"predicted, {slide.n_obs} tiles" in [text.get_text() for text in ax.texts]


@pytest.mark.parametrize(("spacing_um", "side"), [(70, 50), (40, 40)])
def test_gaps_are_shown_and_tiles_that_overlap_are_cut(image, spacing_um, side):
    box = corners(draw(image, spacing_um=spacing_um)[2])
    np.testing.assert_allclose(box[:, 2:] - box[:, :2], side)


def test_a_hexagonal_lattice_is_drawn_as_hexagons(image):
    _, _, drawn = draw(image, layout="hex")
    assert {len(path.vertices) - 1 for path in drawn.get_paths()} == {6}


def test_native_pixels_have_squares_and_no_scale_bar(image):
    slide = gdml.pp.grid(image, None, tile_px=100, tissue=False)
    slide.obsm["gdml"] = pd.DataFrame({"TAGLN": np.arange(80.0)}, index=slide.obs_names)
    (ax,) = gdml.pl.spatial_pred(slide, "TAGLN")
    box = corners(ax.collections[0])
    np.testing.assert_allclose(box[:, 2:] - box[:, :2], 100)
    assert not ax.lines


def test_the_scale_bar_is_as_long_as_it_says(image):
    _, ax, _ = draw(image, um_per_px=0.5)
    (bar,) = ax.lines
    (label,) = [text.get_text() for text in ax.texts if text.get_text().endswith("m")]
    assert np.ptp(bar.get_xdata()) * 0.5 == pytest.approx(float(label.removesuffix(" µm")))


def test_the_image_lies_where_its_corner_is(image):
    from gdml.slides.scaled import ScaledSlide

    shifted = ScaledSlide(gdml.slides.open_slide(image), um_per_px=1.0, origin=(5000.0, 3000.0))
    slide, ax, drawn = draw(shifted)
    assert ax.images[0].get_extent() == [5000, 6000, 3800, 3000]
    assert corners(drawn)[:, :2].min(0).tolist() == [5200, 3200]


def test_squidpy_draws_the_tiles_at_their_size(image):
    squidpy = pytest.importorskip("squidpy")
    slide, _, _ = draw(image)
    slide.obs["TAGLN"] = slide.obsm["gdml"]["TAGLN"]
    ax = squidpy.pl.spatial_scatter(slide, color="TAGLN", shape="square", library_key="library_id", return_ax=True)
    boxes = [path.get_extents() for path in ax.collections[0].get_paths()]
    scale = slide.uns["spatial"]["slide"]["scalefactors"]["tissue_hires_scalef"]
    np.testing.assert_allclose([box.width for box in boxes], 50 * scale)
