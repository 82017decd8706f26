"""What of the code the key of a run depends on."""

import inspect
import sys
import types

import pytest

from gdml.models import BLEEP, GeneDML, SpotModel, STNet
from gdml.training import code, compare  # noqa: F401 loads what trains


@pytest.fixture
def change(monkeypatch):
    """Pretend that the source of a module is another one."""
    original = inspect.getsource

    def pretend(name):
        monkeypatch.setattr(
            inspect, "getsource", lambda found: original(found) + "#" * (getattr(found, "__name__", "") == name)
        )

    return pretend


@pytest.mark.parametrize(
    "name",
    ["gdml.models.gene_dml", "gdml.models.branches", "gdml.models.layers", "gdml.training.loop", "gdml.training.split"]
    + ["gdml.expression", "gdml.metrics", "gdml._correlation"],
)
def test_a_changed_module_that_a_run_uses_is_another_run(change, name):
    before = code.code_digest(GeneDML)
    assert code.code_digest(GeneDML) == before
    change(name)
    assert code.code_digest(GeneDML) != before


@pytest.mark.parametrize("name", ["gdml.models.bleep", "gdml.models.branches", "gdml.training.compare"])
def test_what_a_run_does_not_use_may_change(change, name):
    before = code.code_digest(STNet)
    change(name)
    assert code.code_digest(STNet) == before


def test_models_have_different_code():
    assert len({code.code_digest(model) for model in (GeneDML, STNet, BLEEP)}) == 3


def test_a_model_of_ones_own_counts_with_what_it_is_built_on(change, monkeypatch):
    module = types.ModuleType("of_a_user")
    exec("from gdml.models import SpotModel, Scalers\nclass Own(SpotModel): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "of_a_user", module)
    before = code.code_digest(module.Own)  # without a file: it counts by its name
    assert before != code.code_digest(SpotModel)
    change("gdml.models.scaling")
    assert code.code_digest(module.Own) != before
