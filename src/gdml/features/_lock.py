"""One writer of a store at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such lock; one writer at a time is then up to the user
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a store; it is released with the process that holds it.

    Parameters
    ----------
    path
        Folder of the store, which need not exist; its parent must.
    """
    with (path.parent / f".{path.name}.lock").open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
