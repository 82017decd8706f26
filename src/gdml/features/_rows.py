"""Rows of a sharded zarr array on disk, read through memory maps."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

_MAPS = 256  # shards that a process keeps open: each holds a file descriptor
_ABSENT = np.iinfo(np.uint64).max  # offset of a chunk that a shard does not have


class DamagedShardError(Exception):
    """A shard is absent, or its content does not match its checksums."""


class Rows:
    """Rows of one array of a feature store.

    The chunks of a shard are uncompressed and lie one after another, each followed by its checksum, so that every
    row has a known offset. A shard is checked against its checksums when it is first opened.

    Parameters
    ----------
    path
        Folder of the array.

    Notes
    -----
    ``shape`` is that of the array, ``per_shard`` the number of rows in a shard. Pickling keeps the path, not the maps.
    """

    def __init__(self, path: Path) -> None:
        meta = json.loads((path / "zarr.json").read_text())
        self.path = path
        self.shape = tuple(meta["shape"])
        self.dtype = np.dtype(meta["data_type"]).newbyteorder("<")
        self.per_shard = int(meta["chunk_grid"]["configuration"]["chunk_shape"][0])
        self.per_chunk = int(meta["codecs"][0]["configuration"]["chunk_shape"][0])
        self.checked: set[int] = set()

    def shard_path(self, shard: int) -> Path:
        """File of a shard."""
        return self.path / ".".join(["c", str(shard), *"0" * (len(self.shape) - 1)])

    def by_shard(self, rows: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Each shard of ``rows`` with the places in ``rows`` that it serves."""
        shards = rows // self.per_shard
        order = np.argsort(shards, kind="stable")
        for at in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
            if len(at):
                yield int(shards[at[0]]), at

    def take(self, rows: NDArray[np.integer]) -> NDArray:
        """Read rows (n,) in the order given; raises :class:`DamagedShardError`."""
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for shard, at in self.by_shard(rows):
            chunks = _opened(self, shard)
            chunk, local = np.divmod(rows[at] - shard * self.per_shard, self.per_chunk)
            if chunk.max() >= len(chunks):
                raise DamagedShardError(self.shard_path(shard).name)
            if self.per_chunk > 1:
                out[at] = chunks[chunk, local]
            else:  # large rows: copied once, not twice
                for place, row in zip(at.tolist(), chunk.tolist(), strict=True):
                    out[place] = chunks[row, 0]
        return out

    def damaged(self, rows: NDArray[np.integer]) -> list[int]:
        """Shards of ``rows`` from which these cannot be read; every checksum is compared again."""
        return [
            shard for shard, at in self.by_shard(rows) if not self._has(shard, int(rows[at].max()) % self.per_shard)
        ]

    def _has(self, shard: int, row: int) -> bool:
        try:
            chunks = self.map(shard, check=True)
        except DamagedShardError:
            return False
        return row < len(chunks) * self.per_chunk

    def map(self, shard: int, *, check: bool) -> NDArray:
        """Memory map of the chunks of a shard, (chunks, rows of a chunk, ...)."""
        path = self.shard_path(shard)
        try:
            content = np.memmap(path, np.uint8, "r").view(np.ndarray)
        except (OSError, ValueError) as error:  # absent or empty
            raise DamagedShardError(path.name) from error
        chunk = np.dtype([("rows", self.dtype, (self.per_chunk, *self.shape[1:])), ("checksum", "<u4")])
        at = len(content) - 16 * (self.per_shard // self.per_chunk) - 4  # of the index, which zarr writes last
        if at < 0 or not _matches(content[at:]):
            raise DamagedShardError(path.name)
        index = content[at:-4].view("<u8").reshape(-1, 2)
        n = int((index[:, 0] != _ABSENT).sum())
        regular = np.stack([np.arange(n) * chunk.itemsize, np.full(n, chunk.itemsize)], 1)
        if at != n * chunk.itemsize or not np.array_equal(index[:n], regular):
            raise DamagedShardError(path.name)
        if check and not all(_matches(part) for part in content[:at].reshape(n, -1)):
            raise DamagedShardError(path.name)
        return content[:at].view(chunk)["rows"]


@lru_cache(_MAPS)
def _opened(rows: Rows, shard: int) -> NDArray:
    chunks = rows.map(shard, check=shard not in rows.checked)
    rows.checked.add(shard)
    return chunks


def _matches(content: NDArray[np.uint8]) -> bool:
    return google_crc32c.value(content[:-4]) == int(content[-4:].view("<u4")[0])
