"""What lies in the cache folder, and how to be rid of it.

Only what gdml wrote is listed and removed: folders that say of themselves what they are, files by their known names.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("features", "models", "runs", "her2st", "synthetic")
_DAY = 24 * 3600.0
_COLUMNS = ["kind", "name", "encoder", "image", "tiles", "size", "bytes", "modified", "path"]


@dataclass
class Entry:
    """One thing that can be removed.

    Parameters
    ----------
    kind
        One of ``KINDS``.
    path
        Its folder.
    files
        Those that belong to it.
    name
        What users know it by.
    about
        Further columns.
    """

    kind: str
    path: Path
    files: list[Path]
    name: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.files if file.is_file())

    @property
    def modified(self) -> float:
        """When it was last written to, seconds since 1970."""
        return max((file.stat().st_mtime for file in self.files if file.exists()), default=0.0)

    def remove(self) -> None:
        """Delete the files, and the folder where nothing else is left in it."""
        from gdml.features.units import locked

        with locked(self.path) if self.kind == "features" else nullcontext():
            if self.kind in ("features", "models", "runs"):
                # out of its place first: whoever looks meanwhile finds all of it or nothing
                going = self.path.with_name(f".{self.path.name}-removing")
                shutil.rmtree(going, ignore_errors=True)
                self.path.rename(going)
                shutil.rmtree(going)
                return
            for file in self.files:
                file.unlink(missing_ok=True)
            for folder in sorted({file.parent for file in self.files}, reverse=True):
                while folder.is_relative_to(self.path) and folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
                    folder = folder.parent


def entries(cache_dir: Path) -> list[Entry]:
    """Everything of gdml's under ``cache_dir``.

    Parameters
    ----------
    cache_dir
        The cache folder; it need not exist.

    Returns
    -------
    By kind, then by name.
    """
    return [entry for kind in KINDS for entry in _FINDERS[kind](cache_dir / kind)]


def table(found: list[Entry]) -> "pd.DataFrame":
    """Entries as a table.

    Parameters
    ----------
    found
        Of :func:`entries`.

    Returns
    -------
    One row each: ``kind``, ``name``, ``encoder``, ``image``, ``tiles``, ``size`` (for reading), ``bytes``, ``modified``,
    ``path``.
    """
    import pandas as pd

    rows = [
        {
            "kind": entry.kind,
            "name": entry.name,
            "size": shown(entry.n_bytes),
            "bytes": entry.n_bytes,
            "modified": pd.Timestamp(entry.modified, unit="s").floor("s"),
            "path": str(entry.path),
            **entry.about,
        }
        for entry in found
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def older_than(found: list[Entry], days: float) -> list[Entry]:
    """Entries that were last written to more than ``days`` ago.

    Parameters
    ----------
    found
        Of :func:`entries`.
    days
        Age, days.

    Returns
    -------
    Some of them.
    """
    return [entry for entry in found if time.time() - entry.modified > days * _DAY]


def shown(n_bytes: float) -> str:
    """Size for reading, such as ``"12.3 MB"``.

    Parameters
    ----------
    n_bytes
        Size in bytes.

    Returns
    -------
    Text.
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def _folders(parent: Path) -> list[Path]:
    """Folders in ``parent`` itself: links out of the cache are left alone."""
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.is_symlink() and not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _features(parent: Path) -> Iterator[Entry]:
    from gdml.features import open_path

    for folder in _folders(parent):
        if (folder / "zarr.json").is_file():
            yield Entry("features", folder, _files(folder), folder.name, {"encoder": "(written by gdml 0.1)"})
            continue
        if not (folder / "store.json").is_file():
            continue
        about: dict[str, Any] = {"encoder": "(damaged)"}
        try:
            spec = json.loads((folder / "store.json").read_text())["spec"]
            about = {"encoder": spec["encoder"], "image": spec["image"], "tiles": len(open_path(folder))}
        except (ValueError, KeyError, TypeError):
            pass  # listed as damaged, so that it can be removed
        yield Entry("features", folder, _files(folder), folder.name, about)


def _models(parent: Path) -> Iterator[Entry]:
    for folder in _folders(parent):
        if (folder / "model.json").is_file():
            yield Entry("models", folder, _files(folder), folder.name)


def _runs(parent: Path) -> Iterator[Entry]:
    for folder in _folders(parent):
        if (folder / "run.json").is_file():
            name = "(damaged)"
            try:
                name = json.loads((folder / "run.json").read_text(encoding="utf-8"))["about"]["model"]
            except (ValueError, KeyError, TypeError):
                pass  # listed as damaged, so that it can be removed
            yield Entry("runs", folder, _files(folder), str(name))


def _her2st(folder: Path) -> Iterator[Entry]:
    from gdml.datasets._fetch import read_blobs

    files = [folder / name for name in read_blobs("git_blobs.tsv")]
    if there := [file for file in files if file.is_file()]:
        yield Entry("her2st", folder, there, "her2st")


def _synthetic(parent: Path) -> Iterator[Entry]:
    for folder in _folders(parent):
        if pictures := sorted(folder.glob("S*.jpg")):
            yield Entry("synthetic", folder, pictures, folder.name)


_FINDERS = {"features": _features, "models": _models, "runs": _runs, "her2st": _her2st, "synthetic": _synthetic}
