import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gdml.slides.tissue import TissueMap, tissue_from_geojson, tissue_from_mask

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
