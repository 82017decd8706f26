"""The store alone: features of 256 tiles, as wide as those of a ResNet-18."""

import shutil
from pathlib import Path

import numpy as np

from gdml.features import FeatureSpec, open_path, open_store

from ._slide import scratch

N, DIM = 256, 512


class Store:
    """Appending to a store and reading from it."""

    params = ["grid7", "pooled"]
    param_names = ("tokens",)
    number, repeat, warmup_time = 1, 10, 0

    def setup(self, tokens: str) -> None:
        """Make features, and a store that holds them."""
        rng = np.random.default_rng(0)
        self.folder = scratch()
        self.n_tokens = 50 if tokens == "grid7" else 1
        self.spec = FeatureSpec("image", "encoder", 0.5, 224.0, 224, tokens)
        self.xy = rng.uniform(0, 10_000, (N, 2))
        self.pooled = rng.normal(size=(N, DIM)).astype(np.float16)
        self.tokens = rng.normal(size=(N, 50, DIM)).astype(np.float16) if tokens == "grid7" else None
        self.full = self._filled("full")
        self.empty = Path(self.folder.name) / "empty"

    def teardown(self, tokens: str) -> None:
        """Remove the stores."""
        self.folder.cleanup()

    def time_append(self, tokens: str) -> None:
        """Time of writing all tiles to a new store, safe on disk."""
        shutil.rmtree(self.empty, ignore_errors=True)
        self._filled("empty")

    def time_open(self, tokens: str) -> None:
        """Time of opening a store and learning what it holds."""
        open_path(self.full.path)

    def time_read_tokens(self, tokens: str) -> None:
        """Time of reading and checking all tiles."""
        self.full.read_tokens(self.xy)

    def time_read_pooled(self, tokens: str) -> None:
        """Time of the pooled embeddings of all tiles."""
        self.full.read_pooled(self.xy)

    def track_bytes_per_tile(self, tokens: str) -> float:
        """Bytes on disk, over tiles."""
        return sum(file.stat().st_size for file in self.full.path.rglob("*") if file.is_file()) / N

    track_bytes_per_tile.unit = "bytes"

    def _filled(self, name: str):
        folder = Path(self.folder.name) / name
        folder.mkdir()
        store = open_store(folder, self.spec, n_tokens=self.n_tokens, dim=DIM)
        store.append(self.xy, self.tokens, self.pooled)
        return store
