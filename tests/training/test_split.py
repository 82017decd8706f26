import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdml.training.split import block_margin, make_split, split_by_block, split_by_group

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 1000)
fractions = st.floats(0.05, 0.9)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@quick
@given(st.lists(st.tuples(st.integers(1, 20), st.sampled_from("ABCD")), min_size=1, max_size=7), fractions, seeds)
def test_groups_are_held_out_whole(make_data, slides, fraction, seed):
    lengths, groups = zip(*slides, strict=True)
    data = make_data(lengths, groups=list(groups))
    if len(set(groups)) < 2:
        with pytest.raises(ValueError, match="two groups or more"):
            split_by_group(data, fraction, generator(seed))
        return
    split = split_by_group(data, fraction, generator(seed))
    assert torch.cat([split.train, split.validation]).sort().values.tolist() == list(range(len(data)))
    assert len(split.train) and len(split.validation) and split.by == "group"
    of = lambda rows: {groups[int(s)] for s in data.slide[rows]}
    assert not of(split.train) & of(split.validation)
    assert of(split.validation) == set(split.held_out)
    if len(split.held_out) > 1:
        assert len(split.validation) <= fraction * len(data)


@pytest.mark.parametrize(("n_groups", "fraction", "n_held"), [(10, 0.2, 2), (10, 0.19, 1), (4, 0.99, 3), (2, 0.99, 1)])
def test_groups_are_held_out_while_they_fit(make_data, n_groups, fraction, n_held):
    assert len(split_by_group(make_data((10,) * n_groups), fraction, generator(0)).held_out) == n_held


def test_each_group_gets_its_turn(make_data):
    data = make_data((10, 10, 10))
    assert {split_by_group(data, 0.3, generator(seed)).held_out for seed in range(30)} == {("S0",), ("S1",), ("S2",)}


@quick
@given(st.lists(st.integers(1, 60), min_size=1, max_size=3), st.floats(0.01, 0.99), st.floats(0, 6), seeds)
def test_blocks_keep_their_distance(make_data, lengths, fraction, margin, seed):
    data = make_data(lengths)
    try:
        split = split_by_block(data, fraction, margin, generator(seed))
    except ValueError as error:
        assert "validation_fraction" in str(error)
        return
    xy = data.parts.xy
    train, held = set(split.train.tolist()), set(split.validation.tolist())
    assert train and len(held) >= 3 and not train & held and split.by == "block"
    for slide in range(len(lengths)):
        rows = data.rows_of(slide).tolist()
        assert len(held & set(rows)) == round(fraction * len(rows))
        for t in train & set(rows):
            for v in held & set(rows):
                assert float((xy[t] - xy[v]).abs().max()) >= margin
        # nobody is left out but for the margin
        for i in set(rows) - train - held:
            assert any(float((xy[i] - xy[v]).abs().max()) < margin for v in held & set(rows))


def test_no_region_of_a_training_spot_shows_a_held_out_tile(make_data):
    # a region of 5 x 5 tiles and a tile of 1 overlap unless x or y differ by 3: diagonals count in full
    xy = make_data((400,), width=10).parts.xy / 1.8 * 2.9 @ torch.tensor([[1.0, -1.0], [1.0, 1.0]]) / 2**0.5
    data = make_data((400,), width=10, xy=xy)  # turned by 45 degrees
    split = split_by_block(data, 0.2, 3.0, generator(0))
    for t in split.train.tolist():
        apart = (xy[split.validation] - xy[t]).abs()
        assert not ((apart[:, 0] < 2.5 + 0.5) & (apart[:, 1] < 2.5 + 0.5)).any()


def test_a_block_is_one_end_of_the_tissue(make_data):
    data = make_data((72,), width=6)  # 12 rows of 6: the long axis is y
    ends = set()
    for seed in range(20):
        y = data.parts.grid[split_by_block(data, 0.25, 1.0, generator(seed)).validation][:, 0]
        ends.add((int(y.min()), int(y.max())))
    assert ends == {(0, 2), (9, 11)}


@pytest.mark.parametrize(("lengths", "fraction", "margin"), [((5,), 0.2, 1), ((9,), 0.4, 99), ((1,), 0.5, 0)])
def test_nothing_left_on_one_side(make_data, lengths, fraction, margin):
    with pytest.raises(ValueError, match="to learn from and .* to validate on: use more spots"):
        split_by_block(make_data(lengths), fraction, margin, generator(0))


def test_splits_follow_the_generator(make_data):
    data = make_data()
    for split in (
        lambda s: split_by_group(data, 0.4, generator(s)),
        lambda s: split_by_block(data, 0.2, 2, generator(s)),
    ):
        assert torch.equal(split(3).validation, split(3).validation)


@quick
@given(st.sampled_from([1, 3, 5]), st.booleans(), st.floats(0.6, 3.0), st.floats(0, 1.5), seeds)
def test_blocks_share_nothing_with_what_is_learnt_from(make_data, n_side, smooth, pitch, angle, seed):
    """Neither a tile of a region nor a label of a training spot shows anything of a held-out spot."""
    cells = torch.stack([torch.arange(600) // 20, torch.arange(600) % 20], 1)
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).float()
    xy = cells.flip(1).float() * pitch @ turn
    around = {
        "neighbors": torch.zeros(600, n_side**2, 8),
        "neighbor_mask": torch.zeros(600, n_side**2, dtype=torch.bool),
    }
    data = make_data((600,), xy=xy, grid=cells, **around)
    try:
        split = make_split(data, "block", 0.2, None, seed, smooth=smooth)
    except ValueError:
        return
    apart = (xy[split.train][:, None] - xy[split.validation]).abs().amax(-1)  # tiles and regions are squares
    assert float(apart.min()) >= (n_side + 1) / 2 - 1e-3
    if smooth:  # nor does any spot that is averaged into a training label lie that near
        together = (cells[:, None] - cells).abs().amax(-1) <= 1
        averaged = together[split.train].any(0)
        near = (xy[averaged][:, None] - xy[split.validation]).abs().amax(-1)
        assert float(near.min()) >= (n_side + 1) / 2 - 1e-3
    assert float(apart.min()) < (n_side + 1) / 2 + 3 * pitch + 1e-3  # and no more spots are dropped than that


def test_the_margin_is_half_a_region_and_half_a_tile(make_data):
    cells = torch.stack([torch.arange(100) // 10, torch.arange(100) % 10], 1)
    around = {"neighbors": torch.zeros(100, 25, 8), "neighbor_mask": torch.zeros(100, 25, dtype=torch.bool)}
    (slide,) = make_data((100,), xy=cells.flip(1) * 1.8, grid=cells, **around).slides
    assert block_margin(slide) == 3.0
    assert 3.0 + 1.8 < block_margin(slide, smooth=True) < 3.0 + 1.8 + 0.01
