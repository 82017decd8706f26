"""Run a corpus in this process, and wait for what other processes do of it."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ._watch import Watch
from .job import Job
from .leases import claim
from .manifest import Item
from .states import FAILED, State, queue, read_state

Report = Callable[[State], object]
_LOOKS_S = 0.1, 5.0  # shortest and longest time between two looks at what others do


def start(job: Job, items: Sequence[Item]) -> dict[str, str]:
    """Queue the slides that have no state.

    Parameters
    ----------
    job
        What is done with each.
    items
        The slides.

    Returns
    -------
    For each slide that had failed, its last attempt, by name: these are tried again.

    Raises
    ------
    OSError
        If states cannot be written; no slide was begun then.
    """
    seen = {}
    for item in items:
        path: Path = job.folder.state(item.name)
        state = read_state(path)
        if state is None:
            queue(path, item)
        elif state.state == FAILED:
            seen[item.name] = state.attempt
    return seen


def run_here(job: Job, items: Sequence[Item], seen: Mapping[str, str], report: Report) -> dict[str, State]:
    """Do the slides one after another, and wait for those that other processes do.

    Parameters
    ----------
    job
        What is done with each.
    items
        The slides.
    seen
        As :func:`start` returned it.
    report
        Called with the state of each slide, once it is done or failed.

    Returns
    -------
    These states, by name.
    """
    watch, found, pending = Watch(job.stale_s), {}, list(items)
    pause = Pause()
    while pending:
        busy = []
        for item in pending:
            state = job.attempt(item, seen.get(item.name, ""), watch)
            if state is None:
                busy.append(item)
                continue
            found[item.name] = state
            report(state)
        pause.sleep(moved=len(busy) < len(pending), left=bool(busy))
        pending = busy
    return found


def tidy(job: Job) -> None:
    """Remove the leases of dead processes that had just finished their slides.

    Parameters
    ----------
    job
        Whose folder is tidied; what living processes hold is left alone.
    """
    watch = Watch(job.stale_s)
    for name in os.listdir(job.folder.path / "leases"):
        lease = claim(job.folder.leases(name), watch)
        if lease is not None:
            lease.release()


class Pause:
    """Time between two looks, which grows while nothing happens."""

    def __init__(self) -> None:
        self.seconds = _LOOKS_S[0]

    def sleep(self, *, moved: bool, left: bool = True, least: float = 0.0) -> None:
        """Sleep.

        Parameters
        ----------
        moved
            Whether anything happened since the last look.
        left
            Whether there is anything to wait for.
        least
            Least time, seconds.
        """
        self.seconds = _LOOKS_S[0] if moved else min(2 * self.seconds, _LOOKS_S[1])
        if left:
            time.sleep(max(self.seconds, least))
