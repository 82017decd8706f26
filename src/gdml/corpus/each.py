"""Call a function for each of many slides on the workers of a Dask cluster, without a folder of results."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .tasks import Tasks

if TYPE_CHECKING:
    from distributed import Client


def each(
    client: "Client", function: Callable[..., Any], calls: Mapping[str, tuple[Any, ...]]
) -> Iterator[tuple[str, Any]]:
    """Call a function on the workers, a bounded number of calls at once.

    Parameters
    ----------
    client
        A :class:`distributed.Client`.
    function
        A function of a module that the workers can import.
    calls
        Its arguments, by the name of each call.

    Yields
    ------
    Name, and result or exception, of each call as it is finished.

    Raises
    ------
    TypeError, ValueError
        If ``client`` is no client, or asynchronous.
    ConnectionError
        If the scheduler goes away.
    """
    tasks, waiting, n_done = Tasks(client, function), deque(calls.items()), 0
    try:
        while n_done < len(calls):
            while waiting and tasks.room > 0:
                name, arguments = waiting.popleft()
                tasks.submit(name, *arguments)
            for finished in tasks.finished():
                n_done += 1
                yield finished
    finally:
        tasks.cancel()
