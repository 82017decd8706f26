"""Ridge regression by component agrees with loops over scikit-learn's, from rows and from sums."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge

from gdml.models import gathered
from gdml.models.component_ridge import ComponentRidge
from gdml.models.summary import summarize

ALPHAS = np.geomspace(1e-1, 1e5, 9).tolist()


def problem(n=120, width=7, n_out=4, seed=0):
    """The last output follows nothing; inputs far from zero; folds and weights of unequal size."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=g) * torch.linspace(0.5, 3, width) + 4
    rule = torch.randn(width, n_out, generator=g) * torch.tensor([3.0, 0.7, 0.2, 0.0])[:n_out]
    y = x @ rule + 2 * torch.randn(n, n_out, generator=g) + 5
    return x, y, torch.arange(n) ** 2 % 3, torch.rand(n, generator=g) * 1.8 + 0.1


def solve(x, y, folds, weights, alphas=ALPHAS, axes=None, size=25):
    made = ComponentRidge(x.shape[1], y.shape[1])
    cut = [x.split(size), y.split(size), folds.split(size), [None] * 99 if weights is None else weights.split(size)]
    made.solve(zip(*cut, strict=False), alphas, axes)
    return made


def by_loops(x, y, folds, weights, axes, new):
    """Each component: its penalty by left-out folds, its mean where none helps, what is left by its mean."""
    x, y, w, new = (part.double().numpy() for part in (x, y, weights, new))
    mean, axes = w @ x / w.sum(), axes.double().numpy()
    scale = np.sqrt(w @ np.square(x - mean) / w.sum())
    x, new, level = (x - mean) / scale, (new - mean) / scale, w @ y / w.sum()
    found, chosen = np.zeros((len(new), y.shape[1])) + level, []
    for axis in axes:
        target, errors, null = y @ axis, np.zeros(len(ALPHAS)), 0.0
        for fold in np.unique(folds):
            out = (folds == fold).numpy()
            null += w[out] @ np.square(target[out] - np.average(target[~out], weights=w[~out]))
            for i, alpha in enumerate(ALPHAS):
                mean_of_others = np.average(target[~out], weights=w[~out])
                model = SklearnRidge(alpha, fit_intercept=False)  # inputs are centred once, over all rows
                model.fit(x[~out], target[~out] - mean_of_others, sample_weight=w[~out])
                errors[i] += w[out] @ np.square(target[out] - mean_of_others - model.predict(x[out]))
        chosen.append(ALPHAS[errors.argmin()] if errors.min() < null else None)
        if chosen[-1] is not None:
            model = SklearnRidge(chosen[-1]).fit(x, target, sample_weight=w)
            found += np.outer(model.predict(new) - level @ axis, axis)
    return found, chosen


@pytest.mark.parametrize("most", [4096, 50], ids=["rows", "sums"])
@pytest.mark.parametrize("k", [4, 2])
def test_each_component_is_a_ridge_regression_of_its_own(monkeypatch, most, k):
    monkeypatch.setattr(gathered, "MAX_ROWS", most)
    x, y, folds, weights = problem()
    axes = torch.eye(4) if k == 4 else torch.tensor([[0.6, 0.8, 0, 0], [0, 0, 0.6, 0.8]])
    new = problem(seed=5)[0]
    expected, chosen = by_loops(x, y, folds, weights, axes, new)
    assert len(set(chosen)) > 1  # penalties differ, or the test says nothing
    made = solve(x, y, folds, weights, axes=axes)
    np.testing.assert_allclose(made(new), expected, atol=2e-3, rtol=1e-4)


@pytest.mark.parametrize("axes", [None, torch.eye(4)])
def test_rows_and_sums_agree_beyond_the_limit(axes):
    x, y, folds, weights = problem(4200)
    sums = solve(x, y, folds, weights, axes=axes, size=1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathered, "MAX_ROWS", 5000)
        rows = solve(x, y, folds, weights, axes=axes, size=1000)
    torch.testing.assert_close(sums.standardize.scale, rows.standardize.scale)
    torch.testing.assert_close(sums(x), rows(x), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 40, 120])
def test_any_pieces_give_the_same(size):
    x, y, folds, weights = problem()
    torch.testing.assert_close(solve(x, y, folds, weights, size=size)(x), solve(x, y, folds, weights)(x))


def test_no_weights_are_equal_weights():
    x, y, folds, _ = problem()
    assert torch.equal(solve(x, y, folds, None)(x), solve(x, y, folds, torch.ones(len(x)))(x))


def test_a_component_that_nothing_foretells_is_predicted_by_its_mean():
    x, y, folds, weights = problem()
    noise = torch.randn(len(x), 4, generator=torch.Generator().manual_seed(9))
    noise[:, 0], noise[:, 1] = y[:, 0], 3
    found = solve(x, noise, folds, weights, axes=torch.eye(4))(x)
    mean = weights @ noise / weights.sum()
    still = (found - mean).abs().amax(0) < 1e-4
    assert not still[0] and still[1] and still[2:].any()


@pytest.mark.parametrize("most", [4096, 50], ids=["rows", "sums"])
def test_one_fold_teaches_caution(monkeypatch, most):
    monkeypatch.setattr(gathered, "MAX_ROWS", most)
    x, y, folds, weights = problem()
    for axes in (None, torch.eye(4)):
        one = solve(x, y, torch.zeros_like(folds), weights, axes=axes)
        strongest = solve(x, y, torch.zeros_like(folds), weights, alphas=ALPHAS[-1:], axes=axes)
        torch.testing.assert_close(one(x), strongest(x))
        assert one(x).std(0).max() > 1e-3


def test_summaries_are_those_of_a_loop():
    g = torch.Generator().manual_seed(0)
    for n_tokens in (1, 5):
        tokens, around = torch.randn(6, n_tokens, 4, generator=g), torch.randn(6, 9, 4, generator=g)
        mask = torch.rand(6, 9, generator=g) > 0.4
        mask[0], mask[1], mask[2] = False, True, torch.arange(9) == 4
        found = summarize(tokens, around, mask).numpy()
        for row, own, beside, inside in zip(found, tokens.numpy(), around.numpy(), mask.numpy(), strict=True):
            beside = beside[inside]
            parts = [own.mean(0), own.std(0)]
            parts += [beside.mean(0), beside.std(0)] if inside.any() else [np.zeros(4)] * 2
            np.testing.assert_allclose(row, np.concatenate(parts), atol=1e-5)
        around[~mask] = 1e5  # what lies outside the image
        np.testing.assert_allclose(summarize(tokens, around, mask).numpy(), found, atol=1e-6)
