import hashlib
import json
import os
import pickletools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gdml
from gdml.models.base import Shape, get_model, make_config
from gdml.training import TrainedModel
from gdml.training.data import Batches
from gdml.training.fabric import make_fabric
from gdml.training.loop import predict as predict_spots
from gdml.training.trained import weights_digest

CONFIG = {
    "width": 16,
    "branch_width": 0,
    "neighbor_heads": 2,
    "slide_heads": 2,
    "fusion_heads": 2,
    "projection": "shared",  # weights that several names share
    "n_groups": 3,
}


@pytest.fixture(params=["gene-dml", "ridge"])
def trained(request, make_data):
    return make(request.param, make_data())


@pytest.fixture
def saved(make_data, tmp_path):
    model = make("gene-dml", make_data())
    model.save(tmp_path / "model")
    return tmp_path / "model"


def make(name, data, seed=0):
    torch.manual_seed(seed)
    model = get_model(name)
    config = make_config(model, None, CONFIG if name == "gene-dml" else {})
    module = model(config, Shape(dim=8, n_tokens=3, n_side=3, n_genes=4))
    module.prepare(Batches(data, torch.arange(len(data)), 20, module.needs))
    return TrainedModel(
        module=module.eval(),
        name=name,
        panel=("A", "B", "C/D", "É"),
        normalization={"order": "all", "target_sum": 1e4, "log": "e", "smooth": False},
        features={"encoder": "stain", "identity": "stain 1", "tokens": "grid7", "n_tokens": 3, "dim": 8},
        tiles={"tile_um": None, "tile_px": 224, "n_side": 3},
        high_genes=("B", "A"),
        training={"seed": 3, "versions": {"gdml": "0.1"}},
        history={"epoch": np.array([1.0, 2.0]), "val_pcc": np.array([np.nan, 0.5])},
    )


def predict(model, data):
    return predict_spots(model.module, data, make_fabric("cpu", precision="fp32"))


