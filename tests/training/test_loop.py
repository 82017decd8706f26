from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from gdml.models import Output, SpotModel
from gdml.training import TrainingConfig
from gdml.training.config import make_training_config
from gdml.training.fabric import make_fabric
from gdml.training.loop import average_weights, learning_rate_factor, make_optimizer, predict, seeded, train, validate
from gdml.training.sampler import SlideSampler, balanced_counts

#: Everything named: the defaults may change.
PLAIN = TrainingConfig(
    max_epochs=5,
    patience=5,
    batch_size=16,
    slides_per_batch=2,
    optimizer="adam",
    learning_rate=0.01,
    warmup_steps=0,
    decay_epochs=1,
    decay=1.0,
    weight_decay=0.0,
    clip=0.0,
    average=0.0,
    refit=False,
)


@dataclass(frozen=True)
class NoConfig:
    pass


class Linear(SpotModel):
    """The smallest model: linear in the mean token."""

    config_class = NoConfig
    citation: ClassVar[str] = ""

    def __init__(self, dim=8, n_genes=4):
        super().__init__(NoConfig(), None)
        self.linear = nn.Linear(dim, n_genes)
        self.prepared = 0

    def prepare(self, batches):
        self.prepared = sum(len(batch) for batch in batches)

    def forward(self, batch):
        return Output(self.linear(batch.tokens[:, 0]))

    def loss(self, batch, output, generator):
        return {"loss": (output.prediction - batch.expression).square().mean(), "extra": torch.ones(())}


class Scripted(SpotModel):
    """Answers, epoch by epoch, with the truth blurred as told; its one weight counts the steps."""

    config_class = NoConfig
    citation: ClassVar[str] = ""

    def __init__(self, noise, on_epoch=None, loss=0.0):
        super().__init__(NoConfig(), None)
        self.steps = nn.Parameter(torch.zeros(()))
        self.noise, self.on_epoch, self.added = noise, on_epoch, loss
        self.validated = 0

    def prepare(self, batches):
        list(batches)

    def forward(self, batch):
        if self.training:
            return Output(self.steps * torch.ones(len(batch), 4))
        # one slide is validated, in one batch
        noise = self.noise[min(self.validated, len(self.noise) - 1)]
        self.validated += 1
        g = torch.Generator().manual_seed(0)
        return Output(batch.expression + noise * torch.randn(batch.expression.shape, generator=g))

    def loss(self, batch, output, generator):
        if self.on_epoch is not None:
            self.on_epoch(self)
        return {"loss": self.added - self.steps}


@pytest.fixture
def fabric():
    return make_fabric("cpu", precision="fp32")


@pytest.fixture
def data(make_data):
    return make_data((30, 20))


ONE_STEP = {"batch_size": 100, "learning_rate": 1.0, "optimizer": "adam"}  # an epoch is a step on the first slide


def scripted(data, fabric, noise, *, max_epochs=10, patience=10, **options):
    first, second = data.rows_of(0), data.rows_of(1)
    config = TrainingConfig(**{**vars(PLAIN), **ONE_STEP, "max_epochs": max_epochs, "patience": patience})
    made = Scripted(noise, **options)
    return train(lambda: made, data, first, config, fabric, seed=0, validation=second)


def test_the_best_epoch_is_kept(data, fabric):
    model, run = scripted(data, fabric, [5, 2, 0.1, 2, 5, 5])
    assert run.best_epoch == 3
    # Adam's step is the learning rate: the weight is the number of epochs
    assert float(model.steps.detach()) == pytest.approx(3, abs=1e-3)
    assert len(run.history["epoch"]) == 10
    assert np.argmax(run.history["val_pcc"]) == 2
    assert run.validation_pcc.shape == (4,)
    assert run.validation_pcc.mean() == pytest.approx(run.history["val_pcc"][2])


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_training_stops_when_patience_is_out(data, fabric, patience):
    _, run = scripted(data, fabric, [5, 2, 0.1, 2, 3, 5], patience=patience)
    assert run.best_epoch == 3 and run.history["epoch"].tolist() == list(range(1, 4 + patience))


def test_the_first_of_equal_epochs_is_kept(data, fabric):
    assert scripted(data, fabric, [1.0], patience=2)[1].best_epoch == 1


def test_predictions_without_any_pcc(data, fabric):
    model, run = train_linear(data, fabric, learning_rate=1e-20, zero=True)
    assert np.isnan(run.history["val_pcc"]).all() and run.best_epoch == 1
    assert np.isfinite(run.history["val_mse"]).all()


def train_linear(data, fabric, *, seed=0, validation=True, zero=False, **options):
    config = TrainingConfig(**{**vars(PLAIN), **options})
    rows = torch.arange(len(data))

    def make():
        model = Linear()
        if zero:
            nn.init.zeros_(model.linear.weight)
        return model

    held = rows % 4 == 0
    return train(make, data, rows[~held], config, fabric, seed=seed, validation=rows[held] if validation else None)


