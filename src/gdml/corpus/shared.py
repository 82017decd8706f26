"""Whether the workers of a Dask cluster see the files of the process that calls."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gdml._errors import some

if TYPE_CHECKING:
    from distributed import Client

_SAMPLE = 20  # slides that each worker looks for


def check_shared(client: "Client", out: Path, paths: Sequence[Path]) -> None:
    """Have each worker read and write a small file in the folder of the results, and look for some of the slides.

    Parameters
    ----------
    client
        A :class:`distributed.Client`; where it has no workers yet, they are not waited for, and not checked.
    out
        The folder.
    paths
        The slides.

    Raises
    ------
    OSError
        If a worker does not see them, or cannot write.
    """
    step = max(1, len(paths) // _SAMPLE)
    with tempfile.TemporaryDirectory(prefix=".gdml-probe-", dir=out) as folder:
        (Path(folder) / "caller").write_text(folder, encoding="utf-8")
        found = client.run(_look, Path(folder), list(paths[::step]), on_error="return")
    for address, problem in found.items():
        if problem:
            raise OSError(
                f"The worker {address} {problem}. Workers must reach `out` and the slides under the paths that the caller "
                "gives: put both on a file system that all machines share."
            )


def _look(folder: Path, paths: list[Path]) -> str:
    """Say what a worker does not see, or cannot do; empty if nothing."""
    try:
        seen = (folder / "caller").read_text(encoding="utf-8")
    except OSError:
        seen = ""
    if seen != str(folder):
        return f"does not see `out`, {str(folder.parent)!r}"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"written")
    except OSError as error:
        return f"cannot write to `out`, {str(folder.parent)!r} ({error.strerror})"
    missing = [str(path) for path in paths if not path.exists()]
    return f"does not see the slides {some(missing, 3)}" if missing else ""
