import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdml.training.blocks import LEAST_HELD, LEAST_LEARNT, cut_slide, make_blocks

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def on_grid(make_data, rows, cols, *, pitch=1.8, angle=0.0, n_side=3, n_slides=1):
    """Slides of spots on a grid that is turned by an angle, with regions of n_side x n_side tiles."""
    n = rows * cols
    cells = torch.stack([torch.arange(n) // cols, torch.arange(n) % cols], 1)
    turned = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).float()
    return make_data(
        (n,) * n_slides,
        xy=(cells.flip(1).float() * pitch @ turned).repeat(n_slides, 1),
        grid=cells.repeat(n_slides, 1),
        neighbors=torch.zeros(n * n_slides, n_side**2, 8),
        neighbor_mask=torch.zeros(n * n_slides, n_side**2, dtype=torch.bool),
    )


grids = st.builds(
    dict,
    rows=st.integers(8, 16),
    cols=st.integers(8, 16),
    pitch=st.floats(0.7, 2.0),
    angle=st.floats(0, 1.5),
    n_side=st.sampled_from([1, 3, 5]),
)


@quick
@given(grids, st.integers(2, 6), st.booleans(), st.sampled_from([0.0, 0.5, 0.25]))
def test_every_spot_is_held_out_once_and_margins_hold(make_data, grid, n, smooth, turn):
    (slide,) = on_grid(make_data, **grid).slides
    cut = cut_slide(slide, n, smooth=smooth, turn=turn)
    held = np.concatenate([held for _, held in cut])
    assert sorted(held) == list(range(len(slide)))
    sizes = [len(held) for _, held in cut]
    assert max(sizes) - min(sizes) <= 1
    region = (grid["n_side"] + 1) / 2
    together = np.abs(slide.grid[:, None] - slide.grid).max(-1) <= 1  # averaged into one label
    for learnt, out in cut:
        assert not set(learnt) & set(out)
        if not len(learnt):
            continue
        apart = np.abs(slide.xy[learnt][:, None] - slide.xy[out]).max(-1)  # tiles and regions are squares
        assert apart.min() >= region - 1e-4
        if smooth:  # no spot is part of labels on both sides
            assert not (together[learnt].any(0) & together[out].any(0)).any()
        # nobody is left out but for the margin
        reach = 2 * grid["pitch"] * 2**0.5 if smooth else 0.0
        dropped = np.setdiff1d(np.arange(len(slide)), np.r_[learnt, out])
        if len(dropped):
            far = np.abs(slide.xy[dropped][:, None] - slide.xy[out]).max(-1).min(1)
            assert far.max() < max(region, reach) + reach + 2e-3


def test_blocks_lie_side_by_side_along_the_tissue(make_data):
    (slide,) = on_grid(make_data, 30, 10, n_side=1).slides
    spans = [(slide.grid[held, 0].min(), slide.grid[held, 0].max()) for _, held in cut_slide(slide, 3)]
    assert sorted(spans) == [(0, 9), (10, 19), (20, 29)]
    across = [(slide.grid[held, 1].min(), slide.grid[held, 1].max()) for _, held in cut_slide(slide, 2, turn=0.5)]
    assert sorted(across) == [(0, 4), (5, 9)]


def test_a_fold_holds_out_a_block_of_every_slide(make_data):
    slides = on_grid(make_data, 20, 12, n_slides=2).slides
    folds = make_blocks(slides, 4)
    assert [fold.name for fold in folds] == ["block 1", "block 2", "block 3", "block 4"]
    for name in ("S0", "S1"):
        held = np.concatenate([fold.cut[name][1] for fold in folds])
        assert sorted(held) == list(range(240))
    for fold in folds:
        assert fold.train == fold.test == ("S0", "S1") and fold.cut.keys() == {"S0", "S1"}


def test_repeats_cut_in_other_directions_whatever_their_number(make_data):
    slides = on_grid(make_data, 20, 16).slides
    three = make_blocks(slides, 2, n_repeats=3)
    assert [fold.repeat for fold in three] == [0, 0, 1, 1, 2, 2]
    assert three[2].name == "repeat 2, block 1" and len({fold.name for fold in three}) == 6
    cuts = [frozenset(fold.cut["S0"][1].tolist()) for fold in three]
    assert len(set(cuts)) == 6
    for repeat in range(3):
        assert cuts[2 * repeat] | cuts[2 * repeat + 1] == set(range(320))
    two = make_blocks(slides, 2, n_repeats=2)
    assert [frozenset(fold.cut["S0"][1].tolist()) for fold in two] == cuts[:4]


def test_a_slide_that_is_too_small_is_named_with_what_helps(make_data):
    slides = on_grid(make_data, 12, 10, pitch=1.0, n_side=3).slides
    make_blocks(slides, 4)
    with pytest.raises(
        ValueError, match="Slide 'S0' is too small for 20 blocks.* 120 spots.* scores 6 .at least 10"
    ) as e:
        make_blocks(slides, 20)
    offered = int(re.search(r"n_folds=(\d+)", str(e.value))[1])
    make_blocks(slides, offered)


def test_where_no_number_of_blocks_helps(make_data):
    slides = on_grid(make_data, 6, 5, pitch=1.0, n_side=5, n_slides=2).slides
    with pytest.raises(
        ValueError, match=r"a fold leaves 5 to learn from .at least 10 are needed.*tile\(adata, n_side=3\)"
    ):
        make_blocks(slides, 2)
    with pytest.raises(ValueError, match="normalize={'smooth': False}; or .*leave the slide out"):
        make_blocks(slides, 2, smooth=True)
    bare = on_grid(make_data, 4, 4, n_side=1).slides
    with pytest.raises(ValueError, match="More spots are needed"):
        make_blocks(bare, 2)


@quick
@given(grids, st.integers(2, 8))
def test_what_is_accepted_is_large_enough(make_data, grid, n):
    slides = on_grid(make_data, **grid).slides
    try:
        folds = make_blocks(slides, n)
    except ValueError:
        return
    for fold in folds:
        learnt, held = fold.cut["S0"]
        assert len(held) >= LEAST_HELD and len(learnt) >= LEAST_LEARNT * len(slides[0])


def test_a_part_of_a_slide_knows_nothing_of_the_rest(make_data):
    data = make_data((60,))
    (slide,) = data.slides
    at = np.arange(20, 45)
    part = slide.take(at)
    np.testing.assert_array_equal(part.xy, slide.xy[at])
    assert part.nearest.max() < 25
    pooled = data.parts.pooled[at].float()
    np.testing.assert_allclose(part.moments("pooled").mean, pooled.mean(0), atol=1e-5)
    held = slide.take(np.arange(20), known=part)  # a block is in the units of what is known of its slide
    assert held.moments("pooled") is part.moments("pooled") and held.n_moments == 25
    np.testing.assert_array_equal(held.part("pooled", np.arange(20)), data.parts.pooled[:20].float())
