import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gdml.slides.tissue import TissueMap

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
