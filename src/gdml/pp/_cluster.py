"""Encode slides on the workers of a Dask cluster, a task a slide."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from socket import gethostname
from typing import Any

from gdml._errors import count, some
from gdml.corpus.each import each
from gdml.corpus.shared import check_shared
from gdml.corpus.tasks import check_client
from gdml.corpus.turns import one_slide_at_a_time

from ._embed_slide import EmbeddedSlide, SlideTask, embed_slide
from ._extract import Extractor
from ._plan import Plan
from .workers import settled_precision

_RESUMED = "the next call finds the tiles that were stored"


def check_plan(plan: Plan, client: Any) -> None:
    """Refuse encoders that workers cannot make, and what is no client.

    Raises
    ------
    TypeError
        If the encoder is a module or function, or ``client`` no client.
    ValueError
        If the client is asynchronous.
    """
    check_client(client)
    if not plan.by_name:
        raise TypeError(
            f"`encoder` is a {type(plan.encoder).__name__}, and with `client` it must be a name: each worker makes its "
            "own encoder, so that no code is sent to it. Save the weights (safetensors) and pass the architecture with "
            "weights=, or leave `client` out."
        )


def settle(plan: Plan, client: Any) -> Plan:
    """Settle what depends on the machine, so that all workers encode alike.

    Parameters
    ----------
    plan
        What the user asked for; checked.
    client
        The cluster; at least one worker is waited for.

    Returns
    -------
    The plan with the precision of the workers in place of ``"auto"``, and the full path of the weights.

    Raises
    ------
    ValueError
        If a worker lacks the device, or they differ in precision or in their version of gdml.
    """
    if plan.weights is not None:
        plan = replace(plan, weights=os.path.abspath(os.path.expanduser(plan.weights)))
    device = str(plan.device)
    return replace(plan, device=device, precision=settled_precision(client, device, plan.precision))


def embed_on_workers(
    client: Any, tasks: Sequence[SlideTask], plan: Plan, identity: str
) -> Iterator[tuple[str, EmbeddedSlide]]:
    """Encode slides on the workers.

    What a worker was encoding when it died, another one resumes from the stores.

    Parameters
    ----------
    client
        The cluster.
    tasks
        The slides.
    plan
        From :func:`settle`.
    identity
        Identity of the extractor in this process, which those of the workers must have.

    Yields
    ------
    Name of each slide, and its stores, as they are done.

    Raises
    ------
    ValueError
        If an image is not a file.
    OSError
        If workers do not see the images or the folder of the stores.
    RuntimeError
        If the workers died that encoded a slide.
    ConnectionError
        If the scheduler went away.
    """
    calls = {task.name: (task, plan, identity) for task in _with_paths(tasks)}
    for folder in {task.folder for task in tasks}:
        folder.mkdir(parents=True, exist_ok=True)
        check_shared(client, folder, [Path(task.source) for task, *_ in calls.values()])
    for name, outcome in each(client, _embed_on_worker, calls):
        if isinstance(outcome, BaseException):
            _fail(name, outcome)
        yield name, outcome


def _with_paths(tasks: Sequence[SlideTask]) -> list[SlideTask]:
    """Tasks with the full paths of their images; images that are not files are refused."""
    others = [task.name for task in tasks if not isinstance(task.source, str | os.PathLike)]
    if others:
        raise ValueError(
            f"`client`: images in memory are not sent to workers, which read files (slides {some(others)}); save them "
            f"and pass their paths, image={{{others[0]!r}: 'slide.tif'}}, or leave `client` out."
        )
    return [replace(task, source=os.path.abspath(os.path.expanduser(task.source))) for task in tasks]


def _fail(name: str, error: BaseException) -> None:
    """Raise the error of a slide, with its name."""
    if type(error).__name__ == "KilledWorker":
        raise RuntimeError(
            f"Slide {name!r}: {count(error.allowed_failures + 1, 'worker')} died that had it, as happens where memory "  # type: ignore[attr-defined]
            f"runs out: see the logs of the workers, give them more memory or pass a smaller batch_size; {_RESUMED}."
        ) from error
    error.add_note(f"Slide {name!r}, encoded by a worker of `client`; {_RESUMED}.")
    raise error


def _embed_on_worker(task: SlideTask, plan: Plan, identity: str) -> EmbeddedSlide:
    if not os.path.exists(task.source):
        raise FileNotFoundError(
            f"The image of slide {task.name!r}, {str(task.source)!r}, does not exist on the worker {gethostname()!r}; "
            "put the images on a file system that all machines share."
        )
    with one_slide_at_a_time:
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
