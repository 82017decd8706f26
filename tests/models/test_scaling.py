import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gdml.models.scaling import Moments, Standardize

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
