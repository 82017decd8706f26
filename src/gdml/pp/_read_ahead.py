"""Reading in the background, a bounded number of items ahead."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def read_ahead(items: Iterator[T], n: int) -> Generator[T, None, None]:
    """Run an iterator in one thread of its own, at most ``n`` items ahead of who takes them.

    Its errors are raised where the items are taken. Close it (``contextlib.closing``) when leaving early.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="gdml-read-ahead")
    try:
        waiting = deque(pool.submit(next, items, _END) for _ in range(n))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, items, _END))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)
