"""The marker of a folder that gdml made: nothing without it is ever listed, cleared or overwritten."""

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
        What it holds: ``"features"``, ``"models"``, ``"runs"``, ...
    **about
        Plain values that a reader may want, such as a name and a provenance key.
    """
    (folder / NAME).write_text(json.dumps({"gdml": kind, **about}, indent=1, sort_keys=True), encoding="utf-8")


def marked(folder: Path) -> dict[str, Any] | None:
    """Read the marker of a folder.

    Returns
    -------
    What :func:`mark` wrote, its kind under ``"gdml"``; None where gdml did not make the folder, or the marker is not
    readable.
    """
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("gdml"), str) else None
