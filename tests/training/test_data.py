import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
slides = st.lists(st.integers(1, 25), min_size=1, max_size=6)


@quick
@given(slides, st.integers(1, 30), st.integers(1, 4), st.integers(0, 100), st.data())
def test_an_epoch_has_every_row_once(make_data, lengths, size, most, seed, draw):
    data = make_data(lengths)
    rows = torch.tensor(sorted(draw.draw(st.sets(st.integers(0, len(data) - 1), min_size=1))))
    cuts = list(data.cuts(rows, size, torch.Generator().manual_seed(seed), slides=most))
    assert torch.cat(cuts).sort().values.tolist() == rows.tolist()
    for cut in cuts:
        assert 0 < len(cut) <= max(1.5 * size, 1)
        assert len(data.slide[cut].unique()) <= most


@quick
@given(slides, st.integers(1, 30), st.integers(1, 4), st.integers(0, 100))
def test_no_batch_is_smaller_than_announced(make_data, lengths, size, most, seed):
    data = make_data(lengths)
    rows = torch.arange(len(data))
    least = data.smallest_cut(rows, size, slides=most)
    assert least >= 1
    assert min(map(len, data.cuts(rows, size, torch.Generator().manual_seed(seed), slides=most))) >= least


def test_slides_are_shared_out_evenly(make_data):
    data = make_data([10] * 9)
    cuts = list(data.cuts(torch.arange(90), 200, torch.Generator().manual_seed(0), slides=8))
    assert sorted(map(len, cuts)) == [40, 50]  # not 80 and 10
    assert data.smallest_cut(torch.arange(90), 200, slides=8) == 40


def test_epochs_differ_and_follow_the_generator(make_data):
    data = make_data()
    epochs = lambda seed: [
        [cut.tolist() for cut in data.cuts(torch.arange(75), 16, g, slides=2)]
        for g in [torch.Generator().manual_seed(seed)]
        for _ in range(2)
    ]
    first, second = epochs(1)
    assert first != second and epochs(1) == [first, second] and epochs(2)[0] != first


@quick
@given(slides, st.data())
def test_a_batch_has_the_spots_and_all_of_their_slides(make_data, lengths, draw):
    data = make_data(lengths)
    rows = torch.tensor(draw.draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=10)))
    batch = data.batch(rows)
    touched = sorted({int(s) for s in data.slide[rows]})
    context = [i for i in range(len(data)) if int(data.slide[i]) in touched]
    assert len(batch) == len(rows)
    assert batch.slides.lengths == tuple(lengths[s] for s in touched)
    assert torch.equal(batch.slides.features, data.pooled[context].float())
    assert torch.equal(batch.slides.grid, data.grid[context])
    assert [context[i] for i in batch.index.tolist()] == rows.tolist()
    assert torch.equal(batch.tokens, data.tokens[rows].float())
    assert torch.equal(batch.neighbors, data.neighbors[rows].float())
    assert torch.equal(batch.neighbor_mask, data.neighbor_mask[rows])
    assert torch.equal(batch.expression, data.expression[rows])
    assert batch.tokens.dtype == batch.neighbors.dtype == batch.slides.features.dtype == torch.float32


@quick
@given(slides, st.integers(1, 9))
def test_in_order_goes_slide_by_slide(make_data, lengths, size):
    data = make_data(lengths)
    rows = torch.arange(len(data))[::2]
    if not len(rows):
        return
    batches = list(data.in_order(rows, size))
    assert torch.equal(torch.cat([b.tokens for b in batches]), data.tokens[rows].float())
    assert all(len(b.slides.lengths) == 1 and len(b) <= size for b in batches)


def test_no_expression_at_prediction(make_data):
    data = make_data()
    data.expression = None
    assert data.batch(torch.tensor([3, 40])).expression is None


def test_rows_of_a_slide(make_data):
    data = make_data((3, 2, 4))
    assert [data.rows_of(i).tolist() for i in range(3)] == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]


def test_moving_a_batch_keeps_its_values(make_data):
    batch = make_data().batch(torch.tensor([3, 40]))
    moved = batch.to("cpu")
    assert moved is not batch and moved.slides.lengths == batch.slides.lengths
    assert torch.equal(moved.tokens, batch.tokens) and torch.equal(moved.slides.grid, batch.slides.grid)
    assert batch.to("meta").index.device == torch.device("meta")


