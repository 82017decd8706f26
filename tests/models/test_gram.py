"""Ridge regression from sums agrees with the solution from the rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge

from gdml.models import gathered as limits
from gdml.models.gathered import Gathered
from gdml.models.gram import GramMatrices, fold_errors, gcv_errors, null_errors, total
from gdml.models.ridge import Ridge, RidgeConfig, RidgeMap
from gdml.models.scaling import Standardize

ALPHAS = np.geomspace(1e-2, 1e4, 13).tolist()


def problem(lengths=(40, 31, 52, 17, 60), width=12, n_out=3, seed=0, noise=8.0):
    """Rows far from zero, with one constant column, in folds of unequal size; a mean apart for each fold."""
    g = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    folds = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[torch.randperm(n, generator=g)]
    x = torch.randn(n, width, generator=g) * torch.linspace(0.5, 3, width) + 20 + 0.3 * folds[:, None]
    y = x @ torch.randn(width, n_out, generator=g) + noise * torch.randn(n, n_out, generator=g) + 5
    x[:, 2] = 0.7
    return x, y, folds


def gathered(x, y, folds, weights=None, pieces=7):
    made = Gathered()
    for rows in np.array_split(np.arange(len(x)), pieces):
        made.add(x[rows], y[rows], folds[rows], None if weights is None else weights[rows])
    return made


def solved(x, y, folds, weights=None, **options):
    """The solution from the rows, and the one from sums."""
    both = []
    for most in (len(x), 50):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limits, "MAX_ROWS", most)
            pieces = gathered(x, y, folds, weights)
        assert (pieces.sums is None) == (most == len(x))
        made = RidgeMap(x.shape[1], y.shape[1])
        if options.get("hest"):
            made.solve_hest_gathered(pieces, options["n_components"])
        else:
            made.solve_gathered(pieces, ALPHAS, **options)
        both.append(made)
    return both


def assert_same(one, other, x):
    assert float(one.alpha) == float(other.alpha)
    torch.testing.assert_close(other.standardize.mean, one.standardize.mean)
    torch.testing.assert_close(other.standardize.scale, one.standardize.scale)
    torch.testing.assert_close(other.weight, one.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other(x), one(x), rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(15, 60), min_size=2, max_size=6),
    width=st.integers(3, 20),
    seed=st.integers(0, 1000),
    noise=st.sampled_from([0.5, 8.0, 100.0]),
    n_components=st.sampled_from([0, 2]),
    weighted=st.booleans(),
)
def test_sums_give_the_solution_of_the_rows(lengths, width, seed, noise, n_components, weighted):
    lengths = [*lengths, 30]
    x, y, folds = problem(lengths, width, 3, seed, noise)
    target = Standardize(3)
    target.fit([y])
    weights = torch.linspace(0.2, 1.8, len(x)) if weighted else None
    assert_same(*solved(x, y, folds, weights, target=target, n_components=n_components), x)


@pytest.mark.parametrize("n_components", [0, 5])
def test_sums_give_the_probe_of_hest(n_components):
    x, y, folds = problem()
    assert_same(*solved(x, y, folds, hest=True, n_components=n_components), x)


def test_one_fold_teaches_caution_from_sums_too():
    x, y, folds = problem()
    one, other = solved(x, y, torch.zeros_like(folds))
    assert float(other.alpha) == ALPHAS[-1]
    assert_same(one, other, x)


def sums_of(x, y, folds):
    made = GramMatrices(x[:9].double().mean(0), y[:9].double().mean(0))
    for rows in np.array_split(np.arange(len(x)), 5):
        made.add(x[rows], y[rows], folds[rows])
    scale = lambda values: (values.mean(0), torch.ones(values.shape[1]))
    return made.standardized(scale(x), scale(y))


def test_errors_of_folds_agree_with_a_loop():
    x, y, folds = problem((9, 30, 22))
    error, null = np.zeros((len(ALPHAS), 3)), np.zeros(3)
    for i, alpha in enumerate(ALPHAS):
        for fold in range(3):
            out = (folds == fold).numpy()
            model = SklearnRidge(alpha).fit(x[~out].double().numpy(), y[~out].double().numpy())
            error[i] += np.square(model.predict(x[out].double().numpy()) - y[out].double().numpy()).sum(0)
    for fold in range(3):
        out = folds == fold
        null += (y[out] - y[~out].mean(0)).square().sum(0).numpy()
    np.testing.assert_allclose(fold_errors(sums_of(x, y, folds), ALPHAS), error, rtol=1e-6)
    np.testing.assert_allclose(null_errors(sums_of(x, y, folds)), null, rtol=1e-4)


def test_generalised_cross_validation_agrees_with_its_definition():
    x, y, folds = problem(noise=20)
    z, t = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    error = []
    for alpha in ALPHAS:
        hat = z @ torch.linalg.solve(z.T @ z + alpha * torch.eye(z.shape[1]), z.T) + 1 / len(z)
        error.append(((t - hat @ t).square().sum() / (1 - hat.trace() / len(z)) ** 2).item())
    np.testing.assert_allclose(gcv_errors(total(sums_of(x, y, folds)), ALPHAS), error, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_generalised_cross_validation_from_sums_takes_about_the_penalty_of_the_rows(seed):
    x, y, folds = problem((300, 300, 400), seed=seed, noise=40)
    one, other = solved(x, y, folds, by_fold=False)
    assert abs(ALPHAS.index(pytest.approx(float(one.alpha))) - ALPHAS.index(pytest.approx(float(other.alpha)))) <= 1


def test_what_is_held_does_not_grow_with_the_rows(monkeypatch):
    monkeypatch.setattr(limits, "MAX_ROWS", 50)
    held = lambda made: (
        sum(t.nbytes for piece in made.held for t in piece)
        + sum(
            value.nbytes for sums in made.sums.folds.values() for value in vars(sums).values() if torch.is_tensor(value)
        )
    )
    few, many = (gathered(*problem((n,) * 5), pieces=n) for n in (20, 200))
    assert held(many) == held(few)


@pytest.mark.parametrize("selection", ["stripes", "hest"])
def test_a_model_learns_the_same_beyond_the_limit(shape, make_batch, monkeypatch, selection):
    config = RidgeConfig("local+neighbors", selection, "one", alpha_min=1.0, alpha_max=1e4, n_components=8)
    new, models = make_batch(seed=5), []
    for most in (24, 10):
        monkeypatch.setattr(limits, "MAX_ROWS", most)
        model = Ridge(config, shape)
        model.prepare(make_batch(part) for part in (range(14), range(14, 24)))
        models.append(model)
    assert float(models[0].map.alpha) == float(models[1].map.alpha)
    torch.testing.assert_close(models[1](new).prediction, models[0](new).prediction, rtol=1e-3, atol=1e-3)
