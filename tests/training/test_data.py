import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gdml.training.context import even_subset
from gdml.training.data import SlideSpots, SpotData
from gdml.training.sampler import MOST_DRAWS, SlideSampler, balanced_counts

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


@quick
@given(slides, st.integers(1, 30), st.integers(1, 4), st.integers(0, 100), st.data())
def test_groups_are_drawn_evenly_and_no_spot_too_often(make_data, lengths, size, most, seed, draw):
    data = make_data(lengths)
    groups = [draw.draw(st.sampled_from("abc")) for _ in lengths]
    rows = torch.tensor(sorted(draw.draw(st.sets(st.integers(0, len(data) - 1), min_size=1))))
    counts = balanced_counts(data.slide, rows, groups)
    sampler = SlideSampler(data.slide, rows, size, most, torch.Generator().manual_seed(seed), counts=counts)
    cuts = list(sampler)
    drawn = torch.cat(cuts)
    assert min(map(len, cuts)) >= sampler.smallest() >= 1
    assert set(drawn.tolist()) <= set(rows.tolist())
    times = torch.bincount(drawn, minlength=len(data))
    for number, group in enumerate(groups):
        here = rows[data.slide[rows] == number]
        if not len(here):
            assert not counts[number]
            continue
        # spots of a slide are drawn about equally often
        assert int(times[here].max()) - int(times[here].min()) <= 1
        of_group = sum(int((data.slide[rows] == i).sum()) for i, g in enumerate(groups) if g == group)
        present = {g for i, g in enumerate(groups) if (data.slide[rows] == i).any()}
        rate = min(len(rows) / len(present) / of_group, MOST_DRAWS)
        assert abs(int(times[here].sum()) - rate * len(here)) <= 1
    assert int(times.max()) <= MOST_DRAWS


def test_one_group_is_drawn_as_it_is(make_data):
    data = make_data([10, 30])
    counts = balanced_counts(data.slide, torch.arange(40), ["one", "one"])
    assert counts.tolist() == [10, 30]


def test_of_a_large_group_other_spots_are_drawn_in_each_epoch(make_data):
    data = make_data([20, 60])
    rows = torch.arange(80)
    counts = balanced_counts(data.slide, rows, ["a", "b"])
    assert counts.tolist() == [40, 40]
    sampler = SlideSampler(data.slide, rows, 16, 2, torch.Generator().manual_seed(0), counts=counts)
    first, second = (set(torch.cat(list(sampler)).tolist()) for _ in range(2))
    assert first != second and len(first) == 60


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


class Counting:
    """A tile bank that counts the rows that are read from it."""

    def __init__(self, n, n_tokens=3, dim=8):
        self.n_tokens, self.dim, self.n = n_tokens, dim, n
        self.read = {"tokens": 0, "pooled": 0}

    def __len__(self):
        return self.n

    def tokens(self, rows):
        self.read["tokens"] += len(rows)
        return np.repeat(np.asarray(rows, np.float16)[:, None, None], self.n_tokens, 1) * np.ones(self.dim, np.float16)

    def pooled(self, rows):
        self.read["pooled"] += len(rows)
        return np.asarray(rows, np.float16)[:, None] * np.ones(self.dim, np.float16)


