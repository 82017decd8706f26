import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gdml.slides.geometry import (
    grid_kind,
    neighbor_boxes,
    neighbor_mask,
    tile_side_px,
    um_per_px_from_grid,
    um_per_px_from_neighbors,
)

angles = st.floats(0, 2 * np.pi)
pitches = st.floats(20, 600)


def square_grid(n_rows=9, n_cols=7):
    row, col = (a.ravel() for a in np.mgrid[:n_rows, :n_cols])
    return row, col, np.column_stack([col, row]).astype(float)


def hex_grid(n_rows=9, n_cols=7):
    row, i = (a.ravel() for a in np.mgrid[:n_rows, :n_cols])
    col = 2 * i + row % 2
    return row, col, np.column_stack([col / 2, row * np.sqrt(3) / 2])


def turned(xy, angle, pitch_px):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return xy @ turn.T * pitch_px + 1000


@given(angles, pitches, st.sampled_from([(square_grid, 200.0), (hex_grid, 100.0)]))
def test_scale_from_grid_of_any_angle(angle, pitch_px, technology):
    grid, pitch_um = technology
    row, col, xy = grid()
    xy = turned(xy, angle, pitch_px)
    assert um_per_px_from_grid(xy, row, col, pitch_um) == pytest.approx(pitch_um / pitch_px)
    assert um_per_px_from_neighbors(xy, pitch_um) == pytest.approx(pitch_um / pitch_px)


def test_scale_from_grid_bears_jitter_and_gaps():
    row, col, xy = square_grid(20, 20)
    rng = np.random.default_rng(0)
    keep = rng.random(400) < 0.5
    xy = turned(xy, 0.1, 290) + rng.normal(0, 15, xy.shape)
    assert um_per_px_from_grid(xy[keep], row[keep], col[keep], 200) == pytest.approx(200 / 290, rel=0.01)


def test_scale_from_grid_bears_stray_spots():
    row, col, xy = square_grid()
    xy = turned(xy, 0.3, 290)
    xy[[3, 20, 40]] = [[-1, -1], [9000, 0], [0, 9000]]
    assert um_per_px_from_grid(xy, row, col, 200) == pytest.approx(200 / 290)


def test_kind_of_grid():
    assert grid_kind(*hex_grid()[:2]) == "hex"
    assert grid_kind(*square_grid()[:2]) == "square"
    assert grid_kind(*square_grid(100, 100)[:2]) is None  # too large for legacy ST
    assert grid_kind([0, 1], [0, 1]) is None  # too few to tell
    assert grid_kind(np.full(20, np.nan), np.arange(20)) is None
    assert grid_kind(np.arange(20) + 0.5, np.arange(20)) is None


def test_grids_that_tell_no_scale():
    row, col, xy = square_grid()
    with pytest.raises(ValueError, match="do not match"):
        um_per_px_from_grid(np.random.default_rng(0).permutation(xy) * 100, row, col, 200)
    with pytest.raises(ValueError, match="not a hexagonal or square grid"):
        um_per_px_from_grid(np.column_stack([np.arange(20)] * 2), np.arange(20), np.arange(20), 200)
    with pytest.raises(ValueError, match="At least two"):
        um_per_px_from_neighbors([[0, 0]], 100)
    with pytest.raises(ValueError, match="coincide"):
        um_per_px_from_neighbors(np.zeros((5, 2)), 100)


def test_side_of_a_tile():
    assert tile_side_px(112, 0.5) == 224


@given(
    st.lists(st.tuples(st.floats(-50, 350), st.floats(-50, 250)), min_size=1, max_size=5),
    st.floats(1, 120),
    st.sampled_from([1, 3, 5]),
)
def test_boxes_and_mask_against_a_loop(xy, side, n_side):
    size = (300, 200)
    boxes, mask = neighbor_boxes(xy, side, n_side), neighbor_mask(xy, side, size, n_side)
    assert boxes.shape == (len(xy), n_side**2, 2) and mask.shape == (len(xy), n_side**2)
    for i, (x, y) in enumerate(xy):
        for r in range(n_side):
            for c in range(n_side):
                left = x + (c - n_side // 2) * side - side / 2
                top = y + (r - n_side // 2) * side - side / 2
                np.testing.assert_allclose(boxes[i, r * n_side + c], [left, top], atol=1e-9)
                room = min(left, top, size[0] - left - side, size[1] - top - side)
                if r == c == n_side // 2:
                    assert mask[i, r * n_side + c]
                elif abs(room) > 1e-3:  # at the very edge rounding decides
                    assert mask[i, r * n_side + c] == (room > 0)


def test_tile_that_touches_the_edge_is_inside():
    assert neighbor_mask([[15, 15]], 10, (30, 30), 3).all()
    assert not neighbor_mask([[15, 15]], 10, (29, 30), 3)[0, [2, 5, 8]].any()


@pytest.mark.parametrize("n_side", [0, -1, 4])
def test_even_regions_have_no_centre(n_side):
    with pytest.raises(ValueError, match="odd"):
        neighbor_boxes([[0, 0]], 10, n_side)
