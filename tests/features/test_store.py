import os
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from gdml._marker import marked
from gdml.features import FeatureBank, FeatureSpec, open_path, open_store, read_head, store_path

SPEC = FeatureSpec("abc", "stain-1", 0.5, 224.0, 224, "grid7")
POOLED = replace(SPEC, tokens="pooled")
T, D = 4, 6


def features(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, T, D)), rng.normal(size=(n, D))


def points(n: int, first: int = 0) -> np.ndarray:
    i = np.arange(first, first + n)
    return np.stack([i * 1.25, -i / 3], 1)


def read(store, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bank = FeatureBank(store.path)
    rows = bank.rows(xy)
    return bank.tokens(rows), bank.pooled(rows)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_key():
    assert SPEC.key() == replace(SPEC).key()
    assert SPEC.key() == replace(SPEC, um_per_px=0.6).key()  # reaches the pixels through side_px only
    changes = ({"image": "x"}, {"encoder": "x"}, {"side_px": 224.1}, {"tile_px": 256}, {"tokens": "all"})
    assert len({SPEC.key(), *(replace(SPEC, **change).key() for change in changes)}) == 6


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 140), min_size=1, max_size=4), st.randoms(use_true_random=False), st.booleans())
def test_what_is_appended_is_read_in_any_order(tmp_path_factory, sizes, random, reopen):
    folder = tmp_path_factory.mktemp("store")
    store = open_store(folder, SPEC, n_tokens=T, dim=D)
    n = sum(sizes)
    xy, parts = points(n), features(n)
    order = list(range(n))
    random.shuffle(order)
    first = 0
    for size in sizes:
        rows = order[first : first + size] + order[: first // 2]  # some of them again
        store.append(xy[rows], *(p[rows] for p in parts))
        first += size
        if reopen:
            store = open_store(folder, SPEC, n_tokens=T, dim=D)
    assert len(store) == n and not store.missing(xy, verify=True).any()
    assert store.missing(points(3, n)).all()
    rows = np.array([random.randrange(n) for _ in range(10)] if n else [], int)
    for got, want in zip(read(store, xy[rows]), parts, strict=True):
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, want[rows].astype(np.float16))


def test_anyone_can_open_it(tmp_path):
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    parts = features(70)
    store.append(points(70), *parts)
    group = zarr.open_group(store.path, mode="r")
    for name, want in zip(("tokens", "pooled"), parts, strict=True):
        assert group[name].shape == want.shape and group[name].dtype == np.float16
        np.testing.assert_array_equal(group[name][:], want.astype(np.float16))
        assert {codec["name"] for codec in group[name].metadata.to_dict()["codecs"]} == {"sharding_indexed"}
    assert group["tokens"].chunks == (1, T, D)  # one tile is read by its byte range
    np.testing.assert_array_equal(group["xy"][:], points(70))
    assert group.attrs["key"] == SPEC.key()
    marker = marked(store.path)
    assert (marker["gdml"], marker["encoder"], marker["image"], marker["side_px"]) == (
        "features",
        "stain-1",
        "abc",
        "224.0",
    )


def test_pooled_alone(tmp_path):
    store = open_store(tmp_path, POOLED, n_tokens=1, dim=D)
    _, pooled = features(300)
    store.append(points(300), None, pooled)
    assert store.unit == 256 and not (store.path / "tokens").exists()
    np.testing.assert_array_equal(read(store, points(300))[0][:, 0], pooled.astype(np.float16))


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
    assert FeatureBank(store.path).rows(points(4, 1))[2:].tolist() == [-1, -1]


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
    with pytest.raises(ValueError, match="other features .n_tokens 4, expected 5"):
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
    head = path / "zarr.json"
    head.write_text(head.read_text().replace('"format": 3', '"format": 4'))
    for opened in (lambda: open_path(path), lambda: open_store(tmp_path, SPEC, n_tokens=T, dim=D)):
        with pytest.raises(ValueError, match=r"format 4, this version of gdml reads format 3; call gdml.pp.embed"):
            opened()


@pytest.mark.parametrize(
    ("version", "file", "content"), [(1, "zarr.json", '{"attributes": {}}'), (2, "store.json", "{}")]
)
def test_stores_of_earlier_versions(tmp_path, version, file, content):
    (tmp_path / file).write_text(content)
    for opened in (open_path, FeatureBank):
        with pytest.raises(ValueError, match=rf"format {version}.*call gdml.pp.embed\(adata\) again.*clear_cache"):
            opened(tmp_path)


def damaged(path: Path, how: str, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7 if how == "index" else 7] ^= 16
    if how == "absent":
        path.unlink()
    else:
        cut = bytes(content[:-100])
        path.write_bytes({"cut": cut, "emptied": b"", "swapped": other.read_bytes()}.get(how, content))


