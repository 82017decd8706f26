"""Progress bars, and the line that each verb leaves at scanpy's default verbosity."""

import os
import shutil
import sys
from typing import Any

from tqdm import tqdm


def tell(message: str) -> None:
    """Write a line to scanpy's log file if ``sc.settings.verbosity`` is at least 1, its default.

    Parameters
    ----------
    message
        One line: what was done, with which defaults, and where the result is.
    """
    from scanpy import settings

    if int(settings.verbosity) >= 1 and not _follows():
        tqdm.write(message, file=settings.logfile)


def bar(total: int | None = None, *, desc: str, unit: str, **options: Any) -> "tqdm[Any]":
    """Progress bar in plain text on standard error, for terminals and notebooks.

    It is disabled where standard error is neither, and if ``sc.settings.verbosity`` is 0.

    Parameters
    ----------
    total
        Number of steps; None if unknown.
    desc, unit
        Label of the bar, and of one step.
    **options
        Passed to :class:`tqdm.tqdm`.

    Returns
    -------
    The bar, to be used as a context manager.
    """
    in_notebook = _in_notebook()
    disable = not (in_notebook or sys.stderr.isatty()) or _silenced()
    width = None if in_notebook else shutil.get_terminal_size().columns  # 80 where the terminal gives no width
    return (_NotebookBar if in_notebook else tqdm)(
        total=total, desc=desc, unit=unit, disable=disable, ncols=width, **options
    )


class _NotebookBar(tqdm):
    """Bar on a single line: notebooks cannot move the cursor up, so inner bars are shown at the end of the outer one."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        outer = next((one for one in self._instances if not one.pos), None)
        if not self.pos or outer is None or outer is self:
            return super().display(msg, pos)
        of_total = "" if self.total is None else f"/{self.total}"
        outer.set_postfix_str("" if msg == "" else f"{self.desc.removesuffix(': ')} {self.n}{of_total}")
        return True

    def close(self) -> None:
        if self.pos:
            self.leave = False
        super().close()


def _in_notebook() -> bool:
    """Whether the code runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _silenced() -> bool:
    scanpy = sys.modules.get("scanpy")
    return _follows() or (scanpy is not None and int(scanpy.settings.verbosity) < 1)


def _follows() -> bool:
    """Whether this is one of several processes on one machine, and not the first, which tells for all."""
    return os.environ.get("LOCAL_RANK", "0") != "0"
