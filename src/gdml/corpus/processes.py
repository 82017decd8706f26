"""Run a corpus in several processes of this machine, one a device."""

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from .job import MOST_DEATHS, Job
from .manifest import Item
from .run import Pause, Report, run_here
from .states import State

_IDLE = 20  # times that a look at the states takes, between two of them: they are many


def run_in_processes(
    jobs: Sequence[Job], items: Sequence[Item], seen: Mapping[str, str], report: Report
) -> dict[str, State]:
    """Do the slides in a process for each job; the claims deal them out.

    A process that dies is started again; its slide is taken over by the first process that is free.

    Parameters
    ----------
    jobs
        One for each process, alike but for the device.
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
    RuntimeError
        If a process cannot start, or ends with an error that is none of a slide.
    """
    context = multiprocessing.get_context("spawn")  # CUDA and native threads do not survive a fork

    def begin(job: Job) -> Any:
        process = context.Process(target=_work, args=(job, list(items), dict(seen)), daemon=True)
        process.start()
        return process

    found: dict[str, State] = {}
    pending, pause, deaths = list(items), Pause(), 0
    processes = [begin(job) for job in jobs]
    try:
        while pending:
            begun, left = time.monotonic(), []
            for item in pending:
                state = jobs[0].settled(item, seen.get(item.name, ""))
                if state is None:
                    left.append(item)
                    continue
                found[item.name] = state
                report(state)
            moved, pending = len(left) < len(pending), left
            for i, process in enumerate(processes):
                if process.is_alive() or not pending:
                    continue
                if process.exitcode > 0:
                    raise RuntimeError(
                        f"A process ended with exit code {process.exitcode}, see its message above. A script that starts "
                        'processes needs `if __name__ == "__main__":` around its calls.'
                    )
                if process.exitcode < 0:
                    deaths += 1
                    if deaths > MOST_DEATHS * len(items):
                        raise RuntimeError(f"Processes died {deaths} times, the last by signal {-process.exitcode}.")
                    processes[i] = begin(jobs[i])
            if not any(process.is_alive() for process in processes) and pending:
                # their states cannot be written, as on a full disk: this process says so
                rest = run_here(jobs[0], pending, seen, report)
                return {**found, **rest}
            pause.sleep(moved=moved, left=bool(pending), least=_IDLE * (time.monotonic() - begun))
        return found
    finally:
        for process in processes:
            process.terminate()  # of one that has ended already, nothing
        for process in processes:
            process.join()


def _work(job: Job, items: list[Item], seen: dict[str, str]) -> None:
    with suppress(KeyboardInterrupt):  # the calling process tells
        run_here(job, items, seen, report=lambda state: None)