def test_empty_slides_do_no_harm(make_data):
    data = make_data((5, 4))
    data.names, data.groups = ["S0", "S1", "gone"], ["S0", "S1", "gone"]
    data.__post_init__()
    assert not len(data.rows_of(2))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_in_order_of_everything(make_data, size):
    data = make_data()
    assert sum(len(batch) for batch in data.in_order(torch.arange(75), size)) == 75


@quick
@given(st.lists(st.integers(1, 14), min_size=1, max_size=3), st.integers(0, 5))
def test_nearest_spots_are_those_of_the_same_slide_in_order_of_distance(make_data, lengths, seed):
    data = make_data(tuple(lengths), n_genes=2)
    data.xy = torch.randn(len(data), 2, generator=torch.Generator().manual_seed(seed))
    for i, row in enumerate(data.nearest.tolist()):
        same = data.rows_of(int(data.slide[i])).tolist()
        by_distance = sorted(same, key=lambda j: float((data.xy[i] - data.xy[j]).norm()))
        assert row[: len(same)] == by_distance[: len(row)]
        assert row[len(same) :] == [i] * (len(row) - len(same))


def test_a_batch_has_the_parts_that_a_model_names(make_data):
    data = make_data()
    data.counts = torch.ones(len(data), 4)
    bare = data.batch(torch.tensor([3, 40]), ())
    assert bare.tokens.shape == (2, 0, 8) and bare.neighbors.shape == (2, 0, 8) and bare.neighbor_mask.shape == (2, 0)
    assert bare.counts is None and bare.nearest is None and bare.slides is None and bare.index is None
    assert torch.equal(bare.pooled, data.pooled[[3, 40]].float())
    assert torch.equal(bare.spot, torch.tensor([3, 40]))
    full = data.batch(torch.tensor([3, 40]), ("tokens", "slides", "counts", "nearest"))
    assert full.tokens.shape == (2, 3, 8) and torch.equal(full.counts, torch.ones(2, 4))
    assert torch.equal(full.nearest.tokens, data.tokens[data.nearest[[3, 40]]].float())
    # rows of the batch's slides name the same spots as rows of the run
    assert torch.equal(
        full.slides.features[full.slides.nearest[full.index]], data.pooled[data.nearest[[3, 40]]].float()
    )


def test_a_batch_shows_no_expression_of_spots_that_are_not_learnt_from(make_data):
    data = make_data()
    learnt = torch.arange(0, len(data), 2)
    shown = data.learning_from(learnt).batch(torch.tensor([0, 30]), ("nearest",)).nearest.expression
    around = data.nearest[[0, 30]]
    assert torch.equal(shown.isnan().all(-1), around % 2 == 1)
    assert torch.equal(shown.isnan().any(-1), around % 2 == 1)
    assert torch.equal(shown[around % 2 == 0], data.expression[around[around % 2 == 0]])


def test_selected_slides_are_those_spots_alone(make_data):
    data = make_data((5, 3, 4), groups=["a", "b", "a"])
    data.counts = torch.arange(12.0)[:, None]
    part = data.select([2, 0])
    rows = torch.cat([data.rows_of(2), data.rows_of(0)])
    assert part.names == ["S2", "S0"] and part.groups == ["a", "a"]
    assert part.slide.tolist() == [0] * 4 + [1] * 5
    for name in ("tokens", "pooled", "neighbors", "grid", "xy", "expression", "counts"):
        assert torch.equal(getattr(part, name), getattr(data, name)[rows])
    assert torch.equal(part.batch(torch.tensor([0, 6])).tokens, data.tokens[[8, 2]].float())


def test_a_batch_moves_with_all_its_parts(make_data):
    data = make_data()
    data.counts = torch.ones(len(data), 4)
    moved = data.batch(torch.tensor([3, 40]), ("tokens", "neighbors", "slides", "counts", "nearest")).to("meta")
    parts = [
        moved.tokens,
        moved.counts,
        moved.spot,
        moved.nearest.tokens,
        moved.nearest.expression,
        moved.slides.nearest,
    ]
    assert all(part.device.type == "meta" for part in parts)
