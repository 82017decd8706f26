"""The feature store alone: appending to stores of three sizes, and reading rows as training does."""

import tempfile
from pathlib import Path

import numpy as np

from gdml.features import FeatureBank, FeatureSpec, FeatureStore, MemoryBank, open_path, open_store

from ._slide import scratch

DIM, TOKENS = 512, 50  # as wide as the features of a ResNet-18
SPOTS, NEIGHBORS = 128, 25  # of a batch


def spec(tokens: str) -> FeatureSpec:
    """Make the description of what the features depend on."""
    return FeatureSpec("image", "encoder", 0.5, 224.0, 224, tokens)


class Append:
    """Appending one unit, 64 tiles with tokens or 256 without, to a store of some size.

    The tiles that are stored already have one narrow token, since only their number matters; what is appended is as
    wide too, so that the time is that of finding the tiles, of the file system and of zarr.
    """

    params = (["grid7", "pooled"], [2**14, 2**16, 2**18])
    param_names = ("tokens", "tiles")
    number, repeat, warmup_time = 1, 10, 0
    timeout = 600

    def setup(self, tokens: str, tiles: int) -> None:
        """Fill a store."""
        self.folder = scratch()
        self.n, width = 0, 8
        self.store = open_store(self.folder.name, spec(tokens), n_tokens=1, dim=width)
        unit, self.store.unit = self.store.unit, 2**13
        self.keeps_tokens, self.features = tokens != "pooled", np.ones((tiles, 1, width), np.float16)
        self._append(tiles)
        self.store.unit = unit
        self.store = open_path(self.store.path)

    def teardown(self, tokens: str, tiles: int) -> None:
        """Remove the store."""
        self.folder.cleanup()

    def time_append(self, tokens: str, tiles: int) -> None:
        """Time of one unit, until it is safe on disk."""
        self._append(self.store.unit)

    def time_open(self, tokens: str, tiles: int) -> None:
        """Time of opening the store."""
        open_path(self.store.path)

    def _append(self, n: int) -> None:
        i = np.arange(self.n, self.n + n)
        xy = np.stack([i % 512 * 100.0, i // 512 * 100.0], 1)
        features = self.features[:n]
        self.store.append(xy, features if self.keeps_tokens else None, features[:, 0])
        self.n += n


class Read:
    """Batches of 128 random spots and their 25 neighbours, from disk and from memory."""

    params = ["disk", "memory"]
    param_names = ("bank",)
    number, repeat, warmup_time = 1, 30, 0

    def setup(self, bank: str) -> None:
        """Make the features of a slide of 2,000 spots, and read all of them once."""
        rng = np.random.default_rng(0)
        self.folder = scratch()
        n_own, n = 2000, 8000
        xy = rng.uniform(0, 100_000, (n, 2))
        tokens = rng.standard_normal((n_own, TOKENS, DIM), np.float32).astype(np.float16)
        pooled = rng.standard_normal((n, DIM), np.float32).astype(np.float16)
        own, others = (
            open_store(self.folder.name, spec(kind), n_tokens=n_tokens, dim=DIM)
            for kind, n_tokens in (("grid7", TOKENS), ("pooled", 1))
        )
        own.append(xy[:n_own], tokens, pooled[:n_own])
        others.append(xy[n_own:], None, pooled[n_own:])
        self.bank = MemoryBank(tokens, pooled) if bank == "memory" else FeatureBank(own.path, others.path)
        self.bank.tokens(np.arange(n_own))
        self.bank.pooled(np.arange(n))
        self.spots = rng.choice(n_own, SPOTS, replace=False)
        self.around = rng.choice(n, SPOTS * NEIGHBORS)

    def teardown(self, bank: str) -> None:
        """Remove the stores."""
        self.folder.cleanup()

    def time_tokens(self, bank: str) -> None:
        """Time of the tokens of 128 spots."""
        self.bank.tokens(self.spots)

    def time_neighbors(self, bank: str) -> None:
        """Time of the pooled embeddings of their 3,200 neighbours."""
        self.bank.pooled(self.around)


class Write:
    """Appending 256 tiles with all their tokens to a new store."""

    params = ["grid7", "pooled"]
    param_names = ("tokens",)
    number, repeat, warmup_time = 1, 5, 0

    def setup(self, tokens: str) -> None:
        """Make features."""
        rng = np.random.default_rng(0)
        self.folder = scratch()
        self.xy = rng.uniform(0, 10_000, (256, 2))
        self.pooled = rng.normal(size=(256, DIM)).astype(np.float16)
        self.tokens = rng.normal(size=(256, TOKENS, DIM)).astype(np.float16) if tokens == "grid7" else None

    def teardown(self, tokens: str) -> None:
        """Remove the stores."""
        self.folder.cleanup()

    def time_write(self, tokens: str) -> None:
        """Time until all tiles are safe on disk."""
        self._filled(tokens)

    def track_bytes_per_tile(self, tokens: str) -> float:
        """Bytes on disk, over tiles."""
        store = self._filled(tokens)
        return sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file()) / len(store)

    track_bytes_per_tile.unit = "bytes"

    def _filled(self, tokens: str) -> FeatureStore:
        folder = Path(tempfile.mkdtemp(dir=self.folder.name))
        store = open_store(folder, spec(tokens), n_tokens=TOKENS if self.tokens is not None else 1, dim=DIM)
        store.append(self.xy, self.tokens, self.pooled)
        return store
