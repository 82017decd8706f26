import os
import time

import pytest

import gdml
from gdml._cache import shown
from gdml._marker import mark


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(gdml.settings, "cache_dir", folder)
    return folder


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


@pytest.fixture
def filled(cache):
    """A cache with two marked folders of features, a model, a run and a data set."""
    for name in ("stain-1", "box-1 bf16"):
        mark(write(cache / "features" / name, data="12345"), "features", encoder=name, image="img")
    mark(write(cache / "models" / "a", model__json="{}"), "models", name="ridge-1")
    mark(write(cache / "runs" / "0a1b", run__json="{}"), "runs", name="triplex")
    mark(write(cache / "synthetic" / "abc", S1__jpg="picture", own__txt="own"), "synthetic", files=["S1.jpg"])
    return cache


# folders of other programs that have the file names of gdml's, and of gdml 0.2, which had no marker
FOREIGN = {
    "features/old/zarr.json": "{}",
    "features/old/store.json": "{}",
    "models/mine/model.json": "{}",
    "models/mine/weights.safetensors": "12345",
    "runs/mine/run.json": '{"about": {"model": "triplex"}}',
    "her2st/ST-cnts/A1.tsv.gz": "counts",
    "synthetic/mine/S1.jpg": "picture",
    "mine/gdml.json": '{"other": "program"}',
    "broken/gdml.json": "{",
    "list/gdml.json": "[]",
    "mine.txt": "mine",
}


def test_folders_without_a_marker_survive(cache, filled):
    for name, content in FOREIGN.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text(content)
    assert sorted(gdml.settings.list_cache()["name"]) == ["abc", "box-1 bf16", "ridge-1", "stain-1", "triplex"]
    for kind in (None, "features", "models", "runs", "her2st", "synthetic"):
        gdml.settings.clear_cache(kind)
    assert gdml.settings.list_cache().empty
    left = {p.relative_to(cache).as_posix(): p.read_text() for p in cache.rglob("*") if p.is_file()}
    assert left == {**FOREIGN, "synthetic/abc/own.txt": "own"}


def test_an_empty_cache(cache):
    assert gdml.settings.list_cache().empty and gdml.settings.clear_cache().empty
    cache.rmdir()
    assert gdml.settings.list_cache().empty


def test_what_is_listed(filled):
    found = gdml.settings.list_cache()
    assert found["kind"].tolist() == ["features", "features", "models", "runs", "synthetic"]
    found = found.set_index("name")
    assert list(found.index) == ["box-1 bf16", "stain-1", "ridge-1", "triplex", "abc"]
    assert found.loc["stain-1", ["encoder", "image"]].tolist() == ["stain-1", "img"]
    marker = (filled / "features" / "stain-1" / "gdml.json").stat().st_size
    assert found.loc["stain-1", "bytes"] == marker + 5 and found.loc["stain-1", "size"] == f"{marker + 5} B"


def test_models_and_runs_are_cleared_by_name_only(filled):
    assert gdml.settings.clear_cache()["kind"].tolist() == ["features", "features", "synthetic"]
    assert gdml.settings.list_cache()["kind"].tolist() == ["models", "runs"]
    gdml.settings.clear_cache("models")
    gdml.settings.clear_cache("runs")
    assert gdml.settings.list_cache().empty
    assert [p.name for p in filled.rglob("*") if p.is_file()] == ["own.txt"]


def test_part_of_the_features_is_cleared(filled):
    removed = gdml.settings.clear_cache(encoder="box")
    assert removed["path"].tolist() == [str(filled / "features" / "box-1 bf16")]
    assert (filled / "features" / "stain-1").is_dir() and not (filled / "features" / "box-1 bf16").exists()
    long_ago = time.time() - 40 * 24 * 3600
    for path in (filled / "features" / "stain-1").iterdir():
        os.utime(path, (long_ago, long_ago))
    assert gdml.settings.clear_cache("features", older_than_days=41).empty
    assert gdml.settings.clear_cache("features", older_than_days=39)["name"].tolist() == ["stain-1"]


def test_links_are_not_followed(filled, tmp_path):
    mark(write(tmp_path / "elsewhere", data="1"), "features")
    (filled / "features" / "link").symlink_to(tmp_path / "elsewhere")
    (filled / "linked").symlink_to(tmp_path)  # its folders are not the cache's
    size = gdml.settings.list_cache()["bytes"].sum()
    (filled / "features" / "stain-1" / "link").symlink_to(tmp_path / "elsewhere")
    (filled / "features" / "stain-1" / "file").symlink_to(tmp_path / "elsewhere" / "data")
    (filled / "features" / "stain-1" / "dangling").symlink_to("nowhere")
    assert gdml.settings.list_cache()["bytes"].sum() == size
    gdml.settings.clear_cache()
    assert (tmp_path / "elsewhere" / "data").read_text() == "1"
    assert not (filled / "features" / "stain-1").exists()


def test_a_marker_names_no_file_outside_its_folder(cache, tmp_path):
    outside = [write(folder, data="1") / "data" for folder in (tmp_path, cache)]
    folder = write(cache / "her2st", A1="1")
    (folder / "link").symlink_to(tmp_path)
    mark(folder, "her2st", files=["A1", "../data", "../../data", "./../data", "link/data", *map(str, outside)])
    gdml.settings.clear_cache("her2st")
    assert all(file.exists() for file in outside) and not (folder / "A1").exists()


def test_an_interrupted_removal_is_finished_by_the_next(filled, monkeypatch):
    def stopped(path):
        raise KeyboardInterrupt

    (filled / "features" / "stain-1" / "units").mkdir()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shutil.rmtree", stopped)
        gdml.settings.clear_cache(encoder="stain")
    assert not (filled / "features" / "stain-1").exists()
    assert "features" in gdml.settings.clear_cache(encoder="stain")["kind"].tolist()
    assert [p.name for p in (filled / "features").iterdir()] == ["box-1 bf16"]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"kind": "feature"}, ValueError, "`kind`.*Did you mean 'features'"),
        ({"kind": "models", "encoder": "stain"}, ValueError, "`encoder` selects features"),
        ({"older_than_days": float("nan")}, ValueError, "`older_than_days`"),
        ({"older_than_days": "90"}, TypeError, "`older_than_days` must be a number, found '90'"),
    ],
)
def test_bad_arguments(filled, kwargs, error, message):
    n = len(gdml.settings.list_cache())
    with pytest.raises(error, match=message):
        gdml.settings.clear_cache(**kwargs)
    assert len(gdml.settings.list_cache()) == n


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e9, "2.0 GB"), (3e13, "30.0 TB")]
)
def test_sizes_as_text(n, text):
    assert shown(n) == text
