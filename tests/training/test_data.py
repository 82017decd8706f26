import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdml.training.sampler import SlideSampler

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def nearest_rows(data):
    """Rows of the spots nearest to each spot, in the numbers of the run."""
    return torch.cat([torch.from_numpy(s.nearest).long() + int(data.rows_of(i)[0]) for i, s in enumerate(data.slides)])


slides = st.lists(st.integers(1, 25), min_size=1, max_size=6)


@quick
@given(slides, st.integers(1, 30), st.integers(1, 4), st.integers(0, 100), st.data())
def test_an_epoch_has_every_row_once(make_data, lengths, size, most, seed, draw):
    data = make_data(lengths)
    rows = torch.tensor(sorted(draw.draw(st.sets(st.integers(0, len(data) - 1), min_size=1))))
    cuts = list(SlideSampler(data.slide, rows, size, most, torch.Generator().manual_seed(seed)))
    assert torch.cat(cuts).sort().values.tolist() == rows.tolist()
    for cut in cuts:
        assert 0 < len(cut) <= max(1.5 * size, 1)
        assert len(data.slide[cut].unique()) <= most


@quick
@given(slides, st.integers(1, 30), st.integers(1, 4), st.integers(0, 100))
def test_no_batch_is_smaller_than_announced(make_data, lengths, size, most, seed):
    data = make_data(lengths)
    rows = torch.arange(len(data))
    sampler = SlideSampler(data.slide, rows, size, most, torch.Generator().manual_seed(seed))
    assert min(map(len, sampler)) >= sampler.smallest() >= 1


def test_slides_are_shared_out_evenly(make_data):
    data = make_data([10] * 9)
    sampler = SlideSampler(data.slide, torch.arange(90), 200, 8, torch.Generator().manual_seed(0))
    assert sorted(map(len, sampler)) == [40, 50]  # not 80 and 10
    assert sampler.smallest() == 40


def test_epochs_differ_and_follow_the_generator(make_data):
    data = make_data()
    epochs = lambda seed: [
        [cut.tolist() for cut in SlideSampler(data.slide, torch.arange(75), 16, 2, g)]
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
    batch = data.batch(rows, ("tokens", "neighbors", "slides"))
    touched = sorted({int(s) for s in data.slide[rows]})
    context = [i for i in range(len(data)) if int(data.slide[i]) in touched]
    assert len(batch) == len(rows)
    assert batch.slides.lengths == tuple(lengths[s] for s in touched)
    assert torch.equal(batch.slides.features, data.parts.pooled[context].float())
    assert torch.equal(batch.slides.grid, data.parts.grid[context])
    assert [context[i] for i in batch.index.tolist()] == rows.tolist()
    assert torch.equal(batch.tokens, data.parts.tokens[rows].float())
    assert torch.equal(batch.neighbors, data.parts.neighbors[rows].float())
    assert torch.equal(batch.neighbor_mask, data.parts.neighbor_mask[rows])
    assert torch.equal(batch.expression, data.expression[rows])
    assert batch.tokens.dtype == batch.neighbors.dtype == batch.slides.features.dtype == torch.float32


@quick
@given(slides, st.integers(1, 9))
def test_in_order_goes_slide_by_slide(make_data, lengths, size):
    data = make_data(lengths)
    rows = torch.arange(len(data))[::2]
    if not len(rows):
        return
    batches = list(data.in_order(rows, size, ("tokens", "slides")))
    assert torch.equal(torch.cat([b.tokens for b in batches]), data.parts.tokens[rows].float())
    assert all(len(b.slides.lengths) == 1 and len(b) <= size for b in batches)


def test_no_expression_at_prediction(make_data):
    data = make_data()
    data.expression = None
    assert data.batch(torch.tensor([3, 40])).expression is None


def test_rows_of_a_slide(make_data):
    data = make_data((3, 2, 4))
    assert [data.rows_of(i).tolist() for i in range(3)] == [[0, 1, 2], [3, 4], [5, 6, 7, 8]]


def test_moving_a_batch_keeps_its_values(make_data):
    batch = make_data().batch(torch.tensor([3, 40]), ("tokens", "slides"))
    moved = batch.to("cpu")
    assert moved is not batch and moved.slides.lengths == batch.slides.lengths
    assert torch.equal(moved.tokens, batch.tokens) and torch.equal(moved.slides.grid, batch.slides.grid)
    assert batch.to("meta").index.device == torch.device("meta")


def test_empty_slides_do_no_harm(make_data):
    data = make_data((5, 4, 0))
    assert not len(data.rows_of(2)) and data.shape().n_genes == 4


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_in_order_of_everything(make_data, size):
    data = make_data()
    assert sum(len(batch) for batch in data.in_order(torch.arange(75), size)) == 75


@quick
@given(st.lists(st.integers(1, 14), min_size=1, max_size=3), st.integers(0, 5))
def test_nearest_spots_are_those_of_the_same_slide_in_order_of_distance(make_data, lengths, seed):
    xy = torch.randn(sum(lengths), 2, generator=torch.Generator().manual_seed(seed))
    data = make_data(tuple(lengths), n_genes=2, xy=xy)
    for i, row in enumerate(nearest_rows(data).tolist()):
        same = data.rows_of(int(data.slide[i])).tolist()
        by_distance = sorted(same, key=lambda j: float((xy[i] - xy[j]).norm()))
        assert row[: len(same)] == by_distance[: len(row)]
        assert row[len(same) :] == [i] * (len(row) - len(same))


def test_a_batch_has_the_parts_that_a_model_names(make_data):
    data = make_data()
    data.counts = torch.ones(len(data), 4)
    bare = data.batch(torch.tensor([3, 40]), ())
    assert bare.tokens.shape == (2, 0, 8) and bare.neighbors.shape == (2, 0, 8) and bare.neighbor_mask.shape == (2, 0)
    assert bare.counts is None and bare.nearest is None and bare.slides is None and bare.index is None
    assert torch.equal(bare.pooled, data.parts.pooled[[3, 40]].float())
    assert torch.equal(bare.spot, torch.tensor([3, 40]))
    full = data.batch(torch.tensor([3, 40]), ("tokens", "slides", "counts", "nearest"))
    assert full.tokens.shape == (2, 3, 8) and torch.equal(full.counts, torch.ones(2, 4))
    assert torch.equal(full.nearest.tokens, data.parts.tokens[nearest_rows(data)[[3, 40]]].float())
    # rows of the batch's slides name the same spots as rows of the run
    assert torch.equal(
        full.slides.features[full.slides.nearest[full.index]], data.parts.pooled[nearest_rows(data)[[3, 40]]].float()
    )


def test_a_batch_shows_no_expression_of_spots_that_are_not_learnt_from(make_data):
    data = make_data()
    learnt = torch.arange(0, len(data), 2)
    shown = data.learning_from(learnt).batch(torch.tensor([0, 30]), ("nearest",)).nearest.expression
    around = nearest_rows(data)[[0, 30]]
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
    whole = part.batch(torch.arange(len(part)), ("tokens", "neighbors", "counts"))
    for name in ("tokens", "pooled", "neighbors"):
        assert torch.equal(getattr(whole, name), getattr(data.parts, name)[rows].float())
    assert torch.equal(whole.expression, data.expression[rows]) and torch.equal(whole.counts, data.counts[rows])
    assert part.slides[0] is data.slides[2]  # nothing is copied
    assert torch.equal(part.batch(torch.tensor([0, 6])).tokens, data.parts.tokens[[8, 2]].float())


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
