from pathlib import Path

import pytest

import gdml
from gdml._settings import Settings


def test_an_unknown_setting_is_refused():
    with pytest.raises(AttributeError, match=r"no setting 'cach_dir'. Did you mean 'cache_dir'"):
        gdml.settings.cach_dir = "elsewhere"
    assert not hasattr(gdml.settings, "cach_dir")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cache_dir", None, "cache_dir must be a path, found None"),
        ("cache_dir", 3, "cache_dir must be a path, found 3"),
        ("cache_dir", "", "cache_dir must be a path, found ''"),
        ("max_layer_gb", "4", "max_layer_gb` must be a number, found '4'"),
        ("max_layer_gb", True, "max_layer_gb` must be a number, found True"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused(name, value, message):
    before = getattr(gdml.settings, name)
    with pytest.raises(TypeError, match=message):
        setattr(gdml.settings, name, value)
    assert getattr(gdml.settings, name) == before


def test_settings_take_what_is_valid(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings(cache_dir="~/cache", max_layer_gb=0)
    assert settings.cache_dir == tmp_path / "cache" and isinstance(settings.cache_dir, Path)
    settings.max_layer_gb = 2.5
    assert settings.max_layer_gb == 2.5
    with pytest.raises(ValueError, match="max_layer_gb` must be at least 0"):
        settings.max_layer_gb = -1


def test_the_environment_sets_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GDML_CACHE_DIR", str(tmp_path))
    assert Settings().cache_dir == tmp_path
    monkeypatch.delenv("GDML_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Settings().cache_dir == tmp_path / "gdml"
