import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gdml.slides import open_slide
from gdml.slides.tissue import CLASSES, TissueMap, find_tissue, tissue_from_geojson, tissue_from_mask

coordinate = st.floats(-30, 130)


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 4)),
    st.lists(st.tuples(coordinate, coordinate), min_size=1, max_size=5),
    st.floats(0.5, 60),
)
def test_fraction_is_the_area_of_tissue_pixels(labels, xy, side):
    width, height = 100, 70
    found = TissueMap(labels, (width, height)).fraction(xy, side)
    step_x, step_y = width / labels.shape[1], height / labels.shape[0]
    pixels = [
        shapely.box(j * step_x, i * step_y, (j + 1) * step_x, (i + 1) * step_y) for i, j in np.argwhere(labels == 1)
    ]
    tissue = shapely.union_all(pixels)
    tiles = [shapely.box(x - side / 2, y - side / 2, x + side / 2, y + side / 2) for x, y in xy]
    np.testing.assert_allclose(found, shapely.area(shapely.intersection(tiles, tissue)) / side**2, atol=1e-5)
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("xy", "side", "says"),
    [([1.0, 2.0], 5, "`xy`"), ([[1.0, np.nan]], 5, "`xy`"), ([[1.0, 2.0]], 0, "`side_px`")],
)
def test_absurd_tiles(xy, side, says):
    with pytest.raises(ValueError, match=says):
        TissueMap(np.ones((3, 3), np.uint8), (3, 3)).fraction(xy, side)


def test_mask_at_any_scale():
    mask = np.zeros((50, 100), bool)
    mask[:, :30] = True
    for values in (mask, mask.astype(np.uint8), mask * np.uint8(255), mask.astype(float)):
        found = tissue_from_mask(values, (1000, 500))
        np.testing.assert_array_equal(found.labels == 1, mask)
        np.testing.assert_allclose(found.fraction([[300, 250], [290, 250], [100, 100]], 20), [0.5, 1, 1])


def test_large_masks_are_shrunk_by_majority():
    mask = np.zeros((6, 9000), bool)
    mask[:, :4000] = True
    found = tissue_from_mask(mask, (90_000, 60))
    assert found.labels.shape == (3, 4096)
    assert found.fraction([[45_000, 30]], 90_000)[0] * 90_000 / 60 == pytest.approx(4 / 9, abs=1e-3)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (np.ones((100, 50), bool), "50 x 100 px.*slide 1000 x 500 px.*aspect"),
        (np.ones((50, 103), bool), "103 x 50 px.*aspect"),
        (np.arange(200).reshape(10, 20), "found 200 of type int64: 0, 1, 2, 3, 4, ..."),
        (np.full((10, 20), -1), "two values"),
        (np.full((10, 20), np.nan), "two values"),
        (np.full((10, 20), "yes"), "two values"),
        (np.repeat([[1, 2]], 10, 0).repeat(10, 1), "found 2 of type int64: 1, 2"),
        (np.zeros((10, 20), bool), "no tissue.*tissue=False"),
        (np.ones((10, 20, 3), np.uint8), r"shape \(10, 20, 3\)"),
        (np.ones((0, 20), np.uint8), r"shape \(0, 20\)"),
    ],
)
def test_masks_that_are_refused(mask, says):
    with pytest.raises(ValueError, match=says):
        tissue_from_mask(mask, (1000, 500))


def feature(shape, **properties):
    return {"type": "Feature", "geometry": json.loads(shapely.to_geojson(shape)), "properties": properties}


