"""State files: what became of each slide."""

import json
import os
import time
import traceback
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gdml._files import write_text

from .manifest import Item

_TRACEBACK_LINES = 30
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
    scale and the group that the manifest gives. Nothing where the file cannot be seen: reading it will say why.
    """
    try:
        about = item.path.stat()
        entries = [entry.stat() for entry in os.scandir(item.path)] if item.path.is_dir() else [about]
    except OSError:
        return {}
    return {
        "file": item.path.name,
        "bytes": sum(one.st_size for one in entries),
        "n_files": len(entries),
        "changed_ns": max((one.st_mtime_ns for one in entries), default=0),
        "um_per_px": item.um_per_px,
        "group": item.group,
    }


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
    write_text(path, json.dumps(asdict(state), indent=1))


def failed(state: State, attempt: str, start: float, error: Exception) -> State:
    """State of a slide that failed.

    Parameters
    ----------
    state
        Its state so far.
    attempt
        Token of the attempt.
    start
        When that began, by :func:`time.monotonic`.
    error
        What was raised.

    Returns
    -------
    The state, with the reason and the end of the traceback.
    """
    lines = "".join(traceback.format_exception(error)).splitlines()[-_TRACEBACK_LINES:]
    return replace(
        state,
        state=FAILED,
        attempt=attempt,
        since=now(),
        seconds=round(time.monotonic() - start, 3),
        record={},
        publishing=False,
        reason=" ".join(f"{type(error).__name__}: {error}".split()),
        traceback="\n".join(lines),
    )


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
