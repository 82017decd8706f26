"""List and remove the folders in the cache that bear gdml's marker.

Which folders exist is the business of the modules that make and mark them; nothing is recognised by its file names.
"""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._marker import NAME, marked

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("features", "models", "runs", "her2st", "synthetic")
REPLACEABLE = ("features", "her2st", "synthetic")  # computed or downloaded again when they are needed
_DEPTH = 3  # levels of folders below the cache folder that are searched
_DAY = 24 * 3600.0
_ABOUT = ("name", "encoder", "image")
_COLUMNS = ["kind", *_ABOUT, "size", "bytes", "modified", "path"]


@dataclass(frozen=True)
class Entry:
    """A marked folder.

    Parameters
    ----------
    path
        The folder.
    marker
        Content of its marker.
    """

    path: Path
    marker: dict[str, Any]

    @property
    def kind(self) -> str:
        """What the folder holds, such as ``"features"``."""
        return str(self.marker["gdml"])

    @property
    def files(self) -> list[Path]:
        """The files that belong to gdml: those that the marker names, else all in the folder; links are left out."""
        named = self.marker.get("files")
        if named is None:
            return list(_files(self.path))
        return [file for file in _files(self.path) if file.relative_to(self.path).as_posix() in {NAME, *named}]

    @property
    def n_bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def modified(self) -> float:
        """Time of the last change, seconds since 1970."""
        return max((file.stat().st_mtime for file in self.files), default=0.0)

    def remove(self) -> None:
        """Delete the folder; where the marker names files, only these and the folders that they leave empty."""
        if self.marker.get("files") is None:
            # renamed first: another process finds the whole folder or none
            removing = self.path.rename(self.path.with_name(f".{self.path.name}-removing-{os.getpid()}"))
            for path in removing.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != NAME:
                    path.unlink()
            (removing / NAME).unlink()  # last: what an interrupted removal leaves is listed, and can be cleared
            removing.rmdir()
            return
        files = self.files
        for file in files:
            file.unlink()
        for folder in sorted({file.parent for file in files}, reverse=True):
            while folder.is_relative_to(self.path) and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent


def entries(cache_dir: Path) -> list[Entry]:
    """Find the marked folders below ``cache_dir``.

    Parameters
    ----------
    cache_dir
        The cache folder; it need not exist. Symbolic links in it are not followed.

    Returns
    -------
    Entries sorted by kind and path.
    """
    return sorted(_search(cache_dir, _DEPTH), key=lambda entry: (entry.kind, entry.path))


def table(found: list[Entry]) -> "pd.DataFrame":
    """Tabulate entries.

    Parameters
    ----------
    found
        Entries, as returned by :func:`entries`.

    Returns
    -------
    A row per entry with the columns ``kind``, ``name``, ``encoder``, ``image``, ``size`` (text), ``bytes``,
    ``modified`` (UTC) and ``path``.
    """
    import pandas as pd

    rows = [
        {
            "kind": entry.kind,
            "name": entry.path.name,
            **{column: entry.marker[column] for column in _ABOUT if column in entry.marker},
            "size": shown(entry.n_bytes),
            "bytes": entry.n_bytes,
            "modified": pd.Timestamp(entry.modified, unit="s").floor("s"),
            "path": str(entry.path),
        }
        for entry in found
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def older_than(found: list[Entry], days: float) -> list[Entry]:
    """Entries that were last changed more than ``days`` ago.

    Parameters
    ----------
    found
        Entries, as returned by :func:`entries`.
    days
        Age in days; 0 for all entries, including those of this moment.
    """
    return [entry for entry in found if not days or time.time() - entry.modified > days * _DAY]


def shown(n_bytes: float) -> str:
    """Format a size in bytes, such as ``"12.3 MB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def _search(folder: Path, depth: int) -> Iterator[Entry]:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_dir():
            continue
        if (marker := marked(path)) is not None:
            yield Entry(path, marker)
        elif depth > 1:
            yield from _search(path, depth - 1)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if not path.is_symlink():
                yield path
