import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import nbinom

from gdml.models.hist2st import GraphLayer, Hist2ST, Hist2STConfig
from gdml.training.config import make_training_config

SMALL = {"width": 32, "depth": 2, "heads": 4, "graph_depth": 2, "n_views": 2}


def model_of(shape, batch, seed=0, **options):
    torch.manual_seed(seed)
    model = Hist2ST(Hist2STConfig(**(SMALL | options)), shape)
    model.prepare([batch])
    return model.eval()


def test_contract(check_contract):
    check_contract("hist2st", SMALL, {"max_epochs": 2})


def test_64_spots_are_learnt_by_heart(fit_quality):
    config = {**SMALL, "width": 64, "dropout": 0.0, "distillation_weight": 0.0, "zinb_weight": 0.0}
    assert fit_quality("hist2st", config, {"max_epochs": 120, "learning_rate": 1e-3}) > 0.95


def test_graph_layer_agrees_with_loops():
    torch.manual_seed(0)
    layer, x = GraphLayer(6), torch.randn(5, 6)
    neighbors = torch.tensor([[1, 2], [0, 3], [4, 4], [2, 1], [0, 0]])
    weight = layer.linear.weight.detach().numpy()
    for i, row in enumerate(layer(x, neighbors).detach().numpy()):
        mean = sum(x[j].numpy() for j in neighbors[i].tolist()) / 2
        expected = np.maximum(weight @ mean, 0)
        np.testing.assert_allclose(row, expected / np.linalg.norm(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("self_loop", [False, True])
def test_the_graph_joins_the_nearest_spots(shape, make_batch, self_loop):
    """With one graph layer and no attention, a spot sees what it is joined to and nothing else."""
    batch = make_batch()
    model = model_of(shape, batch, depth=0, graph_depth=1, n_neighbors=2, self_loop=self_loop)
    features = batch.slides.features.clone().requires_grad_()
    batch.slides.features = features
    for spot in (0, 20):
        (gradient,) = torch.autograd.grad(model(batch).prediction[spot].sum(), features)
        seen = set(gradient.abs().sum(1).nonzero().flatten().tolist())
        nearest = batch.slides.nearest[spot].tolist()
        assert seen == set(nearest[not self_loop : 3])


def test_some_spots_are_predicted_as_all_are(shape, make_batch):
    model, rows = model_of(shape, make_batch()), [20, 3, 4]
    with torch.no_grad():
        some, every = model(make_batch(rows)).prediction, model(make_batch()).prediction
    torch.testing.assert_close(some, every[rows], atol=1e-5, rtol=1e-5)


def test_an_unaltered_copy_of_a_slide_is_encoded_as_the_slide(shape, make_batch):
    batch = make_batch([3, 18, 20])
    model = model_of(shape, batch)
    x = model.scalers.pooled(batch.slides.features)
    with torch.no_grad():
        alone = model._encode([x], batch)[0]
        stacked = model._encode([torch.zeros_like(x), x, x + 1], batch)
    torch.testing.assert_close(stacked[1], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(stacked[0], alone, atol=1e-3)


def test_copies_are_altered_as_the_config_says(shape, make_batch):
    model = model_of(shape, make_batch(), view_dropout=0.25, view_noise=0.5).train()
    x = torch.full((2000, 8), 3.0)
    view = model._view(x)
    assert float((view == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    # what is kept is scaled up for what is dropped
    assert float(view[view != 0].std()) == pytest.approx(0.5 / 0.75, rel=0.05)
    assert float(view.mean()) == pytest.approx(3, abs=0.05)


def test_copies_are_combined_by_their_learnt_weights(shape, make_batch):
    batch = make_batch()
    model = model_of(shape, batch, dropout=0.0, view_dropout=0.0, view_noise=0.0).train()
    for weight in (0.0, 3.0):  # copies that differ in nothing: any weights that sum to one give the same
        torch.nn.init.constant_(model.weigh[2].weight, weight)
        parts = model(batch).parts
        torch.testing.assert_close(parts["distilled"], parts["prediction"], atol=1e-4, rtol=1e-4)
    assert "distilled" not in model.eval()(batch).parts
    assert "distilled" not in model_of(shape, batch, distillation_weight=0.0).train()(batch).parts


def loss_by_loops(batch, output, mean, zinb_weight, distillation_weight):
    parts = {name: x.detach().numpy().astype(float) for name, x in output.parts.items()}
    counts = batch.counts.numpy()
    depth = [sum(row) for row in counts.tolist()]
    n, m = counts.shape
    pred = zinb = distillation = 0.0
    for i in range(n):
        size = depth[i] / sorted(depth)[n // 2]  # n is odd
        for j in range(m):
            pred += (parts["prediction"][i, j] - (batch.expression[i, j].item() - mean[j])) ** 2
            distillation += (parts["distilled"][i, j] - parts["prediction"][i, j]) ** 2
            mu = math.exp(parts["log_mean"][i, j]) * size
            r = math.log1p(math.exp(parts["dispersion"][i, j]))
            pi = 1 / (1 + math.exp(-parts["zero_logit"][i, j]))
            p = (1 - pi) * nbinom.pmf(counts[i, j], r, r / (r + mu)) + (pi if counts[i, j] == 0 else 0)
            zinb -= math.log(p)
    terms = {"loss_pred": pred, "loss_zinb": zinb, "loss_distillation": distillation}
    terms = {name: value / (n * m) for name, value in terms.items()}
    total = terms["loss_pred"] + zinb_weight * terms["loss_zinb"] + distillation_weight * terms["loss_distillation"]
    return {"loss": total, **terms}


def test_loss_agrees_with_loops(shape, make_batch):
    batch = make_batch([2, 5, 9, 17, 20])
    model = model_of(shape, make_batch(), zinb_weight=0.7, distillation_weight=0.3).train()
    output = model(batch)
    with torch.no_grad():
        found = {name: float(value) for name, value in model.loss(batch, output, torch.Generator()).items()}
    expected = loss_by_loops(batch, output, make_batch().expression.numpy().mean(0), 0.7, 0.3)
    assert found == pytest.approx(expected, rel=1e-4)


def test_loss_without_counts(shape, make_batch):
    batch = replace(make_batch(), counts=None)
    model = model_of(shape, make_batch())
    with pytest.raises(ValueError, match="no counts to learn from; set zinb_weight=0"):
        model.loss(batch, model(batch), torch.Generator())
    model = model_of(shape, make_batch(), zinb_weight=0)
    assert set(model.loss(batch, model(batch), torch.Generator())) == {"loss", "loss_pred"}


def test_the_published_training():
    """Adam 1e-5, x0.9 every 50 epochs (``configure_optimizers`` of github.com/biomed-AI/Hist2ST), 350 epochs (paper)."""
    loop = make_training_config(Hist2ST.preset_recipes["paper"])
    assert (loop.optimizer, loop.learning_rate, loop.max_epochs) == ("adam", 1e-5, 350)
    assert (loop.decay_epochs, loop.decay) == (50, 0.9)
    assert (loop.slides_per_batch, loop.warmup_steps, loop.clip, loop.average) == (1, 0, 0, 0)
    config = Hist2ST.presets["paper"]
    assert (config.width, config.depth, config.heads, config.mlp, config.dropout) == (1024, 8, 16, 1, 0.2)
    assert (config.graph_depth, config.n_neighbors, config.n_views) == (4, 4, 5)
    assert (config.zinb_weight, config.distillation_weight) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neighbors": 9}, "`n_neighbors` must be 1 to 8, found 9"),
        ({"n_views": -1}, "`n_views` must not be negative, found -1"),
        ({"targets": "centre"}, "`targets` is 'centre'. Did you mean 'center'"),
    ],
)
def test_config(options, message):
    with pytest.raises(ValueError, match=message):
        Hist2STConfig(**options)
