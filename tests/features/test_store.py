import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdml.features import FeatureSpec, open_path, open_store, store_path

SPEC = FeatureSpec("abc", "stain-1", 0.5, 224.0, 224, 3, "grid7")
T, D = 4, 6


def features(n: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, T, D)), rng.normal(size=(n, D)), rng.normal(size=(n, 9, D))


def points(n: int, first: int = 0) -> np.ndarray:
    i = np.arange(first, first + n)
    return np.stack([i * 1.25, -i / 3], 1)


def test_key():
    assert SPEC.key() == replace(SPEC).key()
    assert SPEC.key() == replace(SPEC, um_per_px=0.6).key()  # reaches the pixels through side_px only
    for change in (
        {"image": "x"},
        {"encoder": "x"},
        {"side_px": 224.1},
        {"tile_px": 256},
        {"n_side": 5},
        {"tokens": "all"},
    ):
        assert replace(SPEC, **change).key() != SPEC.key()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=4), st.randoms(use_true_random=False), st.booleans())
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
    assert len(store) == n and not store.missing(xy).any()
    assert store.missing(points(3, n)).all()
    rows = np.array([random.randrange(n) for _ in range(10)] if n else [], int)
    found = store.read(xy[rows])
    for got, want in zip((found.tokens, found.pooled, found.neighbors), parts, strict=True):
        assert got.dtype == np.float16
        np.testing.assert_array_equal(got, want[rows].astype(np.float16))
    np.testing.assert_array_equal(store.read_pooled(xy[rows]), found.pooled)


def test_missing_rows(tmp_path):
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    store.append(points(3), *features(3))
    np.testing.assert_array_equal(store.missing(points(4, 1)), [False, False, True, True])
    np.testing.assert_array_equal(store.missing(points(3) + 1e-9), [True] * 3)
    with pytest.raises(KeyError, match="2 of 4 spots are not in the store"):
        store.read(points(4, 1))


def test_shapes_and_range(tmp_path):
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    tokens, pooled, neighbors = features(2)
    with pytest.raises(ValueError, match="`pooled` must have shape"):
        store.append(points(2), tokens, pooled[:1], neighbors)
    for bad in (7e4, np.nan, -np.inf):
        tokens[1, 2, 3] = bad
        with pytest.raises(ValueError, match="`tokens` has values that float16"):
            store.append(points(2), tokens, pooled, neighbors)
    assert len(store) == 0


def test_refuses_what_is_not_its_own(tmp_path):
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    with pytest.raises(ValueError, match="of another kind"):
        open_store(tmp_path, SPEC, n_tokens=T + 1, dim=D)
    other = replace(SPEC, image="def")
    store.path.rename(store_path(tmp_path, other))
    with pytest.raises(ValueError, match="of another kind"):
        open_store(tmp_path, other, n_tokens=T, dim=D)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_path(store.path)
    store.path.mkdir()
    with pytest.raises(ValueError, match="damaged"):
        open_path(store.path)


def test_interruption_before_the_coordinates_loses_only_that_chunk(tmp_path):
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    parts = features(70)
    store.append(points(70), *parts)
    for name in ("tokens", "pooled", "neighbors"):  # as if killed just before the coordinates were written
        array = store._array(name)
        array.resize((140, *array.shape[1:]))
        array[128:140] = 99
    store = open_store(tmp_path, SPEC, n_tokens=T, dim=D)
    assert len(store) == 70
    np.testing.assert_array_equal(store.read(points(70)).tokens, parts[0].astype(np.float16))
    more = features(5, seed=1)
    store.append(points(5, 70), *more)
    np.testing.assert_array_equal(store.read(points(5, 70)).neighbors, more[2].astype(np.float16))


_APPEND_FOR_EVER = """
import sys
import numpy as np
from gdml.features import open_path
store = open_path(sys.argv[1])
i = len(store)
while True:
    rows = np.arange(i, i + 7)
    tokens, pooled, neighbors = (np.empty((7, *shape)) for shape in ((4, 6), (6,), (9, 6)))
    for values in (tokens, pooled, neighbors):
        values[:] = (rows % 1000).reshape(-1, *[1] * (values.ndim - 1))
    store.append(np.stack([rows * 1.25, -rows / 3], 1), tokens, pooled, neighbors)
    i += 7
"""


def test_a_killed_writer_leaves_a_store_that_goes_on(tmp_path):
    path = open_store(tmp_path, SPEC, n_tokens=T, dim=D).path
    for _ in range(2):
        before, start = len(open_path(path)), time.monotonic()
        writer = subprocess.Popen([sys.executable, "-c", _APPEND_FOR_EVER, str(path)])
        try:
            while len(open_path(path)) < before + 30:
                assert writer.poll() is None and time.monotonic() - start < 60
                time.sleep(0.03)
        finally:
            writer.kill()
            writer.wait()
        store = open_path(path)
        n = len(store)
        found = store.read(points(n))
        assert (found.tokens == (np.arange(n) % 1000)[:, None, None]).all()
        assert (found.neighbors == (np.arange(n) % 1000)[:, None, None]).all()