@st.composite
def stars(draw):
    """Polygons with a hole, of many points."""
    n = draw(st.integers(3, 200))
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    radius = np.array(draw(st.lists(st.floats(10, 60), min_size=n, max_size=n)))
    x, y = draw(st.tuples(st.floats(0, 200), st.floats(0, 150)))
    outline = np.column_stack([x + radius * np.cos(angle), y + radius * np.sin(angle)])
    hole = np.column_stack([x + 3 * np.cos(angle), y + 3 * np.sin(angle)])
    return shapely.Polygon(outline, [hole])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(stars(), min_size=1, max_size=3),
    st.lists(st.tuples(st.floats(0, 200), st.floats(0, 150)), min_size=1, max_size=5),
    st.floats(1, 80),
)
def test_fraction_of_polygons_is_exact(polygons, xy, side):
    slide = (200, 150)
    found = tissue_from_geojson({"type": "FeatureCollection", "features": [feature(p) for p in polygons]}, slide)
    tissue = shapely.intersection(shapely.union_all(shapely.make_valid(polygons)), shapely.box(0, 0, *slide))
    tiles = [shapely.box(x - side / 2, y - side / 2, x + side / 2, y + side / 2) for x, y in xy]
    np.testing.assert_allclose(
        found.fraction(xy, side), shapely.area(shapely.intersection(tiles, tissue)) / side**2, atol=1e-5
    )
    drawn = (found.labels == 1).sum()
    assert abs(drawn - tissue.area) <= 2 * tissue.length + 10  # the labels differ in the pixels of the outline


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(3, 25), min_size=1, max_size=7), min_size=1, max_size=3), st.randoms())
def test_islands_in_holes_are_drawn(nests, order):
    """Boxes one within the other, in turn tissue and hole; a thin ring has less area than the island in it."""
    polygons = []
    for i, walls in enumerate(nests):
        inset = np.cumsum([0, *walls])
        boxes = [shapely.box(100 * i + d, d, 100 * i + 98 - d, 98 - d) for d in inset[inset < 45]]
        polygons += [
            shapely.difference(*boxes[j : j + 2]) if j + 1 < len(boxes) else boxes[j] for j in range(0, len(boxes), 2)
        ]
    order.shuffle(polygons)
    found = tissue_from_geojson([feature(polygon) for polygon in polygons], (300, 100))
    x, y = (axis.ravel() + 0.5 for axis in np.meshgrid(np.arange(300), np.arange(100)))
    tissue = shapely.union_all(polygons)
    clear = shapely.distance(tissue.boundary, shapely.points(x, y)) > 1
    np.testing.assert_array_equal(found.labels.ravel()[clear], shapely.contains_xy(tissue, x, y)[clear])


def test_every_form_of_geojson(tmp_path):
    ring = shapely.Polygon([(10, 10), (60, 10), (60, 60), (10, 60)], [[(20, 20), (50, 20), (50, 50), (20, 50)]])
    two = shapely.MultiPolygon([ring, shapely.box(30, 30, 40, 40)])  # an island in the hole
    one = feature(two, objectType="annotation", classification={"name": "Other"})
    path = tmp_path / "tissue.geojson"
    path.write_text(json.dumps([one, feature(shapely.Point(3, 3)), {"type": "Feature", "geometry": None}]))
    for source in (path, str(path), [one], one, one["geometry"], {"type": "FeatureCollection", "features": [one]}):
        found = tissue_from_geojson(source, (100, 80))
        assert found.labels.shape == (80, 100)
        np.testing.assert_allclose(
            found.fraction([[35, 35], [35, 25], [15, 35], [5, 5]], 10), [1, 0.0, 1, 0], atol=1e-6
        )
        assert [found.labels[y, x] for y, x in ((35, 35), (25, 35), (15, 35), (5, 5))] == [1, 0, 1, 0]


def test_polygons_that_cross_themselves_are_repaired():
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [40, 40], [40, 0], [0, 40], [0, 0]]]}
    found = tissue_from_geojson(bow, (100, 80))
    np.testing.assert_allclose(found.fraction([[20, 20], [5, 20]], 40), [0.5, 0.265625], atol=1e-6)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("no json", "tissue.geojson' is not JSON"),
        ("3", "not GeoJSON: found int"),
        ('{"type": "Topology"}', "not GeoJSON: found type 'Topology'"),
        ('{"type": "FeatureCollection"}', "not GeoJSON"),
        ('{"type": "FeatureCollection", "features": []}', "no polygons.*found no geometry"),
        ('{"type": "LineString", "coordinates": [[0, 0], [1, 1]]}', "no polygons.*found LineString"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [9, 9], [0, 0]]]}', "Polygon"),
        ('{"type": "Polygon", "coordinates": "here"}', "no valid coordinates"),
        (
            '{"type": "Polygon", "coordinates": [[[500, 0], [900, 0], [900, 300], [500, 0]]]}',
            r"outside the slide.*\(500, 0\) to \(900, 300\).*\(100, 80\).*full-resolution",
        ),
    ],
)
def test_geojson_that_is_refused(content, says, tmp_path):
    path = tmp_path / "tissue.geojson"
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        tissue_from_geojson(path, (100, 80))


def test_geojson_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.geojson.*does not exist"):
        tissue_from_geojson(tmp_path / "gone.geojson", (100, 80))
    with pytest.raises(FileNotFoundError, match="is a folder"):
        tissue_from_geojson(tmp_path, (100, 80))
    (tmp_path / "packed.geojson").write_bytes(b"\x1f\x8b\x08\xff")
    with pytest.raises(ValueError, match="not JSON"):
        tissue_from_geojson(tmp_path / "packed.geojson", (100, 80))


