import numpy as np
import pytest
import torch

from gdml.models import GeneDML, GeneDMLConfig, Ridge, RidgeConfig
from gdml.training import out_of_fold
from gdml.training.config import TrainingConfig
from gdml.training.fabric import make_fabric
from gdml.training.fitting import fit_model
from gdml.training.frame import FRAMES, make_module
from gdml.training.loop import predict, train
from gdml.training.split import make_splits

SMALL = {"width": 8, "branch_width": 8, "neighbor_depth": 1, "slide_depth": 1, "n_groups": 2}
LOOP = TrainingConfig(max_epochs=2, batch_size=32)
FABRIC = make_fabric("cpu", precision="fp32")


def fitted(data, model, config, frame, *, several=True, by="block"):
    splits = make_splits(data, by, 0.2, "patient", 0, several=several, smooth=False)
    module, run, _ = fit_model(model, config, data, splits, LOOP, FABRIC, 0, frame=FRAMES[frame])
    return module, run, splits


@pytest.fixture
def data(make_data):
    data = make_data((60, 55), dim=8)
    data.depth = torch.rand(115) + 0.5
    return data


@pytest.mark.parametrize("frame", ["slide", "raw"])
def test_each_spot_is_predicted_by_a_model_that_had_not_seen_it(data, frame):
    _, run, splits = fitted(data, Ridge, RidgeConfig(), frame)
    found = run.out_of_fold
    assert found.by == "block"
    assert found.rows.tolist() == list(range(115))
    for number, split in enumerate(splits):
        assert found.rows[found.part == number].tolist() == split.validation.tolist()
        make = lambda: make_module(Ridge, RidgeConfig(), data.shape(), FRAMES[frame])
        module, _ = train(make, data, split.train, LOOP, FABRIC, seed=0)
        expected, _ = predict(module, data, FABRIC, rows=split.validation)
        torch.testing.assert_close(found.predicted[split.validation], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frame", ["slide", "raw"])
def test_the_expression_of_a_held_out_spot_is_never_read(data, frame):
    _, run, splits = fitted(data, Ridge, RidgeConfig(), frame)
    held = splits[1].validation
    data.expression[held] = torch.randn(len(held), 4) * 10
    _, again, _ = fitted(data, Ridge, RidgeConfig(), frame)
    torch.testing.assert_close(again.out_of_fold.predicted[held], run.out_of_fold.predicted[held])
    others = splits[0].validation
    assert not torch.allclose(again.out_of_fold.predicted[others], run.out_of_fold.predicted[others])


def test_a_blend_is_predicted_with_the_shares_that_were_chosen(data):
    config = GeneDMLConfig(**SMALL)
    module, run, splits = fitted(data, GeneDML, config, "slide")
    split = splits[2]

    def make():
        made = make_module(GeneDML, config, data.shape(), FRAMES["slide"])
        made.take_shares(module.floor.shares)
        return made

    # what is in closed form has no seed; the network, after two epochs, has no share
    assert run.shares[-1] == 0
    solved, _ = train(make, data, split.train, LOOP, FABRIC, seed=0, solve_only=True)
    expected, _ = predict(solved, data, FABRIC, rows=split.validation)
    torch.testing.assert_close(run.out_of_fold.predicted[split.validation], expected, rtol=1e-3, atol=1e-3)


def test_the_validation_score_is_that_of_the_out_of_fold_predictions(data):
    _, run, _ = fitted(data, Ridge, RidgeConfig(), "raw")
    y, p = data.expression.numpy(), run.out_of_fold.predicted.numpy()
    by_hand = [[np.corrcoef(y[s, g], p[s, g])[0, 1] for g in range(4)] for s in (slice(0, 60), slice(60, 115))]
    np.testing.assert_allclose(run.validation_pcc, np.mean(by_hand, 0), atol=1e-5)


def test_of_one_split_its_validation_spots_are_predicted(data):
    _, run, (split,) = fitted(data, Ridge, RidgeConfig(), "raw", several=False)
    assert run.out_of_fold.rows.tolist() == split.validation.tolist()


def test_without_a_split_there_are_none(data):
    _, run, _ = fit_model(Ridge, RidgeConfig(), data, [], LOOP, FABRIC, 0)
    assert run.out_of_fold is None


def test_of_many_spots_some_are_kept_of_each_slide(data, monkeypatch):
    monkeypatch.setattr(out_of_fold, "MOST_SPOTS", 40)
    _, run, _ = fitted(data, Ridge, RidgeConfig(), "raw")
    kept = np.bincount(data.slide[run.out_of_fold.rows], minlength=2)
    assert 15 <= kept[0] <= 21
    assert 15 <= kept[1] <= 20


def test_groups_are_held_out_where_there_are_three(make_data):
    splits = lambda key, **options: {
        (split.by, len(split.held_out))
        for split in make_splits(make_data((20,) * 4, **options), "auto", 0.2, key, 0, several=True, smooth=False)
    }
    assert splits("patient", groups=["a", "a", "b", "c"]) == {("group", 1)}
    assert splits("patient", groups=["a", "a", "b", "b"]) == {("slide", 1)}
    assert splits(None) == {("slide", 1)}
