"""The marker of a folder that gdml made: folders without it are never listed, cleared or overwritten."""

import json
from pathlib import Path
from typing import Any

NAME = "gdml.json"


def mark(folder: Path, kind: str, **about: Any) -> None:
    """Mark a folder as made by gdml.

    Parameters
    ----------
    folder
        Existing folder.
    kind
        What it holds: ``"features"``, ``"models"``, ``"runs"``, ``"her2st"`` or ``"synthetic"``.
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
