"""Folders that gdml writes to: marked as its own, since no others are listed, cleared or overwritten, and tried first."""

import json
import tempfile
from pathlib import Path
from typing import Any

NAME = "gdml.json"
#: What decides the folder of the cache, for messages.
CACHE_DIR = "gdml.settings.cache_dir (set by GDML_CACHE_DIR)"


def mark(folder: Path, kind: str, **about: Any) -> None:
    """Mark a folder as made by gdml.

    Parameters
    ----------
    folder
        Existing folder.
    kind
        What it holds: ``"features"``, ``"models"``, ``"runs"``, ``"comparison"``, ``"her2st"`` or ``"synthetic"``.
    **about
        Plain values. ``name``, ``encoder`` and ``image`` are columns of :meth:`gdml.settings.list_cache`. ``files``
        names the files, relative to ``folder``, that gdml wrote into a folder where users may keep their own;
        without it everything in the folder is gdml's.
    """
    (folder / NAME).write_text(json.dumps({"gdml": kind, **about}, indent=1, sort_keys=True), encoding="utf-8")


def marked(folder: Path) -> dict[str, Any] | None:
    """Read the marker of a folder.

    Returns
    -------
    What :func:`mark` wrote, with the kind under ``"gdml"``. None if the folder has no marker, or one that cannot be
    read.
    """
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("gdml"), str) else None


def check_writable(folder: Path, what: str, name: str) -> None:
    """Write a small file to a folder, or to the nearest existing folder above it, and remove it again.

    Parameters
    ----------
    folder
        Folder to try; it need not exist.
    what
        What is to be written there, in the plural.
    name
        What decides the folder, for messages.

    Raises
    ------
    OSError
        If the file cannot be written, of the kind that the system raised (PermissionError, ...).
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".gdml-probe-", dir=existing) as probe:
            (Path(probe) / "probe").write_bytes(bytes(4096))
    except OSError as error:
        raise type(error)(
            f"{what} cannot be written to {str(folder)!r} ({error.strerror or error}); choose another folder with {name}."
        ) from error
