"""Reading in the background, a bounded number of batches ahead."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_PIECE = 8  # items that a thread takes at a time: few, so that the first batch is ready soon


def read_ahead(
    read: Callable[[T, int, int], object], batches: Iterable[Sequence[T]], *, n_readers: int, n_rooms: int
) -> Generator[tuple[Sequence[T], int], None, None]:
    """Read batches in threads, ahead of whoever takes them.

    Parameters
    ----------
    read
        Called in the threads with an item, the room to read it into and its place in the batch.
    batches
        Items, in the order in which they are to be read.
    n_readers
        Threads. With one, items are read in order.
    n_rooms
        Rooms that batches are read into, in turn: the batch taken last keeps its own until the next is asked for.

    Yields
    ------
    A batch and its room, 0 to ``n_rooms`` - 1. Errors of ``read`` are raised here. Close the generator
    (``contextlib.closing``) when leaving early.
    """
    if n_rooms < 2:
        raise ValueError(f"Reading ahead needs at least two rooms, found {n_rooms}.")
    pool = ThreadPoolExecutor(n_readers, thread_name_prefix="gdml-read-ahead")
    waiting: deque[tuple[Sequence[T], int, list[Future[None]]]] = deque()

    def read_some(items: Sequence[T], room: int, first: int) -> None:
        for i, item in enumerate(items):
            read(item, room, first + i)

    try:
        for number, batch in enumerate(batches):
            room = number % n_rooms
            pieces = [
                pool.submit(read_some, batch[first : first + _PIECE], room, first)
                for first in range(0, len(batch), _PIECE)
            ]
            waiting.append((batch, room, pieces))
            if len(waiting) == n_rooms:  # the next batch needs the room that is handed out now
                yield _ready(waiting)
        while waiting:
            yield _ready(waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def _ready(waiting: deque[tuple[Sequence[T], int, list[Future[None]]]]) -> tuple[Sequence[T], int]:
    batch, room, pieces = waiting.popleft()
    for piece in pieces:
        piece.result()
    return batch, room
