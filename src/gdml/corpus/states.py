"""State files: what became of each slide."""

import json
import os
import uuid
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .manifest import Item

QUEUED, RUNNING, DONE, FAILED = "queued", "running", "done", "failed"


@dataclass(frozen=True)
class State:
    """What became of a slide.

    Parameters
    ----------
    name
        Its name.
    path
        Its image.
    state
        ``"queued"``, ``"running"``, ``"done"`` or ``"failed"``.
    source
        What the result depends on beside the options of the whole corpus: see :func:`source_of`.
    attempt
        Token of the last attempt; empty before the first.
    by
        Process of that attempt.
    since
        Time of the last change, ISO 8601, UTC.
    seconds
        Of a finished attempt.
    record
        Plain values that the function of the slide returned.
    publishing
        Whether the result is about to take its place.
    reason
        Why the attempt failed, a line.
    traceback
        The last lines of its traceback.
    """

    name: str
    path: str
    state: str = QUEUED
    source: dict[str, Any] = field(default_factory=dict)
    attempt: str = ""
    by: str = ""
    since: str = ""
    seconds: float | None = None
    record: dict[str, Any] = field(default_factory=dict)
    publishing: bool = False
    reason: str = ""
    traceback: str = ""


def source_of(item: Item) -> dict[str, Any]:
    """Tell a slide from a changed one, cheaply.

    Parameters
    ----------
    item
        The slide.

    Returns
    -------
    Name, size and time of change of the file (of a folder, number and size of its entries in place of the size), the
    scale and the group that the manifest gives.

    Raises
    ------
    OSError
        If the file cannot be seen.
    """
    about = item.path.stat()
    if item.path.is_dir():
        entries = [entry.stat() for entry in os.scandir(item.path)]
        size, changed = sum(one.st_size for one in entries), max((one.st_mtime_ns for one in entries), default=0)
        n = len(entries)
    else:
        size, changed, n = about.st_size, about.st_mtime_ns, 1
    seen = {"file": item.path.name, "bytes": size, "n_files": n, "changed_ns": changed}
    return {**seen, "um_per_px": item.um_per_px, "group": item.group}


def read_state(path: Path) -> State | None:
    """Read a state file.

    Parameters
    ----------
    path
        Its path.

    Returns
    -------
    The state; None where there is no file, or it cannot be read, as after a disk that was full: the slide is then
    done again.
    """
    try:
        return State(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_state(path: Path, state: State) -> None:
    """Write a state file, whole or not at all.

    Parameters
    ----------
    path
        Its path.
    state
        The state.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    made = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        made.write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        os.replace(made, path)
    except OSError:
        made.unlink(missing_ok=True)
        raise


def queue(path: Path, item: Item) -> None:
    """Write the state of a slide that has none.

    Parameters
    ----------
    path
        Its state file.
    item
        The slide.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            json.dump(asdict(State(item.name, str(item.path), since=now())), file, indent=1)
    except FileExistsError:
        return


def now() -> str:
    """Present time, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
