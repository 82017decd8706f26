"""Run a corpus on the workers of a Dask cluster."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ._watch import Watch
from .job import MOST_DEATHS, Job
from .leases import dead_holder
from .manifest import Item
from .run import Pause, Report
from .shared import check_shared
from .states import State
from .tasks import Tasks

if TYPE_CHECKING:
    from distributed import Client


def run_with_dask(
    client: "Client", job: Job, items: Sequence[Item], seen: Mapping[str, str], report: Report
) -> dict[str, State]:
    """Do the slides as tasks of a Dask cluster, one slide at a time on each worker.

    The claims hold here, too: other callers, with or without Dask, may work on the same folder.

    Parameters
    ----------
    client
        A :class:`distributed.Client`.
    job
        What is done with each slide.
    items
        The slides.
    seen
        As :func:`gdml.corpus.run.start` returned it.
    report
        Called with the state of each slide, once it is done or failed.

    Returns
    -------
    These states, by name.

    Raises
    ------
    OSError
        If workers do not see the folder of the results or the slides.
    ConnectionError
        If the scheduler goes away.
    """
    tasks = Tasks(client, attempt_on_worker)
    check_shared(client, job.folder.path, [item.path for item in items])
    by_name = {item.name: item for item in items}
    found: dict[str, State] = {}
    deaths = dict.fromkeys(by_name, 0)
    waiting, busy, pause, watch = deque(items), deque[Item](), Pause(), Watch(job.stale_s)
    try:
        while len(found) < len(by_name):
            while waiting and tasks.room > 0:
                item = waiting.popleft()
                dead = dead_holder(job.folder.leases(item.name), watch)
                state = job.settled(item, seen.get(item.name, ""))
                if state is not None:
                    found[item.name] = state
                    report(state)
                elif dead is None:  # this process watches for all, so that no worker need wait
                    busy.append(item)
                else:
                    tasks.submit(item.name, job, item, seen.get(item.name, ""), dead)
            over = tasks.finished()
            for name, outcome in over:
                if type(outcome).__name__ == "KilledWorker":
                    deaths[name] += 1  # those that waited on the worker count as well, and may be innocent
                    outcome = job.give_up(by_name[name], outcome) if deaths[name] > MOST_DEATHS else None
                if isinstance(outcome, Exception):  # none of a slide: the function cannot be run there
                    raise outcome
                if outcome is None:
                    busy.append(by_name[name])
                    continue
                found[name] = outcome
                report(outcome)
            if not waiting:
                waiting, busy = busy, deque()
                if waiting and not over:
                    pause.sleep(moved=False)
                elif over:
                    pause = Pause()
        return found
    finally:
        tasks.cancel()


def attempt_on_worker(job: Job, item: Item, seen: str, dead: str) -> State | None:
    """Task of a worker: :meth:`gdml.corpus.job.Job.attempt`.

    Parameters
    ----------
    job, item, seen
        What is done, and with which slide.
    dead
        Token of a holder of the slide that the caller judged dead.

    Raises
    ------
    FileNotFoundError
        If the worker does not see the folder of the results.
    """
    if not job.folder.path.is_dir():
        raise FileNotFoundError(
            f"A worker does not see `out`, {str(job.folder.path)!r}; put it on a file system that all machines share."
        )
    return job.attempt(item, seen, Watch(job.stale_s, known_dead=(dead,)))