def edit(folder, change):
    """Change the JSON of a saved model."""
    path = folder / "model.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def listing(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_round_trip(trained, make_data, tmp_path):
    data = make_data(seed=4)
    trained.save(tmp_path / "deep" / "er" / "model")
    again = gdml.load(tmp_path / "deep" / "er" / "model")
    for a, b in zip(predict(trained, data), predict(again, data), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    for name in ("name", "panel", "normalization", "features", "tiles", "high_genes", "training", "path"):
        assert getattr(again, name) == getattr(trained, name)
    for name in trained.history:
        np.testing.assert_array_equal(again.history[name], trained.history[name])
    assert again.module.config == trained.module.config and again.module.shape == trained.module.shape
    assert not again.module.training
    assert weights_digest(again.module) == weights_digest(trained.module)
    assert again.path == str(tmp_path / "deep" / "er" / "model")


def test_a_model_knows_its_folder(make_data, tmp_path, monkeypatch):
    model = make("ridge", make_data())
    assert model.path is None
    monkeypatch.chdir(tmp_path)
    model.save("here")
    assert model.path == gdml.load("here").path == str(tmp_path / "here")


def test_shared_weights_stay_shared(saved):
    projections = gdml.load(saved).module.projections
    assert projections[0].weight is projections[1].weight
    names = load_file(saved / "model.safetensors")
    assert "projections.0.weight" in names and "projections.1.weight" not in names


def test_the_digest_tells_models_apart(make_data):
    one, same, other = (make("gene-dml", make_data(), seed=seed).module for seed in (0, 0, 1))
    assert weights_digest(one) == weights_digest(same) != weights_digest(other)


def test_the_file_holds_numbers_and_text_alone(saved):
    assert listing(saved) == ["gdml.json", "model.json", "model.safetensors"]
    for path in saved.iterdir():
        with pytest.raises(ValueError, match="unknown|at position"):
            list(pickletools.genops(path.read_bytes()))


def test_loading_runs_no_code_and_needs_no_anndata(saved):
    """A fresh interpreter in which unpickling is an error, and neither AnnData nor scanpy is loaded."""
    code = (
        "import pickle, sys\n"
        "import torch\n"
        "from gdml.models import list_models\n"
        "from gdml import load\n"
        "list_models()\n"
        "def refuse(*args, **kwargs): raise RuntimeError('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse\n"
        f"model = load({str(saved)!r})\n"
        "assert model.panel == ('A', 'B', 'C/D', 'É')\n"
        # matplotlib is loaded by lightning itself where torchmetrics is installed
        "print([m for m in ('anndata', 'scanpy', 'squidpy') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_loading_leaves_the_users_random_state(saved):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    gdml.load(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_it_says_what_it_is(saved):
    text = repr(gdml.load(saved))
    assert "gene-dml" in text and "4 genes" in text and "'stain'" in text and len(text) < 200


# what is there already


def test_overwriting_is_asked_for(make_data, saved):
    other = make("ridge", make_data())
    with pytest.raises(FileExistsError, match="holds a saved model; choose another folder or pass overwrite=True"):
        other.save(saved)
    assert gdml.load(saved).name == "gene-dml"
    other.save(saved, overwrite=True)
    assert gdml.load(saved).name == "ridge"
    files = ["gdml.json", "model.json", "model.safetensors"]
    assert listing(saved.parent) == ["model", *(f"model/{name}" for name in files)]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_model_is_never_overwritten(make_data, tmp_path, overwrite):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").write_text("years")
    (tmp_path / "file").write_text("text")
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match="`path` .* exists and is no saved model; choose another folder"):
            make("ridge", make_data()).save(tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "thesis" / "chapter1").read_text() == "years" and (tmp_path / "file").read_text() == "text"


class PowerCut(Exception):
    pass


def fail(*args, **kwargs):
    raise PowerCut


@pytest.mark.parametrize("step", ["write_bytes", "write_text", "chmod"])
@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_save_leaves_what_was_there(make_data, tmp_path, monkeypatch, step, existing):
    if existing:
        make("gene-dml", make_data()).save(tmp_path / "model")
    before = listing(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(Path, step, fail)
        make("ridge", make_data()).save(tmp_path / "model", overwrite=True)
    assert listing(tmp_path) == before
    if existing:
        assert gdml.load(tmp_path / "model").name == "gene-dml"


def test_a_failed_exchange_puts_the_old_model_back(make_data, saved, monkeypatch):
    calls, real = [], os.replace

    def second_fails(a, b):
        calls.append((a, b))
        if len(calls) == 2:
            raise PowerCut
        return real(a, b)

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(os, "replace", second_fails)
        make("ridge", make_data()).save(saved, overwrite=True)
    assert gdml.load(saved).name == "gene-dml" and listing(saved.parent)[0] == "model"
    assert len(listing(saved.parent)) == 4


# what can't be read


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` .*gone.* does not exist; model.save\(path\) writes one"):
        gdml.load(tmp_path / "gone")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_part_is_missing(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"is not a whole gdml model: {name} missing"):
        gdml.load(saved)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "slide.tif").write_bytes(b"II*\0")
    with pytest.raises(FileNotFoundError, match="not a whole gdml model: model.json and model.safetensors missing"):
        gdml.load(tmp_path / "slide.tif")


@pytest.mark.parametrize("keep", [0, 7, 100, 5000, -1])
def test_truncated_weights(saved, keep):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors.* is truncated or damaged \(its checksum differs\)"):
        gdml.load(saved)


def test_a_flipped_bit(saved):
    path = saved / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-10] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="truncated or damaged"):
        gdml.load(saved)


@pytest.mark.parametrize("keep", [0, 1, 50, -2])
def test_truncated_json(saved, keep):
    path = saved / "model.json"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.json is truncated or not JSON"):
        gdml.load(saved)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"gdml-model"', "{}", '{"format": "other"}'])
def test_not_ours(saved, text):
    (saved / "model.json").write_text(text)
    with pytest.raises(ValueError, match="is not a gdml model: model.json does not say so"):
        gdml.load(saved)


def test_json_that_is_no_text(saved):
    (saved / "model.json").write_bytes(b"\x80\x04\x95\xff")
    with pytest.raises(ValueError, match="truncated or not JSON"):
        gdml.load(saved)


def test_from_a_newer_version(saved):
    # what else such a file holds is not ours to know
    edit(saved, lambda r: r.update(format_version=99, training=["all", "new"], config=None))
    with pytest.raises(
        ValueError, match="written by a newer gdml .format 99, this one reads 3.: pip install --upgrade"
    ):
        gdml.load(saved)


@pytest.mark.parametrize(
    "name",
    [
        "format_version",
        "model",
        "config",
        "shape",
        "panel",
        "features",
        "tiles",
        "history",
        "slides",
        "provenance",
        "weights_sha256",
    ],
)
@pytest.mark.parametrize("how", ["absent", "of another kind"])
def test_an_incomplete_record(saved, name, how):
    edit(saved, lambda r: r.pop(name) if how == "absent" else r.update({name: 0.5}))
    with pytest.raises(ValueError, match=f"is not a whole gdml model: model.json lacks {name}"):
        gdml.load(saved)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda r: r.update(model="gene-dml-2"),
            "can't make .*'gene-dml-2', which is not known. Did you mean 'gene-dml'",
        ),
        (lambda r: r["config"].update(attention="flash"), "can't make .*no field 'attention'"),
        (lambda r: r["config"].update(group_target="hard"), "can't make .*`group_target` is 'hard'"),
        (lambda r: r["config"].update(width="16"), "can't make"),
        (lambda r: r["config"].update(width=-4), "can't make"),
        (lambda r: r["config"].update(slide_heads=3), "can't make .*`heads` must divide"),
        (lambda r: r["shape"].update(depth=2), "can't make"),
        (lambda r: r["shape"].pop("dim"), "can't make"),
        (lambda r: r["shape"].update(dim=-8), "can't make"),
        (lambda r: r["shape"].update(dim=10), "don't fit the 'gene-dml'"),
        (lambda r: r["config"].update(width=32), "don't fit the 'gene-dml'"),
        (lambda r: r["config"].update(slide_depth=9), "don't fit the 'gene-dml'"),
        (lambda r: r["panel"].append("X"), "names 5 panel genes for 4 outputs"),
    ],
)
def test_a_record_that_was_changed(saved, change, match):
    edit(saved, change)
    with pytest.raises(ValueError, match=match) as caught:
        gdml.load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("name", ["head.0.weight", "target_scale.mean"])
def test_other_weights_with_a_right_checksum(saved, name):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    for change in (lambda t: t | {name: torch.zeros(3, 3)}, lambda t: {k: v for k, v in t.items() if k != name}):
        save_file(change(dict(tensors)), path)
        edit(saved, lambda r: r.update(weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
        with pytest.raises(ValueError, match="The weights in .* don't fit the 'gene-dml'"):
            gdml.load(saved)


def test_history_that_is_not_finite_becomes_nan(make_data, tmp_path):
    """JSON has neither; a run that went astray must not be lost for it."""
    model = replace(make("ridge", make_data()), history={"loss": np.array([1.5, np.inf, np.nan])})
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(gdml.load(tmp_path / "model").history["loss"], [1.5, np.nan, np.nan])
