"""Reading in the background, a bounded number of batches ahead."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_PIECE = 8  # items that a thread takes at a time; few, so that the first batch is soon complete


def read_ahead(
    read: Callable[[T, int, int], object], batches: Iterable[Sequence[T]], *, n_readers: int, n_buffers: int
) -> Generator[tuple[Sequence[T], int], None, None]:
    """Read batches in threads, ahead of their consumer.

    Parameters
    ----------
    read
        Called in the threads with an item, the number of the buffer to read it into, and its place in the batch.
    batches
        Items, in the order in which they are to be read.
    n_readers
        Threads. With one, items are read in order.
    n_buffers
        Buffers that batches are read into in turn; a batch keeps its own until the next one is asked for.

    Yields
    ------
    A batch and the number of its buffer, 0 to ``n_buffers`` - 1. Errors of ``read`` are raised here. Close the generator
    (``contextlib.closing``) when leaving early.
    """
    if n_buffers < 2:
        raise ValueError(f"Reading ahead needs at least two buffers, found {n_buffers}.")
    pool = ThreadPoolExecutor(n_readers, thread_name_prefix="gdml-read-ahead")
    waiting: deque[tuple[Sequence[T], int, list[Future[None]]]] = deque()

    def read_some(items: Sequence[T], buffer: int, first: int) -> None:
        for i, item in enumerate(items):
            read(item, buffer, first + i)

    try:
        for number, batch in enumerate(batches):
            buffer = number % n_buffers
            pieces = [
                pool.submit(read_some, batch[first : first + _PIECE], buffer, first)
                for first in range(0, len(batch), _PIECE)
            ]
            waiting.append((batch, buffer, pieces))
            if len(waiting) == n_buffers:  # the next batch needs the buffer that is yielded here
                yield _ready(waiting)
        while waiting:
            yield _ready(waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def _ready(waiting: deque[tuple[Sequence[T], int, list[Future[None]]]]) -> tuple[Sequence[T], int]:
    batch, buffer, pieces = waiting.popleft()
    for piece in pieces:
        piece.result()
    return batch, buffer
