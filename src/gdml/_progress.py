"""What a user sees while a verb runs, and the line it leaves."""

import sys
from typing import Any

from tqdm import tqdm


def tell(message: str) -> None:
    """Leave a line that matters, shown at scanpy's default verbosity (``sc.settings.verbosity >= 1``).

    Parameters
    ----------
    message
        One line: what was done, with which defaults, and where it lies.
    """
    from scanpy import settings

    if int(settings.verbosity) >= 1:
        tqdm.write(message, file=settings.logfile)


def bar(total: int | None = None, *, desc: str, unit: str, **options: Any) -> "tqdm[Any]":
    """Progress bar of text, which needs no widget package; silent where nobody watches.

    Parameters
    ----------
    total
        Steps; None where they are not known yet.
    desc, unit
        What is done, and what one step is.
    **options
        Of :class:`tqdm.tqdm`.

    Returns
    -------
    The bar, to be used as a context manager.
    """
    return tqdm(total=total, desc=desc, unit=unit, disable=not _watched(), dynamic_ncols=True, **options)


def _watched() -> bool:
    """Whether a person sees standard error: a terminal, or a notebook; and scanpy is not silenced."""
    scanpy = sys.modules.get("scanpy")
    if scanpy is not None and int(scanpy.settings.verbosity) < 1:
        return False
    return sys.stderr.isatty() or "ipykernel" in sys.modules
