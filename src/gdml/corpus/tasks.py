"""Tasks on the workers of a Dask cluster, a bounded number at a time."""

import math
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from distributed import Client

_AHEAD = 2  # tasks in flight for each thread of a worker, so that none waits for the client
_WAIT_S = 1.0
_COUNT_S = 2.0  # between two counts of the workers


def check_client(client: Any) -> None:
    """Refuse what is no client, or one that cannot be waited for.

    Parameters
    ----------
    client
        What the user passed.

    Raises
    ------
    TypeError
        If it is no client.
    ValueError
        If it is asynchronous.
    """
    if not callable(getattr(client, "submit", None)) or not hasattr(client, "scheduler_info"):
        raise TypeError(
            f"`client` must be a dask.distributed.Client, found {type(client).__name__}; make one with "
            "dask.distributed.Client(address)."
        )
    if getattr(client, "asynchronous", False):
        raise ValueError("`client` is asynchronous; pass one made by Client(address) without asynchronous=True.")


class Tasks:
    """Tasks on the workers of a Dask client, of which a bounded number is in flight.

    Parameters
    ----------
    client
        A :class:`distributed.Client`, synchronous.
    function
        What a task does; a function of a module that the workers can import.

    Raises
    ------
    TypeError
        If ``client`` is no client.
    ValueError
        If it is asynchronous.
    ConnectionError
        If its scheduler cannot be reached.
    """

    def __init__(self, client: "Client", function: Callable[..., Any]) -> None:
        check_client(client)
        self._client, self._function = client, function
        self._flying: dict[Any, str] = {}
        self._threads, self._counted = 0, -math.inf
        self._check()

    @property
    def room(self) -> int:
        """Number of tasks that may be submitted now."""
        if time.monotonic() > self._counted + _COUNT_S:  # a cluster may grow and shrink
            with self._reached():
                self._threads = sum(self._client.nthreads().values())
            self._counted = time.monotonic()
        return _AHEAD * max(self._threads, 1) - len(self._flying)

    def submit(self, name: str, *args: Any) -> None:
        """Submit a task.

        Parameters
        ----------
        name
            Told with its result.
        *args
            Of the function.
        """
        # pure=False: it is run for what it writes, and Dask must not reuse the result of an earlier one
        with self._reached():
            future = self._client.submit(self._function, *args, pure=False, key=f"gdml-{name}-{uuid.uuid4().hex}")
        self._flying[future] = name

    def finished(self, timeout_s: float = _WAIT_S) -> list[tuple[str, Any]]:
        """Wait for tasks.

        Parameters
        ----------
        timeout_s
            Longest time to wait.

        Returns
        -------
        Name and result, or exception, of each that is finished.

        Raises
        ------
        ConnectionError
            If the scheduler went away.
        """
        from distributed import wait

        if self._flying:
            try:
                wait(list(self._flying), timeout=timeout_s, return_when="FIRST_COMPLETED")
            except TimeoutError:
                self._check()
            except CancelledError:  # Dask does so where the connection is lost
                self._gone()
        over = [future for future in self._flying if future.done()]
        if any(future.status in ("cancelled", "lost") for future in over):
            self._gone()
        return [(self._flying.pop(future), _outcome(future)) for future in over]

    def cancel(self) -> None:
        """Withdraw the tasks that are not begun; those that run are finished by their workers."""
        with suppress(OSError):  # a scheduler that went away runs nothing
            if self._flying and self._client.status == "running":
                self._client.cancel(list(self._flying))
        self._flying.clear()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # Dask's own errors of connections are of this kind
            self._gone()

    def _check(self) -> None:
        if self._client.status != "running":
            self._gone()

    def _gone(self) -> NoReturn:
        address = getattr(getattr(self._client, "scheduler", None), "address", "unknown address")
        raise ConnectionError(
            f"The Dask scheduler at {address} went away. What was done is on disk: call again with a new client for the rest."
        )


def _outcome(future: Any) -> Any:
    """Give the result of a finished task, or its exception."""
    return future.exception() if future.status == "error" else future.result()
