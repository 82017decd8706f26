import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gdml.models.scaling import Moments, Scalers, Standardize

values = st.floats(-1e3, 1e3, width=32)
tables = st.tuples(st.integers(1, 30), st.integers(1, 4)).flatmap(lambda s: arrays(np.float32, s, elements=values))


@settings(max_examples=60, deadline=None)
@given(tables, st.lists(st.integers(0, 30), max_size=5))
def test_moments_of_pieces_are_those_of_the_whole(x, cuts):
    moments = Moments(x.shape[1])
    for piece in np.split(x, sorted(min(c, len(x)) for c in cuts)):  # empty pieces too
        moments.add(torch.from_numpy(piece))
    assert moments.count == len(x)
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(0), atol=1e-9)
    np.testing.assert_allclose(moments.std, x.astype(np.float64).std(0), atol=1e-7)


def test_moments_bear_a_mean_far_above_the_spread():
    x = 1e6 + torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    moments = Moments(1)
    for row in x.split(1):
        moments.add(row)
    np.testing.assert_allclose(moments.std, x.numpy().std(0), rtol=1e-12)


def test_nothing_taken_in():
    assert Moments(2).std.tolist() == [0, 0]


@settings(deadline=None)
@given(tables)
def test_standardize_agrees_with_numpy_and_is_undone(x):
    scaler, spread = Standardize(x.shape[1]), x.astype(np.float64).std(0)
    scaler.fit([torch.from_numpy(x)])
    y = scaler(torch.from_numpy(x))
    expected = (x - x.astype(np.float64).mean(0)) / np.where(spread > 1e-6, spread, 1)
    np.testing.assert_allclose(y, expected, atol=1e-3 * (1 + np.abs(expected).max()))
    np.testing.assert_allclose(scaler.inverse(y), x, atol=1e-3)


def test_a_column_that_does_not_vary_is_centred_only():
    scaler = Standardize(2)
    scaler.fit([torch.tensor([[5.0, 1.0], [5.0, 3.0]])])
    assert scaler(torch.tensor([[5.0, 1.0], [6.0, 3.0]])).tolist() == [[0, -1], [1, 1]]


def test_unfitted_nothing_is_changed():
    x = torch.randn(3, 4)
    assert torch.equal(Standardize(4)(x), x)


@pytest.mark.parametrize("neighbors", [True, False])
@pytest.mark.parametrize("targets", ["center", "standardize", "raw"])
def test_scalers_are_those_of_all_training_spots(make_batch, shape, neighbors, targets):
    batches = [make_batch(seed=0), make_batch(seed=1)]
    scalers = Scalers(shape.dim, shape.n_genes, targets=targets)
    scalers.prepare(iter(batches), neighbors=neighbors)
    join = lambda parts: np.concatenate([part.numpy() for part in parts])
    tokens = join(batch.tokens.reshape(-1, shape.dim) for batch in batches)
    pooled = join(batch.pooled for batch in batches)
    if neighbors:
        inside = join(tile[None] for b in batches for tile in b.neighbors[b.neighbor_mask])
        pooled = np.concatenate([pooled, inside])
    y = join(batch.expression for batch in batches)
    level = {"raw": 0, "center": y.mean(0), "standardize": y.mean(0)}[targets]
    scale = y.std(0) if targets == "standardize" else 1
    for scaler, mean, std in (
        (scalers.tokens, tokens.mean(0), tokens.std(0)),
        (scalers.pooled, pooled.mean(0), pooled.std(0)),
        (scalers.target, level, scale),
    ):
        np.testing.assert_allclose(scaler.mean, np.broadcast_to(mean, scaler.mean.shape), atol=1e-5)
        np.testing.assert_allclose(scaler.scale, np.broadcast_to(std, scaler.scale.shape), atol=1e-5)
    local, around = scalers.local_and_neighbors(batches[0])
    torch.testing.assert_close(local, scalers.tokens(batches[0].tokens))
    torch.testing.assert_close(around, scalers.pooled(batches[0].neighbors))


def test_raw_features_are_left_as_they_are(make_batch, shape):
    scalers, batch = Scalers(shape.dim, shape.n_genes, features="raw"), make_batch()
    scalers.prepare(iter([batch]))
    assert torch.equal(scalers.local_and_neighbors(batch)[0], batch.tokens)
