"""From the pixels of a slide to features in a store."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml.features import FeatureStore
from gdml.slides import Slide

from ._memory import batch_size, is_out_of_memory
from ._read_ahead import read_ahead
from ._tokens import Tokens, thin_tokens
from ._transfer import Pending, Transfer

if TYPE_CHECKING:
    import torch

    from gdml.encoders import Encoder

_BUFFERS = 3  # batches of tiles in memory: one is encoded while two are read
_MOST_READERS = 8


@dataclass
class Extractor:
    """An encoder, and how it is fed.

    Parameters
    ----------
    encoder
        On ``device`` already.
    tokens
        Token budget of the spots' own tiles.
    device
        Where the encoder runs.
    bf16
        Compute in bfloat16 where torch's autocast does.
    compiled
        The encoder was compiled, so that it rounds otherwise.
    batch_size
        Tiles encoded at once; halved where memory runs out. 0: what fits the free memory.
    """

    encoder: "Encoder"
    tokens: Tokens
    device: "torch.device"
    bf16: bool
    compiled: bool = False
    batch_size: int = 0
    _transfer: Transfer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.batch_size = self.batch_size or batch_size(self.device, self.encoder.tile_px)
        self._transfer = Transfer(self.device)

    @property
    def identity(self) -> str:
        """What the numbers depend on: the encoder, and what rounds them."""
        return self.encoder.identity + " bf16" * self.bf16 + " compiled" * self.compiled

    def n_tokens(self) -> int:
        """Tokens of a tile after thinning, found by encoding a white one."""
        white = self._transfer.buffer(1, self.encoder.tile_px).fill_(255)
        return self._encode(white, self.tokens)[0].get()[0].shape[1]

    def run(
        self,
        slide: Slide,
        store: FeatureStore,
        xy: NDArray[np.float64],
        side_px: float,
        *,
        progress: Callable[[int], object],
    ) -> None:
        """Encode tiles in the order given and append them to ``store``.

        Threads read ahead of the encoder, and one writes behind it. Batches do not cross the units
        of the store, so that a call that was interrupted and called again encodes the same batches.

        Parameters
        ----------
        slide, store
            Where the pixels come from and the features go.
        xy
            Centres of the tiles, full-resolution px, (n, 2).
        side_px
            Side of a tile, full-resolution px.
        progress
            Called with the number of tiles done since the last call.
        """
        budget = self.tokens if store.keeps_tokens else "pooled"
        px, at_once = self.encoder.tile_px, min(self.batch_size, store.unit)
        batches = [
            range(first, min(first + at_once, start + store.unit, len(xy)))
            for start in range(0, len(xy), store.unit)
            for first in range(start, min(start + store.unit, len(xy)), at_once)
        ]
        buffers = [self._transfer.buffer(at_once, px) for _ in range(min(_BUFFERS, len(batches)))]
        pixels = [buffer.numpy() for buffer in buffers]

        def read(row: int, buffer: int, place: int) -> None:
            corner = xy[row] - side_px / 2
            pixels[buffer][place] = slide.read_region(corner[0], corner[1], side_px, side_px, (px, px))

        behind: list[tuple[int, list[Pending]]] = []
        with ThreadPoolExecutor(1, thread_name_prefix="gdml-write") as writer:
            unit = _Unit(store, xy, writer)
            ahead = read_ahead(read, batches, n_readers=_readers(slide), n_buffers=_BUFFERS)
            try:
                with closing(ahead):
                    for batch, number in ahead:
                        behind.append((len(batch), self._encode(buffers[number][: len(batch)], budget)))
                        if len(behind) > 1:  # results are fetched one batch late, so that a GPU is never idle
                            unit.add(*behind.pop(0))
                        progress(len(batch))
            finally:  # what was encoded before an error is kept
                for rest in behind:
                    unit.add(*rest)
                unit.close()

    def _encode(self, tiles: "torch.Tensor", budget: Tokens) -> list[Pending]:
        """Features of a batch, in as many parts as memory needs."""
        parts, first = [], 0
        while first < len(tiles):
            n = self.batch_size
            try:
                parts.append(self._encode_at_once(tiles[first : first + n], budget))
            except (RuntimeError, MemoryError) as error:
                if n == 1 or not is_out_of_memory(error):
                    raise
                short = error
            else:
                first += n
                continue
            self._lower(min(n, len(tiles) - first), short)
        return parts

    def _encode_at_once(self, tiles: "torch.Tensor", budget: Tokens) -> Pending:
        import torch

        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            tokens, pooled = self.encoder.encode(self._transfer.to_device(tiles))
            if budget == "pooled":
                return self._transfer.to_host(pooled)
            thin = thin_tokens(tokens, pooled, budget, getattr(self.encoder, "n_prefix", None))
            return self._transfer.to_host(thin, pooled)

    def _lower(self, tried: int, error: BaseException) -> None:
        """Halve the batch size after ``tried`` tiles were too many."""
        self.batch_size = max(tried // 2, 1)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logg.warning(
            f"embed: memory ran out with {tried} tiles at once ({reason[:80]}); "
            f"continuing with {self.batch_size}. Pass batch_size={self.batch_size} to start with that."
        )
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()


class _Unit:
    """Features that wait until they fill a unit of the store, which a thread then writes."""

    def __init__(self, store: FeatureStore, xy: NDArray[np.float64], writer: ThreadPoolExecutor) -> None:
        self._store, self._xy, self._writer = store, xy, writer
        self._parts: list[tuple[NDArray, ...]] = []
        self._start = self._stop = 0
        self._writing: Future[None] | None = None

    def add(self, n: int, parts: list[Pending]) -> None:
        """Take the features of the next ``n`` tiles."""
        self._parts += [part.get() for part in parts]
        self._stop += n
        if self._stop - self._start < self._store.unit and self._stop < len(self._xy):
            return
        *tokens, pooled = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
        self.close()
        xy = self._xy[self._start : self._stop]
        self._writing = self._writer.submit(self._store.append, xy, tokens[0] if tokens else None, pooled)
        self._parts, self._start = [], self._stop

    def close(self) -> None:
        """Wait for what is being written, and raise what went wrong there."""
        if self._writing is not None:
            self._writing.result()


def _readers(slide: Slide) -> int:
    """Count the threads that may read: one where the slide wants its regions in order."""
    if getattr(slide, "in_order", True):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_READERS, cores // 2))
