import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdml.features import FeatureSpec, open_path, open_store, read_head, store_path

SPEC = FeatureSpec("abc", "stain-1", 0.5, 224.0, 224, "grid7")
POOLED = replace(SPEC, tokens="pooled")
T, D = 4, 6


def features(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, T, D)), rng.normal(size=(n, D))


def points(n: int, first: int = 0) -> np.ndarray:
    i = np.arange(first, first + n)
    return np.stack([i * 1.25, -i / 3], 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_key():
    assert SPEC.key() == replace(SPEC).key()
    assert SPEC.key() == replace(SPEC, um_per_px=0.6).key()  # reaches the pixels through side_px only
    changes = ({"image": "x"}, {"encoder": "x"}, {"side_px": 224.1}, {"tile_px": 256}, {"tokens": "all"}, {"view": 1})
    assert len({SPEC.key(), *(replace(SPEC, **change).key() for change in changes)}) == 7


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 140), min_size=1, max_size=4), st.randoms(use_true_random=False), st.booleans())
def test_what_is_appended_is_read_in_any_order(tmp_path_factory, sizes, random, reopen):
    folder = tmp_path_factory.mktemp("store")
    store = open_store(folder, SPEC, n_tokens=T, dim=D)
    n = sum(sizes)
    xy, parts = points(n), features(n)
    first = 0
    for size in sizes:
        rows = slice(first, first + size)
        store.append(xy[rows], *(p[rows] for p in parts))
        first += size
        if reopen:
            store = open_store(folder, SPEC, n_tokens=T, dim=D)
    assert len(store) == n and not store.missing(xy, verify=True).any()
    assert store.missing(points(3, n)).all()
    rows = np.array([random.randrange(n) for _ in range(10)] if n else [], int)
    for got, want in zip((store.read_tokens(xy[rows]), store.read_pooled(xy[rows])), parts, strict=True):
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, want[rows].astype(np.float16))


def test_pooled_alone(tmp_path):
    store = open_store(tmp_path, POOLED, n_tokens=1, dim=D)
    _, pooled = features(300)
    store.append(points(300), None, pooled)
    assert store.unit == 256 and len(list((store.path / "units").iterdir())) == 2
    np.testing.assert_array_equal(store.read_tokens(points(300))[:, 0], pooled.astype(np.float16))


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(-1e-9, 1e-9))
@settings(max_examples=50, deadline=None)
def test_a_tile_is_known_whatever_the_rounding(tmp_path_factory, x, y, noise):
    store = open_store(tmp_path_factory.mktemp("store"), POOLED, n_tokens=1, dim=D)
    x, y = round(x * 64) / 64, round(y * 64) / 64
    store.append(np.array([[x, y]]), None, np.ones((1, D)))
    assert not store.missing(np.array([[x + noise, y - noise]])).any()
    assert store.missing(np.array([[x + 1 / 32, y]])).all()


def test_missing_rows(tmp_path):
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    store.append(points(3), *features(3))
    np.testing.assert_array_equal(store.missing(points(4, 1)), [False, False, True, True])
    with pytest.raises(KeyError, match="2 of 4 tiles are not in the store"):
        store.read_tokens(points(4, 1))


def test_shapes_and_range(tmp_path):
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    tokens, pooled = features(2)
    with pytest.raises(ValueError, match="`pooled` must have shape"):
        store.append(points(2), tokens, pooled[:1])
    with pytest.raises(ValueError, match="`tokens` must have shape"):
        store.append(points(2), None, pooled)
    for bad in (7e4, np.nan, -np.inf):
        tokens[1, 2, 3] = bad
        with pytest.raises(ValueError, match="`tokens` has values that float16"):
            store.append(points(2), tokens, pooled)
    assert len(store) == 0


def test_refuses_what_is_not_its_own(tmp_path):
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    with pytest.raises(ValueError, match="another kind .n_tokens 4, expected 5"):
        open_store(tmp_path, SPEC, n_tokens=T + 1, dim=D)
    other = replace(SPEC, image="def", side_px=100.0)
    store.path.rename(store_path(tmp_path, other))
    with pytest.raises(ValueError, match=r"image 'abc', expected 'def'; side_px '224.0', expected '100.0'"):
        open_store(tmp_path, other, n_tokens=T, dim=D)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_path(store.path)
    store.path.mkdir()
    with pytest.raises(ValueError, match="damaged"):
        open_path(store.path)