def test_it_learns(data, fabric):
    model, run = train_linear(data, fabric, max_epochs=40, patience=40, learning_rate=0.05)
    assert run.history["loss"][-1] < 0.1 * run.history["loss"][0]
    assert run.history["val_pcc"][run.best_epoch - 1] > 0.9
    assert set(run.history) == {"epoch", "loss", "extra", "val_pcc", "val_mse"}
    assert {len(v) for v in run.history.values()} == {40}
    assert all(v.dtype == np.float64 for v in run.history.values())
    assert not model.training and not run.interrupted
    assert model.prepared == 37  # on the training spots alone


@pytest.mark.parametrize("balance", [False, True])
def test_history_is_the_mean_over_batches(data, fabric, balance):
    _, run = train_linear(data, fabric, max_epochs=2, learning_rate=1e-20, validation=False, balance=balance)
    with seeded(0, torch.device("cpu")) as generator:
        model = Linear()
        rows = torch.arange(50)[torch.arange(50) % 4 != 0]
        counts = balanced_counts(data.slide, rows, data.groups) if balance else None
        cuts = list(SlideSampler(data.slide, rows, 16, 2, generator, counts=counts))
        losses = [float(model.loss(b, model(b), generator)["loss"].detach()) for b in map(data.batch, cuts)]
    assert run.history["loss"][0] == pytest.approx(np.mean(losses), rel=1e-5)


def test_without_validation_all_epochs_are_trained(data, fabric):
    _, run = train_linear(data, fabric, validation=False, max_epochs=7, patience=1)
    assert run.best_epoch == 7 and len(run.history["loss"]) == 7
    assert "val_pcc" not in run.history and run.validation_pcc is None


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_the_same_seed_gives_the_same_weights(data, fabric, average):
    weights = lambda seed: train_linear(data, fabric, seed=seed, average=average)[0].linear.weight
    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


def test_the_users_random_state_is_untouched(data, fabric):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train_linear(data, fabric)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seed_is_not_moved_by_what_the_user_drew(data, fabric):
    first = train_linear(data, fabric)[0].linear.weight
    torch.randn(5)
    assert torch.equal(train_linear(data, fabric)[0].linear.weight, first)


def test_interruption_keeps_the_best_epoch(data, fabric):
    def stop(model):
        if float(model.steps.detach()) > 3.5:  # in the fifth epoch
            raise KeyboardInterrupt

    model, run = scripted(data, fabric, [5, 0.1, 2, 3], on_epoch=stop)
    assert run.interrupted and run.best_epoch == 2
    assert float(model.steps.detach()) == pytest.approx(2, abs=1e-3)
    assert run.history["epoch"].tolist() == [1, 2, 3, 4]


def test_interruption_before_the_first_epoch_is_over(data, fabric):
    def stop(model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scripted(data, fabric, [1], on_epoch=stop)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(data, fabric, bad):
    with pytest.raises(FloatingPointError, match="lower `learning_rate` .now 1.0. or use precision"):
        scripted(data, fabric, [1], loss=bad)


def test_average_agrees_with_a_loop():
    torch.manual_seed(0)
    model, decay = Linear(), 0.8
    average, expected = average_weights(model, decay), model.linear.weight.detach().clone()
    for step in range(1, 60):
        with torch.no_grad():
            model.linear.weight.add_(torch.randn(4, 8))
        average.update_parameters(model)
        keep = min(decay, step / (step + 10))  # shorter at first
        expected = keep * expected + (1 - keep) * model.linear.weight.detach()
    torch.testing.assert_close(average.module.linear.weight.detach(), expected)
    assert average.module.linear.weight is not model.linear.weight


def test_the_average_is_what_is_kept(data, fabric):
    plain = train_linear(data, fabric, validation=False)[0].linear.weight
    averaged = train_linear(data, fabric, validation=False, average=0.9)[0].linear.weight
    assert not torch.allclose(plain, averaged)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1] * 8),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"decay": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]),
        ({"decay": 0.5, "decay_epochs": 2}, [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]),
        ({"warmup_steps": 2, "decay": 0.1}, [0.5, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
    ],
)
def test_learning_rate(options, expected):
    factor = learning_rate_factor(TrainingConfig(**{**vars(PLAIN), **options}), steps_per_epoch=2)
    assert [factor(step) for step in range(8)] == pytest.approx(expected)


