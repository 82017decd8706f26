from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gdml.models import Shape
from gdml.models.ridge import Ridge, RidgeConfig, RidgeMap, pooled_features

CONFIG = RidgeConfig("local+neighbors", "gcv", "one", alpha_min=1e-2, alpha_max=1e4, n_alphas=13)


def features(batch):
    """Mean local token beside the mean of the neighbours that are inside, row by row."""
    rows = []
    for tokens, neighbors, inside in zip(batch.tokens, batch.neighbors, batch.neighbor_mask, strict=True):
        rows.append(np.concatenate([tokens.numpy().mean(0), neighbors.numpy()[inside.numpy()].mean(0)]))
    return np.stack(rows).astype(np.float64)


@pytest.mark.parametrize("pieces", [1, 3])
def test_agrees_with_scikit_learn(shape, make_batch, pieces):
    model, batch = Ridge(CONFIG, shape), make_batch()
    model.prepare(make_batch(part) for part in np.array_split(np.arange(24), pieces))
    theirs = make_pipeline(StandardScaler(), RidgeCV(np.geomspace(1e-2, 1e4, 13)))
    theirs.fit(features(batch), batch.expression.numpy().astype(np.float64))
    assert float(model.map.alpha) == pytest.approx(theirs[-1].alpha_)
    new = make_batch(seed=5)
    np.testing.assert_allclose(model(new).prediction, theirs.predict(features(new)), atol=1e-4)


def test_selection_by_stripes(shape, make_batch):
    batch = make_batch()
    model = Ridge(replace(CONFIG, selection="stripes"), shape)
    model.prepare(make_batch(part) for part in (range(14), range(14, 24)))
    alone = RidgeMap(64, 7)
    alone.solve(pooled_features(batch), batch.expression, np.geomspace(1e-2, 1e4, 13).tolist(), batch.stripe)
    assert float(model.map.alpha) == float(alone.alpha)
    torch.testing.assert_close(model(batch).prediction, alone(pooled_features(batch)))
    with pytest.raises(ValueError, match="`selection` is 'loo'"):
        RidgeConfig(selection="loo")


@pytest.mark.parametrize("selection", ["stripes", "gcv", "hest"])
@pytest.mark.parametrize("penalty", ["component", "one"])
def test_spots_count_by_their_weights(shape, make_batch, selection, penalty):
    batch = make_batch()
    heavy = torch.linspace(0.1, 1.9, len(batch))
    found = []
    for weight in (None, torch.ones_like(heavy), heavy):
        model = Ridge(RidgeConfig(selection=selection, penalty=penalty), shape)
        model.prepare([replace(batch, weight=weight)])
        found.append(model(batch).prediction)
    torch.testing.assert_close(found[0], found[1])
    assert (found[2] - found[0]).abs().max() > 1e-3


@pytest.mark.parametrize("n_components", [4, 0])
def test_the_probe_of_hest_is_scikit_learns(shape, make_batch, n_components):
    """StandardScaler, PCA, Ridge(alpha = 100 / (d M), no intercept), as ``train_test_reg`` of mahmoodlab/HEST."""
    preset = replace(Ridge.presets["hest"], n_components=n_components)
    batch, new = make_batch(), make_batch(seed=5)
    model = Ridge(preset, shape)
    model.prepare(make_batch(part) for part in (range(14), range(14, 24)))

    y = batch.expression.double().numpy()
    steps = [StandardScaler(), PCA(n_components)] if n_components else [StandardScaler()]
    inputs = make_pipeline(*steps).fit(batch.tokens.double().mean(1).numpy())
    x, x_new = (inputs.transform(b.tokens.double().mean(1).numpy()) for b in (batch, new))
    alpha = 100 / ((n_components or 32) * 7)
    theirs = SklearnRidge(alpha=alpha, fit_intercept=False, solver="lsqr", tol=1e-10, max_iter=10_000).fit(x, y)
    assert float(model.map.alpha) == pytest.approx(alpha)
    np.testing.assert_allclose(model(new).prediction, theirs.predict(x_new), atol=1e-4)
    np.testing.assert_allclose(model(batch).prediction, theirs.predict(x), atol=1e-4)
    # and the penalty is felt
    harder = SklearnRidge(alpha=10 * alpha, fit_intercept=False).fit(x, y)
    assert np.abs(harder.predict(x) - theirs.predict(x)).max() > 0.05


def test_the_preset_of_hest():
    preset = Ridge.presets["hest"]
    assert (preset.selection, preset.inputs, preset.n_components) == ("hest", "local", 256)


def test_stripes_are_needed_to_choose_a_penalty(shape, make_batch):
    with pytest.raises(ValueError, match="no stripes to choose a penalty on: set `stripe`"):
        Ridge(RidgeConfig(), shape).prepare([replace(make_batch(), stripe=None)])


def test_one_gene(make_batch):
    batch = make_batch()
    batch.expression = batch.expression[:, :1]
    model = Ridge(CONFIG, Shape(dim=32, n_tokens=5, n_side=3, n_genes=1))
    model.prepare([batch])
    theirs = make_pipeline(StandardScaler(), RidgeCV(np.geomspace(1e-2, 1e4, 13)))
    theirs.fit(features(batch), batch.expression[:, 0].numpy().astype(np.float64))
    np.testing.assert_allclose(model(batch).prediction[:, 0], theirs.predict(features(batch)), atol=1e-4)


def test_masked_neighbours_do_not_count(shape, make_batch):
    model, batch = Ridge(CONFIG, shape), make_batch()
    model.prepare([batch])
    before = model(batch).prediction
    batch.neighbors[~batch.neighbor_mask] = 1e3
    assert torch.equal(model(batch).prediction, before)


def test_loss_is_the_squared_error(shape, make_batch):
    model, batch = Ridge(CONFIG, shape), make_batch()
    model.prepare([batch])
    output = model(batch)
    expected = np.square(output.prediction.numpy() - batch.expression.numpy()).mean()
    assert float(model.loss(batch, output, torch.Generator())["loss"]) == pytest.approx(expected, rel=1e-5)
