"""Encode slides on the workers of a Dask cluster, a task a slide."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from socket import gethostname
from threading import Lock
from typing import Any
from uuid import uuid4

from scanpy import logging as logg

from gdml._errors import count, some

from ._embed_slide import EmbeddedSlide, SlideTask, embed_slide
from ._extract import Extractor
from ._plan import Plan

_busy = Lock()  # one slide at a time in a process, however many threads it has: they share the memory of its device


def _check_client(client: Any) -> None:
    """Refuse what is not a client of a Dask cluster, with a TypeError."""
    if type(client).__module__.split(".")[0] != "distributed" or not hasattr(client, "submit"):
        raise TypeError(
            f"`client` must be a dask.distributed.Client, found {type(client).__name__}; make one with "
            "dask.distributed.Client(address), where address is that of the scheduler."
        )
    if client.asynchronous:
        raise TypeError("`client` is asynchronous; pass one that is not: dask.distributed.Client(address).")


def plan_for(client: Any, plan: Plan, folder: Path) -> Plan:
    """Make the plan that all workers follow: paths and precision are settled here, so that all encode alike.

    Parameters
    ----------
    client
        The cluster; at least one worker is waited for.
    plan
        What the user asked for.
    folder
        Folder of the stores, which all workers must see.

    Raises
    ------
    TypeError
        If ``client`` is none, or the encoder is a module or function.
    ValueError
        If the workers differ in the precision that ``"auto"`` is, or in their version of gdml.
    FileNotFoundError
        If a worker cannot see the folder of the stores.
    """
    _check_client(client)
    if not plan.by_name:
        raise TypeError(
            f"`encoder` is a {type(plan.encoder).__name__}, and with `client` an encoder must be named: each worker "
            "makes its own, which is safer and faster than sending code and weights. Save its weights "
            "(safetensors) and pass the architecture with weights=, or leave `client` out."
        )
    plan = replace(
        plan,
        device=str(plan.device),
        weights=None if plan.weights is None else os.path.abspath(os.path.expanduser(plan.weights)),
    )
    logg.info(f"embed: waiting for a worker of {client.scheduler.address}")
    client.wait_for_workers(1)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".gdml-probe-") as probe:
        seen = client.run(_look, Path(probe.name), plan, on_error="return")
    for worker, found in seen.items():
        if isinstance(found, BaseException):
            found.add_note(f"Raised on worker {worker}.")
            raise found
    blind = [worker for worker, (sees, _, _) in seen.items() if not sees]
    if blind:
        raise FileNotFoundError(
            f"The folder of the stores, {str(folder)!r}, is not the same on the workers {some(blind)}: put it on a "
            "file system that all machines share, with cache_dir= or gdml.settings.cache_dir (GDML_CACHE_DIR)."
        )
    for i, what, mend in (
        (1, "versions of gdml", "install the same one on all machines"),
        (2, "precision of device='auto'", "pass precision='fp32' or precision='bf16'"),
    ):
        if len({found[i] for found in seen.values()}) > 1:
            raise ValueError(f"The workers differ in {what} ({some(sorted({f[i] for f in seen.values()}))}); {mend}.")
    return replace(plan, precision=next(iter(seen.values()))[2])


def _look(probe: Path, plan: Plan) -> tuple[bool, str, str]:
    """On a worker: whether it sees the stores, its version, and the precision that it would compute in."""
    from gdml import __version__
    from gdml.encoders.device import resolve_device, use_bf16

    return probe.exists(), __version__, "bf16" if use_bf16(resolve_device(plan.device), plan.precision) else "fp32"


def embed_on_workers(
    client: Any, tasks: Sequence[SlideTask], plan: Plan, identity: str
) -> Iterator[tuple[str, EmbeddedSlide]]:
    """Encode slides on the workers, as many at once as there are workers.

    What a worker was encoding when it died, another one resumes from the stores.

    Parameters
    ----------
    client
        The cluster.
    tasks
        The slides.
    plan
        From :func:`plan_for`.
    identity
        Identity of the extractor in this process, which those of the workers must have.

    Yields
    ------
    Name of each slide, and its stores, as they are done.

    Raises
    ------
    ValueError
        If an image is not a file.
    RuntimeError
        If the workers died that encoded a slide.
    ConnectionError
        If the scheduler went away.
    """
    from distributed import as_completed

    waiting = list(reversed(_with_paths(tasks)))
    running: dict[Any, str] = {}
    completed = as_completed()

    def submit() -> None:
        # no more slides than workers, or one worker would hold several while another has none
        while waiting and len(running) < max(len(client.nthreads()), 1):
            task = waiting.pop()
            future = client.submit(_embed_on_worker, task, plan, identity, key=f"gdml-embed-{uuid4()}")
            running[future] = task.name
            completed.add(future)

    try:
        submit()
        for future in completed:
            name = running[future]
            with _explained(name):
                embedded = future.result()
            del running[future]
            submit()
            yield name, embedded
    finally:
        if client.status == "running":
            client.cancel(list(running))


def _with_paths(tasks: Sequence[SlideTask]) -> list[SlideTask]:
    """Tasks with the full paths of their images; images that are not files are refused."""
    others = [task.name for task in tasks if not isinstance(task.source, str | os.PathLike)]
    if others:
        raise ValueError(
            f"`client`: the images of the slides {some(others)} are in memory, and workers read files; save them and "
            f"pass their paths, image={{{others[0]!r}: 'slide.tif'}}, or leave `client` out."
        )
    return [replace(task, source=os.path.abspath(os.path.expanduser(task.source))) for task in tasks]


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Name the slide and the mend where a task failed for reasons of the cluster."""
    from distributed import KilledWorker

    resumed = "the next call finds the tiles that were stored"
    try:
        yield
    except KilledWorker as error:
        raise RuntimeError(
            f"Slide {name!r}: {count(error.allowed_failures + 1, 'worker')} died that encoded it, the last on "
            f"{error.last_worker.address}. Workers that need more memory than they may have are killed: see their logs, "
            f"give them more or pass a smaller batch_size; {resumed}."
        ) from error
    except CancelledError as error:
        raise ConnectionError(
            f"Slide {name!r}: the scheduler of `client` went away, or its tasks were cancelled. Make a client of a "
            f"scheduler that runs, dask.distributed.Client(address), and call again; {resumed}."
        ) from error
    except Exception as error:
        error.add_note(f"Slide {name!r}, encoded by a worker of `client`; {resumed}.")
        raise


def _embed_on_worker(task: SlideTask, plan: Plan, identity: str) -> EmbeddedSlide:
    if not os.path.exists(task.source):
        raise FileNotFoundError(
            f"The image of slide {task.name!r}, {str(task.source)!r}, does not exist on the worker {gethostname()!r}; "
            "put the images on a file system that all machines share."
        )
    with _busy:
        return embed_slide(task, _extractor(plan, identity), lambda found, done: None)


@lru_cache(maxsize=1)
def _extractor(plan: Plan, identity: str) -> Extractor:
    """Extractor of a worker, kept from slide to slide: weights are loaded once."""
    made = plan.make()
    if made.identity != identity:
        raise ValueError(
            f"The encoder on the worker {gethostname()!r} is {made.identity!r}, and {identity!r} where gdml.pp.embed was "
            "called; install the same packages and weights on all machines."
        )
    return made
