import os
import time

import numpy as np
import pytest

import gdml
from gdml._cache import shown
from gdml.features import FeatureSpec, open_store


def store(folder, encoder, n=10):
    made = open_store(folder / "features", FeatureSpec("img", encoder, 0.5, 224.0, 224, "pooled"), n_tokens=1, dim=4)
    made.append(np.arange(2.0 * n).reshape(n, 2), None, np.ones((n, 4)))
    return made.path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(gdml.settings, "cache_dir", tmp_path)
    return tmp_path


@pytest.fixture
def filled(cache):
    """Cache with something of each kind, and files that others put there."""
    paths = {name: store(cache, name) for name in ("stain-1", "box-1 bf16")}
    for name, content in {
        "features/old/zarr.json": "{}",
        "models/ridge-1/model.json": "{}",
        "runs/0a1b/run.json": '{"about": {"model": "triplex"}}',
        "runs/0a1b/prediction.safetensors": "123",
        "runs/2c3d/run.json": "{",
        "runs/mine/notes.txt": "mine",
        "models/ridge-1/weights.safetensors": "12345",
        "her2st/ST-cnts/A1.tsv.gz": "counts",
        "synthetic/abc/S1.jpg": "picture",
        "features/mine/notes.txt": "mine",
        "her2st/mine.txt": "mine",
        "synthetic/abc/mine.txt": "mine",
        "models/mine/weights.bin": "mine",
        "mine.txt": "mine",
    }.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text(content)
    return paths


def mine(cache):
    return {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file() and p.read_bytes() == b"mine"}


def test_an_empty_cache(cache):
    assert gdml.settings.list_cache().empty and gdml.settings.clear_cache().empty


def test_what_is_listed(cache, filled):
    found = gdml.settings.list_cache().set_index("name")
    assert sorted(found["kind"]) == [
        "features",
        "features",
        "features",
        "her2st",
        "models",
        "runs",
        "runs",
        "synthetic",
    ]
    row = found.loc[filled["stain-1"].name]
    assert (row["encoder"], row["image"], row["tiles"]) == ("stain-1", "img", 10)
    assert row["bytes"] == sum(p.stat().st_size for p in filled["stain-1"].rglob("*") if p.is_file()) and row["size"]
    assert found.loc["old", "encoder"] == "(written by gdml 0.1)"
    assert found.loc["ridge-1", "bytes"] == 7
    assert found.loc["triplex", "kind"] == found.loc["(damaged)", "kind"] == "runs"


def test_all_is_cleared_but_models_runs_and_what_others_put_there(cache, filled):
    before = mine(cache)
    removed = gdml.settings.clear_cache()
    assert len(removed) == 5 and removed["bytes"].sum() > 0
    assert gdml.settings.list_cache()["kind"].tolist() == ["models", "runs", "runs"]
    gdml.settings.clear_cache("models")
    gdml.settings.clear_cache("runs")
    assert gdml.settings.list_cache().empty
    assert mine(cache) == before and len(before) == 6


def test_some_is_cleared(cache, filled):
    removed = gdml.settings.clear_cache(encoder="box")
    assert removed["path"].tolist() == [str(filled["box-1 bf16"])]
    assert filled["stain-1"].is_dir() and not filled["box-1 bf16"].exists()
    long_ago = time.time() - 40 * 24 * 3600
    for path in filled["stain-1"].rglob("*"):
        os.utime(path, (long_ago, long_ago))
    assert gdml.settings.clear_cache("features", older_than_days=41).empty
    assert gdml.settings.clear_cache("features", older_than_days=39)["name"].tolist() == [filled["stain-1"].name]


def test_links_are_not_followed(cache, filled, tmp_path_factory):
    elsewhere = store(tmp_path_factory.mktemp("elsewhere"), "stain-1")
    (cache / "features" / "link").symlink_to(elsewhere)
    gdml.settings.clear_cache()
    assert (elsewhere / "store.json").is_file()


def test_a_store_that_is_cleared_while_it_is_written_to(cache):
    made = open_store(cache / "features", FeatureSpec("i", "e", 0.5, 2.0, 2, "pooled"), n_tokens=1, dim=4)
    gdml.settings.clear_cache()
    with pytest.raises(FileNotFoundError, match=r"removed.*call gdml.pp.embed"):
        made.append(np.zeros((1, 2)), None, np.ones((1, 4)))


def test_a_damaged_store_is_listed_and_removed(cache, filled):
    (filled["stain-1"] / "store.json").write_text("{")
    found = gdml.settings.list_cache().set_index("name")
    assert found.loc[filled["stain-1"].name, "encoder"] == "(damaged)"
    gdml.settings.clear_cache("features")
    assert not filled["stain-1"].exists()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kind": "feature"}, "`kind`.*Did you mean 'features'"),
        ({"kind": "models", "encoder": "stain"}, "`encoder` chooses among features"),
        ({"older_than_days": float("nan")}, "`older_than_days`"),
    ],
)
def test_bad_arguments(cache, filled, kwargs, message):
    n = len(gdml.settings.list_cache())
    with pytest.raises(ValueError, match=message):
        gdml.settings.clear_cache(**kwargs)
    assert len(gdml.settings.list_cache()) == n


@pytest.mark.parametrize(
    ("n", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e9, "2.0 GB"), (3e13, "30.0 TB")]
)
def test_sizes_for_reading(n, text):
    assert shown(n) == text
