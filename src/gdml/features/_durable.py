"""Files of a zarr group that survive a power cut."""

import asyncio
import os
from pathlib import Path

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

UNFINISHED = ".unfinished"


class DurableStore(LocalStore):
    """zarr's store on the local file system, with an fsync of every file before it takes its place.

    :class:`zarr.storage.LocalStore` renames finished files into place but does not fsync them, so that after a power
    cut a file may be empty; and it creates missing folders, which would bring a store back that was removed.
    """

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file whole; raises FileNotFoundError where its folder does not exist."""
        await asyncio.to_thread(_write, self.root / key, value)


def _write(path: Path, value: Buffer) -> None:
    unfinished = path.with_name(path.name + UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(value.as_buffer_like())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