def lattice(side, *, max_context=4096, n_genes=2):
    """One square slide of side x side spots, whose neighbours are the tiles of its own spots."""
    n = side**2
    grid = np.stack([np.arange(n) // side, np.arange(n) % side], 1)
    around = np.full((n, 9), -1, np.int32)
    for i, (row, column) in enumerate((r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)):
        at = grid + (row, column)
        inside = ((at >= 0) & (at < side)).all(1)
        around[inside, i] = at[inside] @ (side, 1)
    slide = SlideSpots(
        "S", "S", Counting(n), np.arange(n, dtype=np.int32), around, grid, grid[:, ::-1].astype(np.float32)
    )
    return SpotData([slide], torch.randn(n, n_genes), max_context=max_context)


def test_only_what_is_needed_is_read():
    data = lattice(20)
    read = data.slides[0].bank.read
    data.batch(torch.arange(10), ())
    assert read == {"tokens": 0, "pooled": 10}
    data.batch(torch.arange(10), ("tokens",))
    assert read["tokens"] == 10


def test_a_neighbor_tile_is_read_once_for_a_batch():
    data = lattice(20)
    batch = data.batch(torch.tensor([21, 22, 0]), ("neighbors",))
    distinct = {int(t) for i in (21, 22, 0) for t in data.slides[0].neighbors[i] if t >= 0}
    assert data.slides[0].bank.read["pooled"] == 3 + len(distinct)
    around = torch.from_numpy(data.slides[0].neighbors[[21, 22, 0]]).float()
    assert torch.equal(batch.neighbor_mask, around >= 0)
    assert torch.equal(batch.neighbors[..., 0], around.clamp(min=0) * (around > 0))


def test_the_context_of_a_slide_is_read_once():
    data = lattice(10)
    for rows in torch.arange(100).split(10):
        data.batch(rows, ("slides",))
        data.select([0]).learning_from(rows).batch(rows, ("slides",))  # views share what was read
    assert data.slides[0].bank.read["pooled"] == 100 + 2 * 100


def test_contexts_are_held_up_to_a_size(make_data):
    data = make_data((30, 20, 25))
    data._contexts.most_bytes = 1
    for slide in (0, 1, 2, 0):
        data.batch(data.rows_of(slide), ("slides",))
    assert len(data._contexts._held) == 1


@quick
@given(st.integers(5, 60), st.integers(5, 60), st.integers(1, 400), st.integers(0, 3))
def test_the_subset_of_a_slide_is_even(width, height, most, seed):
    rng = np.random.default_rng(seed)
    xy = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2) + 0.2 * rng.random(
        (width * height, 2)
    )
    rows = even_subset(xy, most)
    assert len(rows) == len(set(rows)) <= most
    assert np.array_equal(rows, even_subset(xy, most)) and np.array_equal(rows, np.sort(rows))
    if len(xy) <= most:
        assert len(rows) == len(xy)
        return
    # nobody is farther from the subset than about the diagonal of a square that holds a spot of it
    side = (width * height / most) ** 0.5
    far = np.sqrt(np.square(xy[:, None] - xy[rows]).sum(-1).min(1)).max()
    assert far <= 3 * side + 3
    if most > 30:
        assert len(rows) > most / 3
        quarters = (xy[rows] > xy.mean(0)) @ (2, 1)
        whole = (xy > xy.mean(0)) @ (2, 1)
        share = np.bincount(quarters, minlength=4) / len(rows) - np.bincount(whole, minlength=4) / len(xy)
        assert np.abs(share).max() < 0.15


def test_a_large_slide_has_a_context_and_visitors():
    data = lattice(30, max_context=100)
    rows = torch.arange(0, 900, 7)
    batch = data.batch(rows, ("slides",))
    context = even_subset(data.slides[0].xy, 100)
    assert batch.slides.lengths == (len(context),) and batch.slides.extent.tolist() == [[30, 30]]
    features = torch.cat([batch.slides.features, batch.visitors.features])
    assert torch.equal(features[batch.index, 0], rows.half().float())  # every spot is found under its own row
    outside = ~torch.isin(rows, torch.from_numpy(context))
    assert len(batch.visitors.grid) == int(outside.sum()) and outside.any() and not outside.all()
    nearest = batch.visitors.nearest
    assert torch.equal(nearest[:, 0], len(context) + torch.arange(len(nearest)))
    assert (nearest[:, 1:] < len(context)).all()
    # the same in training and in prediction, in whichever batch
    blind = SpotData(data.slides, max_context=100).batch(rows[:5], ("slides",))
    assert torch.equal(blind.slides.features, batch.slides.features)


def test_visitors_of_several_slides():
    first, second = lattice(20, max_context=50), lattice(9, max_context=50)
    data = SpotData([*first.slides, *second.slides], max_context=50)
    rows = torch.tensor([5, 450, 399, 0, 401])
    batch = data.batch(rows, ("slides",))
    features = torch.cat([batch.slides.features, batch.visitors.features])
    assert torch.equal(features[batch.index, 0], torch.tensor([5.0, 50.0, 399.0, 0.0, 1.0]))
    starts = torch.tensor([0, *batch.slides.lengths]).cumsum(0)
    for slide, nearest in zip(batch.visitors.slide, batch.visitors.nearest, strict=True):
        assert ((nearest[1:] >= starts[slide]) & (nearest[1:] < starts[slide + 1])).all()


def test_batches_of_one_slide_share_a_context_in_prediction():
    data = lattice(30, max_context=100)
    batches = list(data.in_order(torch.arange(900), 200, ("slides",), "cpu"))
    assert len(batches) == 5 and len({id(batch.slides.memo) for batch in batches}) == 1
    again = next(data.in_order(torch.arange(900), 200, ("slides",), "cpu"))
    assert again.slides.memo is not batches[0].slides.memo  # valid for one set of weights
    assert next(data.in_order(torch.arange(900), 200, ("slides",))).slides.memo is None


def test_a_context_that_prediction_read_serves_training():
    data = lattice(10)
    with torch.inference_mode():
        data.batch(torch.arange(3), ("slides",))
    slides = data.batch(torch.arange(3), ("slides",)).slides
    assert not slides.features.is_inference() and not slides.nearest.is_inference()


def test_data_travel_to_other_processes():
    data = lattice(10)
    data.batch(torch.arange(3), ("slides",))
    other = pickle.loads(pickle.dumps(data))
    assert not other._contexts._held
    assert torch.equal(
        other.batch(torch.arange(3), ("slides",)).slides.features,
        data.batch(torch.arange(3), ("slides",)).slides.features,
    )
