"""What is being written for a slide: a folder for each process that worked on it."""

import os
import shutil
from pathlib import Path

RESULT, SCRATCH, _OLD = "result", "scratch", "old"


def take_over(work: Path, result: Path) -> None:
    """Make the folder of an attempt, with what dead processes left, and remove an outdated result.

    Parameters
    ----------
    work
        The folder; those of earlier attempts lie beside it.
    result
        Where the result will be.
    """
    work.mkdir(parents=True)
    for left in work.parent.iterdir():
        if left == work:
            continue
        scratch = left / SCRATCH
        if scratch.exists() and not (work / SCRATCH).exists():
            # by a rename: a process that was taken for dead and is not finds that it is gone
            os.rename(scratch, work / SCRATCH)
        shutil.rmtree(left, ignore_errors=True)
    (work / SCRATCH).mkdir(exist_ok=True)
    if result.exists():  # moved first: what is in its place is whole
        os.rename(result, work / _OLD)
        shutil.rmtree(work / _OLD, ignore_errors=True)


def whole(result: Path) -> bool:
    """Whether there is a result: it takes its place whole, so that an empty folder is none.

    Parameters
    ----------
    result
        Its path.
    """
    if result.is_dir():
        with os.scandir(result) as entries:
            return next(entries, None) is not None
    return result.exists()
