import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdml.features import FeatureBank, FeatureSpec, MemoryBank, TileBank, _rows, open_store
from gdml.features.tiles import TileIndex, distinct_tiles

SPEC = FeatureSpec("abc", "stain-1", 0.5, 224.0, 224, "grid7")
T, D = 3, 5


def filled(folder, n_own, n_others, seed=0):
    """A bank on disk, the same one in memory, and the tile centres."""
    rng = np.random.default_rng(seed)
    xy = distinct_tiles(rng.uniform(0, 1000, (n_own + n_others, 2)))
    tokens, pooled = (rng.normal(size=size).astype(np.float16) for size in ((n_own, T, D), (len(xy), D)))
    own = open_store(folder, SPEC, n_tokens=T, dim=D)
    others = open_store(folder, replace(SPEC, tokens="pooled"), n_tokens=1, dim=D)
    own.append(xy[:n_own], tokens, pooled[:n_own])
    others.append(xy[n_own:], None, pooled[n_own:])
    return FeatureBank(own.path, others.path), MemoryBank(tokens, pooled), xy, own


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 200), st.integers(0, 600), st.integers(0, 2**32 - 1))
def test_rows_are_read_as_from_memory(tmp_path_factory, n_own, n_others, seed):
    disk, memory, xy, _ = filled(tmp_path_factory.mktemp("bank"), n_own, n_others, seed)
    assert isinstance(disk, TileBank) and isinstance(memory, TileBank)
    assert (len(disk), disk.n_tokens, disk.dim) == (len(memory), memory.n_tokens, memory.dim)
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(xy), 2 * len(xy))
    np.testing.assert_array_equal(disk.rows(xy[rows]), rows)
    np.testing.assert_array_equal(disk.pooled(rows), memory.pooled(rows))
    own = rng.choice(n_own, n_own + 3)
    np.testing.assert_array_equal(disk.tokens(own), memory.tokens(own))
    assert disk.rows(np.array([[-5.0, 3.0]])).tolist() == [-1]
    assert disk.tokens(own[:0]).shape == (0, T, D) and disk.pooled(own[:0]).shape == (0, D)


def test_a_bank_keeps_its_rows_while_its_stores_grow(tmp_path):
    disk, memory, xy, own = filled(tmp_path, 70, 300)
    copy = pickle.dumps(disk)
    own.append(xy[:30] + 2000, np.ones((30, T, D)), np.ones((30, D)))
    rows = np.arange(len(xy))
    for bank in (disk, pickle.loads(copy)):
        assert len(bank) == len(memory)
        np.testing.assert_array_equal(bank.pooled(rows), memory.pooled(rows))
    assert len(FeatureBank(*disk.paths)) == len(memory) + 30


def test_rows_that_do_not_exist(tmp_path):
    disk, _, _, _ = filled(tmp_path, 70, 300)
    for rows in ([-1], [370]):
        with pytest.raises(IndexError, match="Rows"):
            disk.pooled(np.array(rows))
    with pytest.raises(IndexError, match="of 70"):
        disk.tokens(np.array([70]))


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    disk, memory, _, _ = filled(tmp_path, 64 * 5, 0)
    opened = []
    monkeypatch.setattr(_rows, "_opened", _rows.lru_cache(2)(_rows._opened.__wrapped__))
    whole = _rows.Rows.map
    monkeypatch.setattr(
        _rows.Rows, "map", lambda self, shard, check: opened.append(check) or whole(self, shard, check=check)
    )
    rows = np.arange(64 * 5)[::-1]
    for _ in range(2):
        np.testing.assert_array_equal(disk.tokens(rows), memory.tokens(rows))
    assert (
        len(opened) > 5 and opened.count(True) == 5
    )  # checksums are compared once, not whenever a file is opened again


@given(st.lists(st.integers(0, 3000), max_size=5))
@settings(max_examples=20, deadline=None)
def test_index_in_any_partition(sizes):
    """Few tiles wait in a dict and many are sorted: the rows are the same."""
    index, n = TileIndex(), 0
    xy = np.random.default_rng(0).permutation(
        np.stack(np.meshgrid(np.arange(200.0), np.arange(-40.0, 40.0)), -1).reshape(-1, 2)
    )
    for size in sizes:
        index.add(xy[n : n + size], np.arange(n, n + size))
        n += size
    rows = np.arange(len(xy))
    np.testing.assert_array_equal(index.rows(xy), np.where(rows < n, rows, -1))