def test_refuses_other_versions(tmp_path):
    path = open_store(tmp_path, SPEC, n_tokens=T, dim=D).path
    head = path / "store.json"
    head.write_text(head.read_text().replace('"format": 2', '"format": 3'))
    for opened in (lambda: open_path(path), lambda: open_store(tmp_path, SPEC, n_tokens=T, dim=D)):
        with pytest.raises(ValueError, match=r"format 3, this gdml reads 2; call gdml.pp.embed"):
            opened()
    (tmp_path / "old.zarr").mkdir()
    (tmp_path / "old.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(ValueError, match=r"gdml 0.1.*call gdml.pp.embed"):
        open_path(tmp_path / "old.zarr")


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied", "swapped"])
def test_damage_is_found_and_mended_to_the_same_bytes(tmp_path, how):
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    parts = features(200)
    store.append(points(200), *parts)
    before = contents(tmp_path)
    units = sorted((store.path / "units").iterdir())
    content = bytearray(units[1].read_bytes())
    content[-7] ^= 16
    units[1].write_bytes(
        {"flipped": content, "cut": content[:-100], "emptied": b"", "swapped": units[2].read_bytes()}[how]
    )
    store = open_path(store.path)
    with pytest.raises((ValueError, KeyError), match=r"damaged.*call gdml.pp.embed|are not in the store|Call gdml"):
        store.read_tokens(points(200))
    with pytest.warns(UserWarning, match="1 of 4 files in the feature store .* were damaged"):
        missing = store.missing(points(200), verify=True)
    assert missing.sum() in (64, 200 % 64)  # one unit, full or the last
    store.append(points(200)[missing], *(p[missing] for p in parts))
    assert contents(tmp_path) == before


_WRITE = """
import sys
import numpy as np
from gdml.features import FeatureSpec, open_store
store = open_store(sys.argv[1], FeatureSpec("abc", "stain-1", 0.5, 224.0, 224, "grid7"), n_tokens=4, dim=6)
i = np.arange(64 * 300 + 5)
xy = np.stack([i * 1.25, -i / 3], 1)
values = np.sin(i)
todo = np.flatnonzero(store.missing(xy))
print("ready", flush=True)
for first in range(0, len(todo), store.unit):
    rows = todo[first : first + store.unit]
    store.append(xy[rows], np.tile(values[rows, None, None], (1, 4, 6)), np.tile(values[rows, None], (1, 6)))
"""


def writer(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", _WRITE, str(folder)], stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert writer(folder).wait(120) == 0
    return contents(folder)


def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path, undisturbed):
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    survived = 0
    for _ in range(4):
        process = writer(tmp_path)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.3))
        survived += process.poll() is not None
        process.kill()
        process.wait()
        if (path := store_path(tmp_path, SPEC)).is_dir():
            open_path(path).missing(points(64 * 300 + 5), verify=True)  # a warning would be an error
    assert survived < 4  # else nothing was tested
    assert writer(tmp_path).wait(120) == 0
    assert contents(tmp_path) == undisturbed


def test_two_processes_on_one_slide(tmp_path, undisturbed):
    both = [writer(tmp_path) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert contents(tmp_path) == undisturbed


def test_what_a_killed_writer_leaves_is_removed(tmp_path):
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    store.append(points(3), *features(3))
    before = contents(tmp_path)
    (store.path / "units" / "abc-def.unfinished").write_bytes(b"half")
    assert len(open_store(tmp_path, SPEC, n_tokens=T, dim=D)) == 3
    assert contents(tmp_path) == before


def test_head(tmp_path):
    path = open_store(tmp_path, SPEC, n_tokens=T, dim=D).path
    head = read_head(path)
    assert head["spec"]["encoder"] == "stain-1" and (head["n_tokens"], head["dim"]) == (T, D)