UM = 8.0  # per px of the scans below, which are as large as the maps of them
INKS = {
    "blue": (40, 70, 190),
    "deep blue": (25, 25, 150),
    "green": (30, 140, 70),
    "red": (205, 30, 45),
    "black": (25, 25, 30),
}


def scan(height=500, width=600):
    """Tissue of nuclei in stroma, with a lumen and an adipocyte-sized hole, on shaded glass with dust: where, image."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    tissue = np.hypot((x - 330) / 1.4, y - 250) < 150
    tissue &= np.hypot(x - 250, y - 250) > 25  # 400 um
    density = np.full((height, width, 3), 0.05) + 0.03 * (x / width)[..., None] * [0.2, 1, 0.2]
    nuclei = rng.random((height // 2, width // 2)).repeat(2, 0).repeat(2, 1)[..., None] ** 2
    glands = rng.random((height // 10, width // 10)).repeat(10, 0).repeat(10, 1)[..., None]
    stroma = rng.random((height, width, 1))
    density += tissue[..., None] * (
        (nuclei + 0.4 * glands) * [0.5, 0.55, 0.25] + (0.5 + 0.2 * stroma) * [0.05, 0.4, 0.1]
    )
    density[np.hypot(x - 420, y - 250) < 5] = 0.06  # 80 um
    density[np.hypot(x - 60, y - 60) < 8] += 0.6  # dust of 130 um
    density += rng.normal(0, 0.004, density.shape)
    return tissue, np.clip(256 * 10**-density - 1, 0, 255).astype(np.uint8)


def stained_with(image, ink, where):
    """Image behind a layer of ink."""
    return (image * np.where(where[..., None], (np.array(ink) + 1) / 256, 1)).astype(np.uint8)


def classes_of(image):
    """Labels at full size of an image at 8 um per px, as a slide of eight times the size would give."""
    return find_tissue(open_slide(image), um_per_px=UM).labels


def called(labels, name, where):
    return (labels[where] == CLASSES.index(name)).mean()


def test_tissue_is_found_on_shaded_glass():
    tissue, image = scan()
    found = find_tissue(open_slide(image), um_per_px=UM)
    assert found.size == (600, 500) and found.labels.shape == image.shape[:2]
    assert called(found.labels, "tissue", tissue) > 0.98
    assert called(found.labels, "glass", ~tissue) > 0.97
    # the lumen stays empty, the hole below the size of a tile is filled, the dust is dropped
    np.testing.assert_allclose(found.fraction([[250, 250], [420, 250], [60, 60]], 14), [0, 1, 0])


def test_scale_and_size_of_the_map():
    _, image = scan()
    large = open_slide(image.repeat(4, 0).repeat(4, 1), um_per_px=UM / 4)
    found = find_tissue(large)
    assert found.size == (2400, 2000) and found.labels.shape == (500, 600)
    assert (found.labels == classes_of(image)).mean() > 0.98
    unknown = find_tissue(open_slide(image))  # 10 mm
    assert unknown.labels.shape == (500, 600) and (unknown.labels == found.labels).mean() > 0.98
    with pytest.raises(ValueError, match="`um_per_px` must be positive, found -1"):
        find_tissue(large, um_per_px=-1)


def test_tissue_without_glass_is_tissue_throughout():
    tissue, image = scan()
    crop = image[180:320, 300:440]
    assert tissue[180:320, 300:440].mean() > 0.99
    assert (classes_of(crop) == 1).all()


@pytest.mark.parametrize("grey", [0, 128, 245, 255])
def test_no_tissue(grey):
    blank = np.full((300, 400, 3), grey, np.uint8)
    if grey == 128:
        blank = np.random.default_rng(0).normal(240, 2, (300, 400, 3)).astype(np.uint8)
    with pytest.raises(
        ValueError, match=r"No tissue.*'array'.*glass 100%.*gdml\.pl\.tissue.*tissue=False.*tissue=mask"
    ):
        classes_of(blank)


@pytest.mark.parametrize("fill", [0, 255])
def test_what_scanners_fill_frames_with_is_glass(fill):
    tissue, image = scan()
    framed = np.full((600, 700, 3), fill, np.uint8)
    framed[60:560, 80:680] = image
    labels = classes_of(framed)
    assert called(labels[60:560, 80:680], "tissue", tissue) > 0.97
    labels[60:560, 80:680][tissue] = 0
    assert (labels == 0).mean() > 0.98


@pytest.mark.parametrize("ink", INKS)
def test_pen_marks(ink):
    tissue, image = scan()
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    stroke = (np.abs(y - 60 - 0.5 * x) < 25) & (x < 420)  # 350 um wide, from the glass into the tissue
    labels = classes_of(stained_with(image, INKS[ink], stroke))
    assert called(labels, "pen", stroke & ~tissue) > 0.9
    if ink != "deep blue":  # which over this stain has the hue of dense nuclei
        assert called(labels, "pen", stroke & tissue) > 0.9
    away = np.abs(y - 60 - 0.5 * x) > 50
    assert called(labels, "tissue", tissue & away) > 0.98
    assert called(labels, "glass", ~tissue & away) > 0.97


def test_stains_are_no_ink():
    """A slide all of whose tissue has the hue of ink, such as one without eosin."""
    tissue, image = scan()
    density = -np.log10((image + 1.0) / 256)
    blue = np.clip(256 * 10 ** -(density @ [[0.9, 0, 0], [0.45, 0.5, 0.1], [0, 0, 1]]) - 1, 0, 255).astype(np.uint8)
    labels = classes_of(blue)
    assert called(labels, "tissue", tissue) > 0.95 and not (labels == CLASSES.index("pen")).any()


def test_fold():
    tissue, image = scan()
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    fold = (np.abs(y - 330) < 7) & (np.abs(x - 340) < 110)  # 110 um by 1.8 mm
    doubled = np.where(fold[..., None], (image / 255.0) ** 2 * 255, image).astype(np.uint8)
    labels = classes_of(doubled)
    assert called(labels, "fold", fold) > 0.6
    assert called(labels, "tissue", tissue & ~(np.abs(y - 330) < 12)) > 0.98
    assert not (classes_of(image) == CLASSES.index("fold")).any()


def test_out_of_focus():
    from skimage.filters import gaussian

    tissue, image = scan()
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    distance = np.hypot(x - 400, y - 260)
    blurred = (255 * gaussian(image, 2.0, channel_axis=2)).astype(np.uint8)  # 16 um
    spoilt = np.where((distance < 70)[..., None], blurred, image)
    slide = open_slide(spoilt.repeat(2, 0).repeat(2, 1), um_per_px=UM / 2)
    labels = find_tissue(slide).labels
    assert called(labels, "blurred", distance < 50) > 0.9
    assert called(labels, "tissue", tissue & (distance > 90)) > 0.97
    # at the resolution of the scan nothing is sharp, so focus is not judged
    assert not (classes_of(spoilt) == CLASSES.index("blurred")).any()


def test_a_large_image_without_levels_is_read_with_a_warning(tmp_path, monkeypatch):
    import pyvips

    from gdml.slides import _slide

    tissue, image = scan()
    pyvips.Image.new_from_array(image.repeat(2, 0).repeat(2, 1)).tiffsave(str(tmp_path / "flat.tif"), tile=True)
    monkeypatch.setattr(_slide, "MOST_PX", 1000)
    with pytest.warns(UserWarning, match=r"flat\.tif.*1200 x 1000 px.*no smaller levels.*tiffsave"):
        labels = find_tissue(open_slide(tmp_path / "flat.tif"), um_per_px=UM / 2).labels
    assert called(labels, "tissue", tissue) > 0.98


@pytest.mark.real
@pytest.mark.parametrize("name", ["C6", "colon d0"])
def test_measured_spots_lie_on_tissue(data_dir, name):
    import pandas as pd

    if name == "C6":
        image = next((data_dir / "her2st" / "ST-imgs" / "C" / "C6").glob("*.jpg"))
        table = pd.read_csv(data_dir / "her2st" / "ST-spotfiles" / "C6_selection.tsv", sep="\t")
        xy, scale = table[["pixel_x", "pixel_y"]].to_numpy(float), 0.73
    else:
        image, scale = data_dir / "visium_colon" / "colon_d0_HE.jpg", 0.97
        xy = pd.read_csv(data_dir / "visium_colon" / "spatial" / "tissue_positions_list.csv", header=None)[[5, 4]]
    found = find_tissue(open_slide(image), um_per_px=scale)
    assert (found.fraction(xy, 112 / scale) >= 0.25).all()
    assert 0.1 < (found.labels == 1).mean() < 0.45
    assert (found.labels > 1).mean() < 0.001  # no pen, fold or blur is invented
