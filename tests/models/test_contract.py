"""What holds for the models that have no file of tests about it of their own."""

import pytest
from torch import nn

from gdml.models import Ridge, RidgeConfig, Shape, SpotModel, base, get_model, list_models, register

SMALL = {
    "width": 16,
    "branch_width": 16,
    "neighbor_depth": 1,
    "neighbor_heads": 2,
    "slide_depth": 1,
    "slide_heads": 2,
    "fusion_heads": 2,
    "n_groups": 4,
    "group_iterations": 3,
}


def test_ridge_keeps_the_contract(check_contract):
    check_contract("ridge", {}, {})
    check_contract("ridge", {"inputs": "local+neighbors", "penalty": "one"}, {})


def test_kernel_ridge_keeps_the_contract(check_contract):
    check_contract("kernel", {"n_landmarks": 32}, {})


def test_gene_dml_keeps_the_contract(check_contract):
    check_contract("gene-dml", SMALL, {"max_epochs": 2})


def test_ridge_without_a_penalty_learns_64_spots_by_heart(fit_quality):
    assert fit_quality("ridge", {"penalty": "one", "alpha_min": 1e-6, "alpha_max": 1e-5, "n_alphas": 2}) > 0.95


def test_a_model_of_ones_own_takes_part():
    class Own(Ridge):
        """Ridge by another name."""

    register("own", Own)
    try:
        assert get_model("own") is Own and "own" in list_models()
        register("own", Own)  # a cell that is run twice
    finally:
        base._registered.clear()


@pytest.mark.parametrize(
    ("name", "model", "error", "match"),
    [
        ("ridge", Ridge, ValueError, "`name` is 'ridge', which is a built-in model"),
        ("own", nn.Linear, TypeError, "subclass of gdml.models.SpotModel"),
        ("own", Ridge(RidgeConfig(), Shape(2, 1, 3, 4)), TypeError, "subclass of gdml.models.SpotModel"),
        ("own", type("Bare", (SpotModel,), {}), ValueError, "Bare has no `config_class`"),
    ],
)
def test_what_is_no_model_is_not_registered(name, model, error, match):
    with pytest.raises(error, match=match):
        register(name, model)
