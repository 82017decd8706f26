"""Kernel ridge regression: that of scikit-learn with enough landmarks, the same from any pieces and in any session."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.kernel_ridge import KernelRidge

from gdml.models.kernel import KernelConfig, KernelMap, _Thinned

ALPHAS = np.geomspace(1e-2, 1e4, 7).tolist()


def problem(n=90, width=6, n_out=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=g) * torch.linspace(0.5, 3, width) + 4
    y = torch.sin(x[:, :n_out]) + 0.2 * torch.randn(n, n_out, generator=g) + 2
    return x, y, torch.arange(n) % 3, torch.rand(n, generator=g) + 0.5


def solved(pieces, alphas, width=6, n_out=3, axes=None, **options):
    made = KernelMap(width, n_out, **{"n_landmarks": 128, "gamma": 0.5, **options})
    made.solve(lambda: pieces, alphas, axes)
    return made


def reference(x, y, weights, alpha, new, gamma=0.5):
    """Kernel ridge regression of the targets less their weighted mean."""
    scaled = [((part - x.mean(0)) / x.std(0, correction=0)).double() for part in (x, new)]
    kernel = lambda a, b: np.exp(-gamma / x.shape[1] * np.square(a[:, None].numpy() - b[None].numpy()).sum(-1))
    w = weights.double().numpy()
    level = w @ y.double().numpy() / w.sum()
    model = KernelRidge(alpha=alpha, kernel="precomputed")
    model.fit(kernel(scaled[0], scaled[0]), y.double().numpy() - level, sample_weight=w)
    return model.predict(kernel(scaled[1], scaled[0])) + level


@pytest.mark.parametrize("alpha", [0.1, 3.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_with_enough_landmarks_it_is_kernel_ridge_regression(alpha, weighted):
    x, y, folds, weights = problem()
    new = problem(seed=1)[0]
    made = solved([(x, y, folds, weights if weighted else None)], [alpha])
    expected = reference(x, y, weights if weighted else torch.ones(len(x)), alpha, new)
    np.testing.assert_allclose(made(new), expected, atol=2e-3)
    assert np.abs(expected - expected.mean(0)).max() > 0.3  # and it says something


def test_any_pieces_give_the_same():
    x, y, folds, weights = problem()
    new = problem(seed=1)[0]
    whole = solved([(x, y, folds, weights)], ALPHAS, n_landmarks=20)
    assert int(whole.landmarks.any(1).sum()) == 12  # every eighth of 90
    for size in (1, 7, 50):
        made = solved(
            list(zip(*(part.split(size) for part in (x, y, folds, weights)), strict=True)), ALPHAS, n_landmarks=20
        )
        torch.testing.assert_close(made(new), whole(new), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(made.landmarks, whole.landmarks)


def test_it_neither_reads_nor_moves_the_random_state_of_numpy():
    pieces, new = [problem()], problem(seed=1)[0]
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = solved(pieces, ALPHAS)(new)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    assert torch.equal(solved(pieces, ALPHAS)(new), first)


def test_identical_spots_do_no_harm():
    """Equal rows give the kernel directions without length, which must not be blown up."""
    x, y, folds, _ = problem(150, 4)
    twice = torch.cat([x, x]), torch.cat([y, y]), torch.cat([folds, folds]), None
    new = problem(150, 4, seed=1)
    made = solved([twice], ALPHAS, width=4, n_landmarks=300)
    assert made._coordinates(new[0]).norm(dim=1).max() < 1.01  # no longer than the kernel of a spot with itself
    error = (made(new[0]) - new[1]).square().mean() / new[1].var()
    assert error < 0.6


def test_components_that_are_not_kept_are_predicted_by_their_mean():
    x, y, folds, weights = problem()
    axes = torch.tensor([[0.6, 0.8, 0.0]])
    found = solved([(x, y, folds, weights)], [0.1], axes=axes)(x)
    mean = (weights @ y) / weights.sum()
    off = torch.tensor([[0.8, -0.6, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close((found - mean) @ off.T, torch.zeros(len(x), 2), atol=1e-5, rtol=0)
    assert ((found - mean) @ axes.T).std() > 0.1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_rows_are_thinned_by_a_power_of_two(most, sizes):
    rows, thinned = torch.arange(float(sum(sizes)))[:, None], _Thinned(most)
    for piece in rows.split(sizes):
        thinned.add(piece)
    stride = next(2**k for k in range(20) if -(-len(rows) // 2**k) <= most)
    assert thinned.kept()[:, 0].tolist() == rows[::stride, 0].tolist()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_landmarks": 0}, "`n_landmarks` must be at least 1, found 0"),
        ({"gamma": 0.0}, "`gamma` must be positive, found 0.0"),
        ({"alpha_min": -1.0}, "`alpha_min` must be positive"),
        ({"n_alphas": 0}, "`n_alphas` must be at least 1"),
    ],
)
def test_bad_settings_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        KernelConfig(**options)
