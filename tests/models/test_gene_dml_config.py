from dataclasses import asdict, fields

import pytest

from gdml.models.base import get_model, list_models, make_config
from gdml.models.gene_dml_config import PRESET_RECIPES, PRESETS, GeneDMLConfig
from gdml.training.config import make_training_config

#: Settings by data set: supplement of the paper, and the authors' configuration.
PAPER = {
    #         neighbour: depth, heads, mlp, dropout; slide: the same; k; batch
    "her2st": ((4, 4, 4, 0.3), (5, 8, 4, 0.3), 18, 512),
    "stnet": ((4, 8, 4, 0.3), (3, 8, 2, 0.1), 90, 512),
    "skinst": ((4, 16, 1, 0.3), (2, 16, 1, 0.1), 25, 256),
}


@pytest.mark.parametrize("name", PAPER)
def test_presets_are_the_papers(name):
    c, (neighbor, slide, k, batch) = PRESETS[name], PAPER[name]
    assert (c.neighbor_depth, c.neighbor_heads, c.neighbor_mlp, c.neighbor_dropout) == neighbor
    assert (c.slide_depth, c.slide_heads, c.slide_mlp, c.slide_dropout) == slide
    assert c.n_groups == k
    # what all data sets share
    assert (c.width, c.fusion_heads, c.fusion_mlp, c.fusion_dropout) == (512, 1, 2, 0.1)
    assert (c.tau, c.group_tau, c.instance_weight, c.group_weight) == (0.07, 0.07, 1.0, 0.8)
    assert (c.gene_dropout, c.head_dropout, c.group_iterations, c.head) == (0.3, 0.1, 10, "paper")
    assert (c.features, c.targets, c.branch_width) == ("raw", "raw", 0)
    assert c.attention_dropout and not c.fusion_residual and not c.detach_centroids
    assert not c.normalize_image and not c.scale_weight and not c.average_scales
    assert not c.input_dropout and not c.token_dropout
    loop = make_training_config(PRESET_RECIPES[name])
    assert (loop.batch_size, loop.max_epochs, loop.patience) == (batch, 200, 20)
    assert (loop.optimizer, loop.learning_rate, loop.weight_decay) == ("adam", 1e-4, 0)
    assert (loop.decay_epochs, loop.decay, loop.warmup_steps) == (20, 0.95, 0)
    assert not loop.refit and not loop.average and not loop.clip


def test_every_preset_is_tested():
    assert set(PRESETS) == set(PRESET_RECIPES) == set(PAPER)


@pytest.mark.parametrize(
    "name", ["features", "targets", "projection", "head", "instance_reduction", "group_target", "grouping"]
)
def test_choices_are_checked(name):
    with pytest.raises(ValueError, match=f"`{name}` is 'nonsense'"):
        GeneDMLConfig(**{name: "nonsense"})


def test_a_choice_misspelt_finds_its_neighbour():
    with pytest.raises(ValueError, match="Did you mean 'nearest'"):
        GeneDMLConfig(group_target="nearst")


@pytest.mark.parametrize(
    "options",
    [{"n_groups": 1}, {"instance_weight": -1}, {"group_weight": -0.1}, {"scale_weight": -1}]
    + [{"projection": "shared", "branch_width": 64}],
)
def test_impossible_settings(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}"):
        GeneDMLConfig(**options)


def test_registry():
    assert {"gene-dml", "ridge"} <= set(list_models())
    with pytest.raises(ValueError, match="`model` is 'gene-dlm', which is not known. Did you mean 'gene-dml'"):
        get_model("gene-dlm")


def test_options_take_the_place_of_fields():
    model = get_model("gene-dml")
    made = make_config(model, PRESETS["stnet"], {"n_groups": 7})
    assert {k: v for k, v in asdict(made).items() if v != getattr(PRESETS["stnet"], k)} == {"n_groups": 7}
    with pytest.raises(ValueError, match="`config` has no field 'n_group'. Did you mean 'n_groups'"):
        make_config(model, None, {"n_group": 7})


def test_the_record_makes_the_same_config():
    record = asdict(PRESETS["skinst"])
    assert set(record) == {f.name for f in fields(GeneDMLConfig)}
    assert make_config(get_model("gene-dml"), None, record) == PRESETS["skinst"]