@pytest.mark.parametrize("how", ["flipped", "index", "cut", "emptied", "absent", "swapped"])
@pytest.mark.parametrize("name", ["tokens/c.1.0.0", "tokens/c.3.0.0", "pooled/c.0.0", "xy/c.0.0"])
def test_damage_is_found_and_mended_to_the_same_bytes(tmp_path, name, how):
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    parts = features(200)
    store.append(points(200), *parts)
    before = contents(tmp_path)
    damaged(store.path / name, how, store.path / ("xy/c.0.0" if name[0] != "x" else "pooled/c.0.0"))
    store = open_path(store.path)
    if name[0] == "x":
        assert (FeatureBank(store.path).rows(points(200)) < 0).all()
    else:
        with pytest.raises(ValueError, match=r"feature store .* is damaged.*call gdml.pp.embed"):
            read(store, points(200))
    if how == "absent" and name[0] == "x":
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a writer that was killed leaves the same: rows before their centres
            missing = store.missing(points(200), verify=True)
    else:
        with pytest.warns(UserWarning, match="feature store .* was damaged: 1 file removed"):
            missing = store.missing(points(200), verify=True)
    assert missing.sum() == {"tokens/c.1.0.0": 64, "tokens/c.3.0.0": 200 % 64}.get(name, 200)
    assert len(store) == 200 - missing.sum()
    store.append(points(200)[missing], *(p[missing] for p in parts))
    assert contents(tmp_path) == before and not store.missing(points(200), verify=True).any()


_WRITE = """
import sys
import numpy as np
from gdml.features import FeatureSpec, open_store
store = open_store(sys.argv[1], FeatureSpec("abc", "stain-1", 0.5, 224.0, 224, "grid7"), n_tokens=4, dim=6)
i = np.arange(64 * 60 + 5)
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
            open_path(path).missing(points(64 * 60 + 5), verify=True)  # a warning would be an error
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
    (store.path / "tokens" / "c.0.0.0.unfinished").write_bytes(b"half")
    assert len(open_store(tmp_path, SPEC, n_tokens=T, dim=D)) == 3
    assert contents(tmp_path) == before


def test_head(tmp_path):
    path = open_store(tmp_path, SPEC, n_tokens=T, dim=D).path
    head = read_head(path)
    assert head["spec"]["encoder"] == "stain-1" and (head["n_tokens"], head["dim"]) == (T, D)


def test_a_power_cut_leaves_no_unit_without_its_features(tmp_path, monkeypatch):
    """Every file is fsynced before it takes its place, and the centres come last: they say which rows hold a tile."""
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    done, synced = [], set()
    fsync, replace_ = os.fsync, Path.replace

    def note_fsync(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def note_replace(path, target):
        done.append((str(Path(target).relative_to(store.path)), str(path) in synced))
        synced.discard(str(path))
        return replace_(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    store.append(points(70), *features(70))
    assert all(was_synced for _, was_synced in done)
    names = [name for name, _ in done]
    assert names[-1] == "xy/c.0.0" and names.count("xy/c.0.0") == 2
    first = names.index("xy/c.0.0")
    assert set(names[:first]) == {
        "tokens/c.0.0.0",
        "pooled/c.0.0",
        *(f"{a}/zarr.json" for a in ("tokens", "pooled", "xy")),
    }
    assert "tokens/c.1.0.0" in names[first:]


@pytest.mark.parametrize("stop", range(6))
def test_an_append_that_stops_at_any_file_is_taken_up(tmp_path, monkeypatch, stop):
    undisturbed = open_store(tmp_path / "undisturbed", SPEC, n_tokens=T, dim=D)
    store = open_store(tmp_path / "disturbed", SPEC, n_tokens=T, dim=D)
    parts = features(100)
    for whole in (undisturbed, store):
        whole.append(points(64), *(p[:64] for p in parts))
    count, replace_ = iter(range(100)), Path.replace

    def stopping(path, target):
        if next(count) >= stop:
            raise OSError("power cut")
        return replace_(path, target)

    rest = [p[64:] for p in parts]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stopping)
        with pytest.raises(OSError, match="power cut"):
            store.append(points(36, 64), *rest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = open_store(tmp_path / "disturbed", SPEC, n_tokens=T, dim=D)
        assert len(store) == 64 and store.missing(points(100), verify=True).sum() == 36
    np.testing.assert_array_equal(read(store, points(64))[0], parts[0][:64].astype(np.float16))
    for whole in (undisturbed, store):
        whole.append(points(36, 64), *rest)
    assert contents(store.path) == contents(undisturbed.path)


@pytest.mark.parametrize("name", ["pooled/c.0.0", "tokens/c.1.0.0"])
def test_a_tile_keeps_its_row_when_it_is_mended_in_another_order(tmp_path, name):
    """Also where the second call is stopped midway: a bank that was opened before must not read other tiles."""
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    parts = features(200)
    store.append(points(200), *parts)
    before, rows = contents(tmp_path), FeatureBank(store.path).rows(points(200))
    damaged(store.path / name, "flipped", store.path / "zarr.json")
    for half in (True, False):
        store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            todo = np.flatnonzero(store.missing(points(200), verify=True))[::-1]
        todo = todo[: len(todo) // 2] if half else todo
        store.append(points(200)[todo], *(p[todo] for p in parts))
        np.testing.assert_array_equal(FeatureBank(store.path).rows(points(200)), rows)
        if half:
            with pytest.raises(ValueError, match="is damaged"):
                read(store, points(200))
    assert contents(tmp_path) == before


def test_the_store_is_removed_or_made_anew_while_another_writes(tmp_path):
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    store.append(points(70), *features(70))
    shutil.rmtree(store.path)
    with pytest.raises(FileNotFoundError, match=r"removed while it was written to.*call gdml.pp.embed"):
        store.append(points(3, 70), *features(3))
    assert not store.path.exists()
    other = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    other.append(points(5), *features(5))
    store.append(points(3, 70), *features(3))
    assert len(store) == 8 and not store.missing(points(3, 70)).any() and store.missing(points(65, 5)).all()
