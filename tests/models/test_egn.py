import math

import numpy as np
import pytest
import torch

import gdml
from gdml.models import Shape, egn, get_model
from gdml.models.base import make_config
from gdml.models.egn import EGN, EGNConfig, mean_pcc
from gdml.training import TrainedModel
from gdml.training.config import make_training_config
from gdml.training.fabric import make_fabric
from gdml.training.loop import train

SMALL = {"width": 16, "depth": 2, "heads": 2, "bridge_heads": 2, "bridge_width": 8}


def build(spots, rows=None, **config):
    """Untrained, prepared on some of the spots."""
    torch.manual_seed(0)
    module = EGN(make_config(EGN, None, {**SMALL, **config}), Shape(32, 10, 5, 6))
    module.prepare(spots.in_order(torch.arange(64) if rows is None else rows, 20, EGN.needs))
    return module


@pytest.fixture
def retrieved(monkeypatch):
    """Rows of the bank that each forward pass retrieves."""
    found = []
    real = egn.nearest_rows

    def watch(*args):
        answer = real(*args)
        found.append(answer[1])
        return answer

    monkeypatch.setattr(egn, "nearest_rows", watch)
    return found


def test_it_keeps_the_contract(check_contract):
    check_contract("egn", SMALL, {"max_epochs": 2})


def test_it_learns_64_spots_by_heart(fit_quality):
    training = {"max_epochs": 30, "learning_rate": 3e-3, "warmup_steps": 10}
    assert fit_quality("egn", {**SMALL, "width": 32}, training) > 0.95


# losses


def pearson_by_loops(x, y):
    found = []
    for a, b in zip(np.transpose(x), np.transpose(y), strict=True):
        mean = [sum(map(float, v)) / len(v) for v in (a, b)]
        ab, aa, bb = (
            sum((float(p[i]) - m) * (float(q[i]) - n) for i in range(len(a)))
            for p, m, q, n in ((a, mean[0], b, mean[1]), (a, mean[0], a, mean[0]), (b, mean[1], b, mean[1]))
        )
        found.append(ab / math.sqrt(aa * bb) if aa * bb > 1e-12 else 0.0)
    return sum(found) / len(found)


def test_the_correlation_as_loops_have_it():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 11, 5))
    assert float(mean_pcc(torch.tensor(x), torch.tensor(y))) == pytest.approx(pearson_by_loops(x, y), rel=1e-9)
    assert float(mean_pcc(torch.tensor(x), torch.tensor(3 * x + 1))) == pytest.approx(1)


def test_columns_that_do_not_vary_have_finite_gradients():
    x = torch.ones(8, 3, requires_grad=True)
    y = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    found = mean_pcc(x * torch.tensor([1.0, 2.0, 3.0]), y)
    found.backward()
    assert found.item() == 0 and x.grad.isfinite().all()
    assert float(mean_pcc(y[:1], y[1:2])) == 0  # one spot


@pytest.mark.parametrize("weight", [0.5, 0.0, 2.0])
@pytest.mark.parametrize("targets", ["center", "standardize"])
def test_the_loss_as_loops_have_it(spots, weight, targets):
    module = build(spots, pcc_weight=weight, targets=targets)
    batch = spots.batch(torch.tensor([3, 60, 17, 40, 41]), module.needs)
    output = module(batch)
    losses = module.loss(batch, output, torch.Generator())
    scale = spots.expression.std(0, correction=0) if targets == "standardize" else torch.ones(6)
    target, predicted = ((x - spots.expression.mean(0)) / scale for x in (batch.expression, output.prediction.detach()))
    error = sum((float(target[i, j]) - float(predicted[i, j])) ** 2 for i in range(5) for j in range(6)) / 30
    lacking = 1 - pearson_by_loops(target.numpy(), predicted.numpy())
    assert losses["loss_pred"].item() == pytest.approx(error, rel=1e-4)
    assert losses["loss_pcc"].item() == pytest.approx(lacking, rel=1e-4)
    assert losses["loss"].item() == pytest.approx(error + weight * lacking, rel=1e-4)
    losses["loss"].backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # what the last bridge makes of the exemplars is read by none
    assert silent == ["layers.1.bridge.norm_exemplar.weight", "layers.1.bridge.norm_exemplar.bias"]


# exemplars


def test_a_training_spot_never_sees_itself(spots, retrieved):
    module = build(spots, exclude="spot")
    batch = spots.batch(torch.arange(64), module.needs)
    module.train()(batch)
    assert not (module.bank.spot[retrieved[-1]] == batch.spot[:, None]).any()
    module.eval()(batch)
    assert torch.equal(module.bank.spot[retrieved[-1][:, 0]], batch.spot)


def test_a_training_spot_sees_other_slides_alone(spots, retrieved):
    module = build(spots)
    batch = spots.batch(torch.tensor([50, 1, 63, 30]), module.needs)
    module.train()(batch)
    assert not (module.bank.slide[retrieved[-1]] == torch.tensor([32, 0, 32, 0])[:, None]).any()
    module.eval()(batch)
    assert torch.equal(module.bank.spot[retrieved[-1][:, 0]], batch.spot)


