from dataclasses import replace

import numpy as np
import pytest
import torch

from gdml import metrics
from gdml.models.stnet import STNet, STNetConfig


@pytest.fixture
def make_batch(make_batch):
    """Batches as the model asks for them: without neighbours."""

    def make(*args, **kwargs):
        batch = make_batch(*args, **kwargs)
        return replace(batch, neighbors=batch.neighbors[:, :0], neighbor_mask=batch.neighbor_mask[:, :0])

    return make


def features(batch):
    """Pooled features, row by row, scaled by the moments of the rows and to about unit length."""
    x = np.stack([batch.slides.features[i].numpy() for i in batch.index]).astype(np.float64)
    return (x - x.mean(0)) / x.std(0) / x.shape[1] ** 0.5


def test_contract(check_contract):
    check_contract("stnet", {}, {"max_epochs": 2})


def test_starts_at_the_mean_expression(shape, make_batch):
    model, batch = STNet(STNetConfig(), shape), make_batch()
    model.prepare([make_batch(range(10)), make_batch(range(10, 24))])
    with torch.no_grad():
        predicted = model(make_batch(seed=3)).prediction
    np.testing.assert_allclose(predicted, batch.expression.mean(0).expand(24, -1), atol=1e-5)


def test_one_step_of_gradient_descent(shape, make_batch):
    model, batch = STNet(STNetConfig(), shape), make_batch()
    model.prepare([batch])
    model.loss(batch, model(batch), torch.Generator())["loss"].backward()
    x, y = features(batch), batch.expression.numpy() - batch.expression.numpy().mean(0)
    expected = np.zeros((7, 32))
    for row, target in zip(x, y, strict=True):
        expected += -2 * np.outer(target, row) / len(x)
    np.testing.assert_allclose(model.head.weight.grad, expected, atol=1e-5)
    np.testing.assert_allclose(model.head.bias.grad, 0, atol=1e-5)


@pytest.mark.parametrize("targets", ["center", "standardize", "raw"])
def test_loss(shape, make_batch, targets):
    torch.manual_seed(0)
    model, batch = STNet(STNetConfig(targets=targets), shape), make_batch()
    model.prepare([batch])
    torch.nn.init.normal_(model.head.weight)
    output = model(batch)
    scale = batch.expression.numpy().std(0) if targets == "standardize" else np.ones(7)
    error = 0.0
    for predicted, measured in zip(output.prediction.detach().numpy(), batch.expression.numpy(), strict=True):
        error += sum(((p - m) / s) ** 2 for p, m, s in zip(predicted, measured, scale, strict=True)) / len(batch)
    with torch.no_grad():
        losses = model.loss(batch, output, torch.Generator())
    assert float(losses["loss"]) == pytest.approx(error, rel=1e-4)
    assert float(losses["loss_pred"]) == pytest.approx(error / 7, rel=1e-4)


def test_more_features_than_spots_are_learnt_by_heart(spots, make_spots, train_on, predict_spots):
    pooled = spots.batch(torch.arange(64)).pooled
    wide = torch.cat([pooled, torch.randn(64, 64, generator=torch.Generator().manual_seed(1))], 1)
    alone = {"neighbors": torch.zeros(64, 0, 96), "neighbor_mask": torch.zeros(64, 0, dtype=torch.bool)}
    data = make_spots(pooled=wide, tokens=wide[:, None], **alone)
    predicted = predict_spots(
        train_on("stnet", {}, {"max_epochs": 300, "batch_size": 64, "learning_rate": 0.5}, data=data), data
    )
    assert float(metrics.nan_mean(metrics.pearson_per_gene(spots.expression, predicted))) > 0.95


def test_config():
    with pytest.raises(ValueError, match="`features` is 'standard'. Did you mean 'standardize'"):
        STNetConfig(features="standard")
    with pytest.raises(ValueError, match="`targets` is 'scale'"):
        STNetConfig(targets="scale")
