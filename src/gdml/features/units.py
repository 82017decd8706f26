"""Unit files: a few tiles' features in one file that is written once, whole, and checks itself."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # no such lock on Windows: one writer at a time is then the user's business
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".safetensors"
_UNFINISHED = ".unfinished"


class DamagedUnitError(Exception):
    """A file whose content is not what its name promises."""


def name_of(xy: NDArray[np.float64]) -> str:
    """Name of the unit that holds the tiles ``xy``, in that order; equal on every machine."""
    return _digest(np.ascontiguousarray(xy, "<f8").tobytes())


def write(folder: Path, arrays: Mapping[str, NDArray]) -> Path:
    """Write a unit: under another name first, then moved, so that half a unit is never found.

    The digest of the content is part of the name: the file needs no second one to vouch for it, and the same
    features are the same files, whoever wrote them and however often the writer was stopped.

    Parameters
    ----------
    folder
        Where the store keeps its units.
    arrays
        ``xy`` (m, 2) float64 and the features of these tiles.

    Returns
    -------
    The file's path.
    """
    content = safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in arrays.items()})
    path = folder / f"{name_of(arrays['xy'])}-{_digest(content)}{_SUFFIX}"
    unfinished = path.with_suffix(_UNFINISHED)
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    return path


def read(path: Path) -> dict[str, NDArray]:
    """Arrays of a unit, its content checked against its name.

    Raises
    ------
    DamagedUnitError
        If the content is not what was written, or the file is gone.
    """
    try:
        content = path.read_bytes()
        if path.stem.rpartition("-")[2] != _digest(content):
            raise DamagedUnitError(str(path))
        return safetensors.numpy.load(content)
    except (OSError, SafetensorError) as error:
        raise DamagedUnitError(str(path)) from error


def read_xy(path: Path) -> NDArray[np.float64]:
    """Coordinates of a unit's tiles alone, unchecked: the name of the unit vouches for them."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            xy = file.get_tensor("xy")
    except (OSError, SafetensorError) as error:
        raise DamagedUnitError(str(path)) from error
    if path.stem.partition("-")[0] != name_of(xy):
        raise DamagedUnitError(str(path))
    return xy


def listed(folder: Path) -> list[Path]:
    """Finished units, in an order that does not depend on who wrote them when."""
    return sorted(folder.glob(f"*{_SUFFIX}"))


def clean(folder: Path) -> None:
    """Remove what a stopped writer left; call it under :func:`locked` only."""
    for path in folder.glob(f"*{_UNFINISHED}"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One writer of a store at a time; the lock goes with the process that holds it.

    Parameters
    ----------
    path
        Folder of the store, which need not exist; the folder above it must.
    """
    with (path.parent / f".{path.name}.lock").open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
