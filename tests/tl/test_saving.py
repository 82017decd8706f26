"""A model is never lost to a folder that cannot be written, and never replaces what it must not."""

import errno
import json

import pytest

import gdml
from gdml._marker import check_writable, marked
from gdml.training import TrainedModel


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr("gdml.training.fitting.fit_model", lambda *a, **k: pytest.fail("the model was trained"))
    monkeypatch.setattr("gdml.tl._fit.run_missing_steps", lambda *a, **k: pytest.fail("a step was run"))


@pytest.fixture
def a_file(tmp_path):
    (tmp_path / "file").write_text("text")
    return tmp_path / "file"


def test_save_to_is_probed_before_training(ready, a_file, no_training):
    with pytest.raises(OSError, match=r"Models cannot be written to '.*file'.*choose another folder with save_to="):
        gdml.tl.fit(ready, "ridge", save_to=a_file / "model")
    assert "fit" not in ready.uns["gdml"]


def test_the_cache_is_probed_before_training(ready, a_file, no_training, monkeypatch):
    monkeypatch.setattr(gdml.settings, "cache_dir", a_file)
    with pytest.raises(OSError, match=r"gdml\.settings\.cache_dir \(set by GDML_CACHE_DIR\)"):
        gdml.tl.fit(ready, "ridge")


def test_a_refused_permission_keeps_its_kind(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(PermissionError, match="Permission denied.*choose another folder with save_to="):
        check_writable(tmp_path / "model", "Models", "save_to=")


def test_a_probe_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "deep" / "model", "Models", "save_to=")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_model_is_refused_before_training(ready, tmp_path, no_training):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text('{"format": "gdml-model"}')
    with pytest.raises(FileExistsError, match="`save_to` .* holds a saved model; .* overwrite=True"):
        gdml.tl.fit(ready, "ridge", save_to=tmp_path / "model")


def test_an_existing_model_is_replaced_where_asked(ready, tmp_path):
    first = gdml.tl.fit(ready, "ridge", save_to=tmp_path / "model")
    second = gdml.tl.fit(ready, "ridge", config={"n_alphas": 5}, save_to=tmp_path / "model", overwrite=True)
    assert gdml.load(tmp_path / "model").provenance == second.provenance != first.provenance
    assert marked(tmp_path / "model") == {"gdml": "models", "name": "ridge", "provenance": second.provenance}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_model_of_others_is_never_replaced(ready, tmp_path, overwrite):
    theirs = tmp_path / "bert"
    theirs.mkdir()
    (theirs / "model.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    (theirs / "model.safetensors").write_bytes(b"years of work")
    with pytest.raises(FileExistsError, match="is no saved model"):
        gdml.tl.fit(ready, "ridge", save_to=theirs, overwrite=overwrite)
    with pytest.raises(FileExistsError, match="is no saved model"):
        gdml.tl.fit(ready, "ridge").save(theirs, overwrite=overwrite)
    assert (theirs / "model.safetensors").read_bytes() == b"years of work"


def test_a_full_disk_costs_the_file_and_not_the_model(ready, tmp_path, monkeypatch):
    def full(self, path, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(TrainedModel, "save", full)
        with pytest.warns(UserWarning, match=r"could not be saved .*No space left.*model\.save\(path\)"):
            model = gdml.tl.fit(ready, "ridge", save_to=tmp_path / "model")
    assert ready.uns["gdml"]["fit"]["model"] == "in memory" and model.path is None
    with pytest.raises(ValueError, match="could not be saved; pass the model"):
        gdml.tl.predict(ready)
    gdml.tl.predict(ready, model)
    ready.write_h5ad(tmp_path / "a.h5ad")
    model.save(tmp_path / "model")
    assert gdml.load(tmp_path / "model").provenance == model.provenance
