"""Each check of ``gdml doctor``, with what it checks broken."""

import importlib
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import scanpy
import torch

import gdml
from gdml.cli import _machine, _test_slide, doctor, main
from gdml.cli.doctor import Check


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(gdml.settings, "cache_dir", tmp_path / "cache")


@pytest.fixture
def no_slide(monkeypatch):
    """Leave out the test slide, which takes long."""
    monkeypatch.setattr(_test_slide, "check", lambda: Check("ok", "a test slide passes"))


def found(start):
    (check,) = [check for check in doctor.examine() if check.what.startswith(start)]
    return check


def test_a_machine_in_order(capsys):
    cache_dir, verbosity = gdml.settings.cache_dir, scanpy.settings.verbosity
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok    a test slide passes: ") for line in lines)
    assert lines[0].startswith(f"ok    gdml {gdml.__version__}, Python 3.")
    assert any(
        line == f"ok    torch {torch.__version__.partition('+')[0]}" or line.startswith("ok    torch ")
        for line in lines
    )
    assert all(line[:6] in ("ok    ", "warn  ") for line in lines[:-1]) and lines[-1].startswith("0 failed, ")
    assert all("; mend: " in line for line in lines if line.startswith("warn"))
    # nothing of the slide is left behind
    assert (gdml.settings.cache_dir, scanpy.settings.verbosity) == (cache_dir, verbosity)
    assert not gdml.settings.cache_dir.exists() and gdml.settings.list_cache().empty


def test_a_cache_that_cannot_be_written_to(no_slide, monkeypatch, capsys):
    monkeypatch.setattr(gdml.settings, "cache_dir", Path("/proc/gdml"))
    check = found("the cache folder '/proc/gdml'")
    assert check.level == "fail" and "No such file or directory" in check.what
    assert check.mend == "set GDML_CACHE_DIR to a folder that you can write to"
    assert main(["doctor"]) == 1
    assert "1 failed" in capsys.readouterr().out


def test_size_of_the_cache(no_slide, synthetic_adata):
    assert ", 0 B in it" in found("cache folder").what
    gdml.pp.tile(synthetic_adata)
    gdml.pp.embed(synthetic_adata[:3].copy(), "stain", tokens="pooled")
    n_bytes = int(gdml.settings.list_cache()["bytes"].sum())
    assert f", {n_bytes / 1000:.1f} kB in it" in found("cache folder").what


def test_a_full_disk(no_slide, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - 10**9, 10**9))
    check = found("1.0 GB are free")
    assert check.level == "warn" and "gdml.settings.clear_cache()" in check.mend and "GDML_CACHE_DIR" in check.mend


@pytest.mark.parametrize(
    ("name", "extra"), [("squidpy", "spatial"), ("spatialdata", "spatial"), ("distributed", "cluster")]
)
def test_an_extra_that_is_not_installed(no_slide, monkeypatch, name, extra):
    monkeypatch.setattr(doctor, "import_module", without(name, ModuleNotFoundError(f"No module {name}", name=name)))
    check = found(f"{name} is not installed")
    assert check.level == "warn" and check.mend == f"pip install 'gdml[{extra}]'"


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'xyz'", name="xyz"), AttributeError("no xyz")])
def test_an_extra_that_does_not_fit(no_slide, monkeypatch, error):
    monkeypatch.setattr(doctor, "import_module", without("squidpy", error))
    check = found("squidpy cannot be imported")
    assert check.level == "warn" and "xyz" in check.what and check.mend.startswith("pip install 'gdml[spatial]'")


def without(package, error):
    def load(name):
        if name == package:
            raise error
        return importlib.import_module(name)

    return load


def test_a_native_library_that_does_not_load(monkeypatch):
    error = OSError("libvips.so.42: cannot open shared object file\nand more")
    monkeypatch.setattr(doctor, "import_module", without("pyvips", error))
    check = found("pyvips")
    assert check.level == "fail" and "libvips.so.42: cannot open shared object file)" in check.what
    assert check.mend == "pip install --force-reinstall 'pyvips[binary]'"
    # what needs it is not tried
    assert not [check for check in doctor.examine() if "test slide" in check.what or "encoder" in check.what]


def test_a_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    check = found("timm")
    assert check.level == "fail" and check.mend == "pip install --force-reinstall gdml"


def test_weights_of_encoders(no_slide, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--MahmoodLab--UNI"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    file = folder / "snapshots" / "abc" / "pytorch_model.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert found("encoder 'uni'") == Check("ok", f"encoder 'uni' has weights in {str(file)!r}")
    check = found("encoder 'uni2-h'")
    assert check.level == "warn" and "https://huggingface.co/MahmoodLab/UNI2-h" in check.mend
    assert "gdml.encoders.get_encoder('uni2-h')" in check.mend
    assert found("encoder 'stain'").level == "ok"
    assert not [check for check in doctor.examine() if "'box'" in check.what]  # its weights are a file of the user's


def test_a_token_is_told_and_not_shown(no_slide, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert found("a token of the Hugging Face hub is set").level == "ok"
    main(["doctor"])
    assert "hf_secret" not in capsys.readouterr().out
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    check = found("no token")
    assert check.level == "warn" and "HF_TOKEN" in check.mend


def test_a_gpu_that_does_not_compute(no_slide, monkeypatch):
    def broken(device):
        raise RuntimeError("CUDA error: no kernel image is available\nfor execution")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    check = found("cuda:0")
    assert check.level == "fail" and check.what == "cuda:0 does not compute (CUDA error: no kernel image is available)"
    assert "torch" in check.mend


def test_a_driver_without_a_device(no_slide, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert found("no GPU").level == "warn"
    (tmp_path / "version").touch()
    monkeypatch.setattr(_machine, "_NVIDIA", tmp_path / "version")
    check = found("the machine has an NVIDIA driver")
    assert check.level == "warn" and "--gres=gpu:1" in check.mend


def test_a_test_slide_whose_predictions_differ(monkeypatch):
    predict, rng = gdml.tl.predict, np.random.default_rng(0)

    def noisy(slide, model):
        result = predict(slide, model)
        if result is not None:
            result.obsm["gdml"] += rng.normal(size=result.obsm["gdml"].shape)
        return result

    monkeypatch.setattr(gdml.tl, "predict", noisy)
    check = _test_slide.check()
    assert check.level == "fail" and check.mend
    assert (
        check.what == "the test slide failed: compare two predictions of the slide: two predictions of one slide differ"
    )


def test_a_test_slide_on_a_full_disk(monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    cache_dir = gdml.settings.cache_dir
    monkeypatch.setattr(gdml.pp, "embed", full)
    check = _test_slide.check()
    assert check.level == "fail" and "encode the training slides: [Errno 28] No space left" in check.what
    assert "TMPDIR" in check.mend and gdml.settings.cache_dir == cache_dir


def test_a_model_that_learns_nothing(monkeypatch):
    monkeypatch.setattr(_test_slide, "_LEAST_PCC", 1.1)
    assert "check its predictions: the model did not learn its own slides: PCC 0." in _test_slide.check().what