def test_the_learning_rate_reaches_the_optimizer(data, fabric):
    # a decay to nearly nothing after the first epoch leaves the first epoch's weights
    once = train_linear(data, fabric, validation=False, max_epochs=1)[0].linear.weight
    many = train_linear(data, fabric, validation=False, max_epochs=5, decay=1e-12)[0].linear.weight
    torch.testing.assert_close(once, many)


@pytest.mark.parametrize("clip", [0.0, 1e-6])
def test_gradients_are_clipped(data, fabric, clip):
    norms = []

    class Watched(Linear):
        def loss(self, batch, output, generator):
            if self.linear.weight.grad is not None:
                norms.append(float(torch.cat([p.grad.flatten() for p in self.parameters()]).norm()))
            return super().loss(batch, output, generator)

    config = TrainingConfig(**{**vars(PLAIN), "clip": clip})
    train(Watched, data, torch.arange(50), config, fabric, seed=0)
    assert norms and (max(norms) <= 1.01e-6 if clip else min(norms) > 1e-3)


def test_adamw_decays_matrices_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    groups = make_optimizer(model, TrainingConfig(**{**vars(PLAIN), "optimizer": "adamw", "weight_decay": 0.1}))
    decayed, others = groups.param_groups
    assert [p.shape for p in decayed["params"]] == [(3, 3)] and decayed["weight_decay"] == 0.1
    assert len(others["params"]) == 3 and others["weight_decay"] == 0
    frozen = nn.Linear(2, 2)
    frozen.bias.requires_grad_(False)
    assert sum(len(g["params"]) for g in make_optimizer(frozen, PLAIN).param_groups) == 1


def test_predictions_come_in_the_order_asked(data, fabric):
    torch.manual_seed(0)
    model, rows = Linear(), torch.randperm(50)[:23]
    with torch.no_grad():
        expected = model(data.batch(rows)).prediction
    for size in (3, 100):
        values, embedding = predict(model, data, fabric, rows=rows, batch_size=size)
        torch.testing.assert_close(values, expected)
        assert embedding is None and values.dtype == torch.float32


def test_validation_scores_slide_by_slide(data, fabric):
    torch.manual_seed(0)
    model, rows = Linear(), torch.arange(10, 45)
    pcc, mse = validate(model, data, rows, fabric)
    predicted = predict(model, data, fabric, rows=rows)[0].numpy()
    truth, slide = data.expression[rows].numpy(), data.slide[rows].numpy()
    by_loop = [
        np.mean([np.corrcoef(truth[slide == s, g], predicted[slide == s, g])[0, 1] for s in (0, 1)]) for g in range(4)
    ]
    np.testing.assert_allclose(pcc, by_loop, rtol=1e-5)
    assert mse == pytest.approx(np.square(truth - predicted).mean(), rel=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_fabric(bf16):
    fabric = make_fabric("cpu", precision="bf16" if bf16 else "fp32")
    assert fabric.device == torch.device("cpu") and fabric.world_size == 1
    x = torch.ones(2, 2)
    with fabric.autocast():
        assert (x @ x).dtype == (torch.bfloat16 if bf16 else torch.float32)


def test_bf16_trains_too(data):
    half = make_fabric("cpu", precision="bf16")
    model, run = train_linear(data, half, max_epochs=20, learning_rate=0.05)
    assert model.linear.weight.dtype == torch.float32
    assert run.history["val_pcc"].max() > 0.8


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_epochs": 0}, "`max_epochs` must be a whole number"),
        ({"max_epochs": 2.5}, "`max_epochs` must be a whole number"),
        ({"max_epochs": "3"}, "`max_epochs` must be a whole number"),
        ({"patience": 1.5}, "`patience` must be a whole number"),
        ({"batch_size": True}, "`batch_size` must be a whole number"),
        ({"slides_per_batch": -1}, "`slides_per_batch` must be a whole number"),
        ({"learning_rate": 0}, "`learning_rate` must be positive"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be positive"),
        ({"average": 1.0}, "`average` must lie"),
        ({"optimizer": "rmsprop"}, "`optimizer` must be"),
        ({"max_epoch": 3}, "`training` has no field 'max_epoch'. Did you mean 'max_epochs'"),
    ],
)
def test_impossible_settings(options, match):
    with pytest.raises(ValueError, match=match):
        make_training_config({}, options)


def test_epochs_for_small_data_are_more():
    config = TrainingConfig(max_epochs=None)
    few, many = config.epochs(1), config.epochs(10_000)
    assert few > many > 1
    assert config.epochs(3) * 3 >= few  # about the same number of steps
    assert TrainingConfig(max_epochs=7).epochs(1) == 7


def test_options_take_precedence_over_a_models_recipe():
    made = make_training_config({"max_epochs": 200, "batch_size": 512}, {"max_epochs": 3})
    assert made == TrainingConfig(max_epochs=3, batch_size=512)
    assert make_training_config() == TrainingConfig()