@pytest.mark.parametrize("rows", [torch.arange(32), torch.cat([torch.arange(32), torch.arange(32, 40)])])
def test_where_other_slides_have_too_few_spots(spots, retrieved, rows):
    """One slide; or two, of which one has fewer spots than there are exemplars."""
    module = build(spots, rows).train()
    batch = spots.batch(rows, module.needs)
    module(batch)
    spot = module.bank.spot[retrieved[-1]]
    assert not module.by_slide and not (spot == batch.spot[:, None]).any()
    assert ((spot < 32) & (batch.spot[:, None] < 32)).any()


def test_exemplars_as_a_loop_finds_them(spots, retrieved):
    rows = torch.arange(10, 50)
    module = build(spots, rows, n_exemplars=4).eval()
    pooled = spots.batch(torch.arange(64)).pooled.numpy()
    mean, std = pooled[rows].mean(0), pooled[rows].std(0)  # no neighbour tiles are read
    unit = (pooled - mean) / std
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    module(spots.batch(torch.arange(48, 64), module.needs))
    expected = np.argsort(-(unit[48:64] @ unit[rows].T), axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(retrieved[-1], expected)


def test_the_expression_of_exemplars_counts(spots):
    module = build(spots).eval()
    batch = spots.batch(torch.arange(8), module.needs)
    before = module(batch).prediction
    module.bank.expression = module.bank.expression.flip(0)
    assert not torch.allclose(before, module(batch).prediction)


def test_the_bank_holds_training_spots_alone(spots):
    rows, held = torch.arange(40), torch.arange(40, 64)
    loop = make_training_config(EGN.recipe, {"max_epochs": 1, "batch_size": 20})
    fabric = make_fabric("cpu", precision="fp32")
    make = lambda: EGN(make_config(EGN, None, SMALL), Shape(32, 10, 5, 6))
    module, _ = train(make, spots, rows, loop, fabric, seed=0, validation=held)
    assert torch.equal(module.bank.spot, rows) and torch.equal(module.bank.expression, spots.expression[rows])
    torch.testing.assert_close(module.bank.features, module.scalers.pooled(spots.batch(rows).pooled))
    assert module.shape.n_bank == 40


def test_saved_and_loaded(train_on, predict_spots, tmp_path):
    module = train_on("egn", SMALL, {"max_epochs": 1})
    TrainedModel(
        module=module,
        name="egn",
        panel=tuple("ABCDEF"),
        normalization={},
        features={"encoder": "stain"},
        tiles={},
    ).save(tmp_path / "model")
    again = gdml.load(tmp_path / "model")
    assert again.module.shape.n_bank == 64
    assert torch.equal(predict_spots(again.module), predict_spots(module))


def test_more_exemplars_than_spots(spots):
    with pytest.raises(ValueError, match=r"`n_exemplars` is 9, but a training spot has 8 .*=\{'n_exemplars': 2\}"):
        build(spots, torch.arange(9))
    module = build(spots, torch.arange(10))
    assert module(spots.batch(torch.arange(10), module.needs)).prediction.isfinite().all()


def test_features_that_are_all_alike(spots, make_spots):
    module = build(make_spots(pooled=torch.zeros(64, 32)))
    batch = spots.batch(torch.arange(9), module.needs)
    for mode in (True, False):
        assert module.train(mode)(batch).prediction.isfinite().all()


# settings


def test_bridges_stand_in_every_second_layer():
    shape = Shape(32, 10, 5, 6)
    has = lambda **kw: [x.bridge is not None for x in EGN(EGNConfig(width=8, heads=2, **kw), shape).layers]
    assert has(depth=5) == [False, True, False, True, False]
    assert has(depth=3, bridge_every=1) == [True] * 3
    assert has(depth=2, bridge_every=3) == [False] * 2


def test_the_paper_has_its_sizes():
    paper = get_model("egn").presets["paper"]
    assert (paper.width, paper.depth, paper.heads, paper.mlp * paper.width) == (1024, 8, 16, 4096)
    assert (paper.bridge_every, paper.bridge_heads, paper.bridge_width, paper.n_exemplars) == (2, 8, 64, 9)


def test_one_token_is_too_few():
    with pytest.raises(ValueError, match=r'pooled to one: call gdml.pp.embed\(adata, tokens="grid7"\)'):
        EGN(EGNConfig(), Shape(32, 1, 5, 6))


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("exclude", "slides", "`exclude` is 'slides'. Did you mean 'slide'"),
        ("features", "standard", "`features` is 'standard'. Did you mean 'standardize'"),
        ("targets", "centre", "`targets` is 'centre'. Did you mean 'center'"),
        ("n_exemplars", 0, "`n_exemplars` must be at least 1, found 0"),
        ("bridge_every", 0, "`bridge_every` must be at least 1, found 0"),
    ],
)
def test_settings_that_can_not_be(field, value, match):
    with pytest.raises(ValueError, match=match):
        EGNConfig(**{field: value})
