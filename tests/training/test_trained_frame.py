"""Saved models keep their frame; those of earlier formats have none."""

import json

import pytest
import torch

import gdml
from gdml.models.base import get_model, make_config
from gdml.training import TrainedModel
from gdml.training.config import make_training_config
from gdml.training.fabric import make_fabric
from gdml.training.frame import make_frame_config, make_module
from gdml.training.loop import predict, train

CPU = make_fabric("cpu", precision="fp32")


def trained(data, name, frame, **config):
    model = get_model(name)
    made = make_config(model, None, config)
    frame = make_frame_config(frame, "slide")
    loop = make_training_config(model.recipe, {"max_epochs": 1})
    make = lambda: make_module(model, made, data.shape(), frame)
    module, _ = train(make, data, torch.arange(len(data)), loop, CPU, seed=0)
    return TrainedModel(module, name, ("A", "B", "C", "D"), {}, {}, {})


def edit(folder, change):
    path = folder / "model.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.fixture
def data(make_data):
    made = make_data()
    made.depth = torch.arange(75.0) + 1
    return made


@pytest.mark.parametrize("name", ["ridge", "kernel", "stnet"])
@pytest.mark.parametrize("frame", ["slide", "raw", {"targets": "raw"}, {"components": "all", "weights": "equal"}])
def test_a_model_in_a_frame_predicts_the_same_after_a_save(data, make_data, tmp_path, name, frame):
    model = trained(data, name, frame, **({"n_landmarks": 16} if name == "kernel" else {}))
    model.save(tmp_path / "model")
    again, new = gdml.load(tmp_path / "model"), make_data(seed=4)
    assert torch.equal(predict(again.module, new, CPU)[0], predict(model.module, new, CPU)[0])
    assert (again.module.frame is None) == (frame == "raw")
    if frame != "raw":
        assert again.module.frame.config == make_frame_config(frame, "slide")


def test_a_model_of_the_format_before_frames_still_loads(data, tmp_path):
    model = trained(data, "ridge", "raw", inputs="local+neighbors", penalty="one")
    model.save(tmp_path / "model")

    def before(record):
        record["format_version"] = 2
        del record["frame"], record["config"]["penalty"]  # ridge regression had one penalty for all genes then

    edit(tmp_path / "model", before)
    again = gdml.load(tmp_path / "model")
    assert again.module.frame is None and again.module.config.penalty == "one"
    assert torch.equal(predict(again.module, data, CPU)[0], predict(model.module, data, CPU)[0])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda r: r["frame"].update(targets="slides"), "can't make .*`targets` is 'slides'. Did you mean 'slide'"),
        (lambda r: r["frame"].update(level=3), "can't make"),
        (lambda r: r.update(frame="slide"), "model.json lacks frame"),
        (lambda r: r.pop("frame"), "model.json lacks frame"),
        (lambda r: r["frame"].update(features="raw", targets="raw", components="all", weights="equal"), "don't fit"),
    ],
)
def test_a_frame_that_was_changed_is_refused(data, tmp_path, change, match):
    trained(data, "ridge", "slide").save(tmp_path / "model")
    edit(tmp_path / "model", change)
    with pytest.raises(ValueError, match=match):
        gdml.load(tmp_path / "model")
