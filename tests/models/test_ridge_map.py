import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from gdml.models.component_ridge import ComponentRidge
from gdml.models.kernel import KernelMap
from gdml.models.ridge import RidgeMap, pooled_features, stripes

ALPHAS = np.geomspace(1e-2, 1e4, 13).tolist()


def problem(n=60, width=12, n_out=3, seed=0, noise=8.0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=g) * torch.linspace(0.5, 3, width) + 1
    y = x @ torch.randn(width, n_out, generator=g) + noise * torch.randn(n, n_out, generator=g)
    return x, y


def test_pooled_features_agree_with_a_loop(make_batch):
    batch = make_batch()
    batch.neighbor_mask[0] = torch.arange(9) == 4
    for i, found in enumerate(pooled_features(batch)):
        inside = [batch.neighbors[i, k].numpy() for k in range(9) if batch.neighbor_mask[i, k]]
        expected = np.concatenate([batch.tokens[i].numpy().mean(0), np.mean(inside, axis=0)])
        np.testing.assert_allclose(found, expected, atol=1e-6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 25), min_size=1, max_size=3), st.integers(0, 100))
def test_stripes_share_out_each_slide(make_batch, lengths, seed):
    for grid in make_batch(seed=seed, lengths=tuple(lengths)).slides.grid.split(lengths):
        stripe = stripes(grid)
        counts = torch.bincount(stripe, minlength=5)
        assert len(counts) == 5 and int(counts.max() - counts.min()) <= 1
        longer = int((grid.amax(0) - grid.amin(0)).argmax())
        order = grid[:, longer].argsort(stable=True)
        assert (stripe[order].diff() >= 0).all()  # from one end to the other


@pytest.mark.parametrize("seed", range(4))
def test_the_penalty_is_the_one_that_predicts_folds_best(seed):
    x, y = problem(seed=seed)
    folds = torch.arange(60) % 5
    made = RidgeMap(12, 3)
    made.solve(x, y, ALPHAS, folds)
    z = ((x - x.mean(0)) / x.std(0, unbiased=False)).double().numpy()
    error = np.zeros(len(ALPHAS))
    for i, alpha in enumerate(ALPHAS):
        for fold in range(5):
            out = (folds == fold).numpy()
            predicted = Ridge(alpha).fit(z[~out], y[~out].double().numpy()).predict(z[out])
            error[i] += np.square(predicted - y[out].numpy()).sum()
    best = ALPHAS[int(error.argmin())]
    assert float(made.alpha) == pytest.approx(best) and 0 < error.argmin() < len(ALPHAS) - 1
    theirs = Ridge(best).fit(z, y.double().numpy())
    np.testing.assert_allclose(made(x), theirs.predict(z), atol=1e-4)


@pytest.mark.parametrize("kind", ["stripes", "hest"])
@pytest.mark.parametrize("n_components", [0, 5])
def test_a_weight_stands_for_as_many_rows(kind, n_components):
    x, y = problem()
    folds, times = torch.arange(60) % 5, 1 + torch.arange(60) % 3
    repeated = [part.repeat_interleave(times, 0) for part in (x, y, folds)]
    made = []
    for x_, y_, folds_, weights in ((x, y, folds, times), (*repeated, None), (x, y, folds, None)):
        one = RidgeMap(12, 3)
        if kind == "hest":
            one.solve_hest(x_, y_, n_components or 12, weights)
        else:
            one.solve(x_, y_, ALPHAS, folds_, weights, n_components=n_components)
        made.append(one(x))
    torch.testing.assert_close(made[0], made[1], atol=1e-4, rtol=1e-4)
    assert (made[0] - made[2]).abs().max() > 1e-2


def test_one_fold_teaches_caution():
    x, y = problem()
    made = RidgeMap(12, 3)
    made.solve(x, y, ALPHAS, torch.zeros(60, dtype=torch.long))
    assert float(made.alpha) == pytest.approx(ALPHAS[-1])


def test_unsolved_it_answers_zero():
    assert not RidgeMap(12, 3)(problem()[0]).any()


@pytest.mark.parametrize("make", [RidgeMap, ComponentRidge, lambda i, o: KernelMap(i, o, n_landmarks=4, gamma=0.3)])
def test_solved_maps_are_never_computed_in_bfloat16(make):
    made = make(6, 3)
    for buffer in made.buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(0)) + 0.5)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, made(x), rtol=0, atol=0)
