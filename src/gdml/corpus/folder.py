"""The folder of a corpus: results, states, leases, and what is being written."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gdml._errors import check_path
from gdml._marker import NAME, check_writable, mark, marked

_OURS = ".gdml-"  # files that are being made before the folder is marked


@dataclass(frozen=True)
class Folder:
    """Paths in the folder of a corpus.

    Parameters
    ----------
    path
        The folder, absolute.
    suffix
        Of the results, such as ``".zarr"``.
    """

    path: Path
    suffix: str

    def result(self, name: str) -> Path:
        """Path of the result of a slide."""
        return self.path / f"{name}{self.suffix}"

    def state(self, name: str) -> Path:
        """Path of the state file of a slide."""
        return self.path / "state" / f"{name}.json"

    def leases(self, name: str) -> Path:
        """Folder of the leases of a slide."""
        return self.path / "leases" / name

    def work(self, name: str) -> Path:
        """Folder of what is being written for a slide; a folder in it for each process that worked on it."""
        return self.path / "work" / name

    @property
    def table(self) -> Path:
        """Table of all slides."""
        return self.path / "slides.csv"


def open_folder(path: str | os.PathLike[str], kind: str, about: Mapping[str, Any], *, suffix: str) -> Folder:
    """Make the folder of a corpus and mark it, or open one with results of the same kind.

    Parameters
    ----------
    path
        The folder; made where it does not exist.
    kind
        What its results are, in the plural, such as ``"predictions"``.
    about
        What all results depend on, plain values by name.
    suffix
        Of the results.

    Returns
    -------
    Its paths.

    Raises
    ------
    ValueError
        If it holds results that depend on something else; what differs is named.
    FileExistsError
        If it is no folder, or holds files and has no marker of gdml.
    OSError
        If it cannot be written to.
    TypeError
        If ``path`` is no path.
    """
    check_path("out", path)
    out = Path(path).expanduser().absolute()
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"`out` {str(out)!r} is a file; choose another folder.")
    wanted = json.loads(json.dumps(dict(about)))  # as it is read again
    if marked(out) is None:
        strange = sorted(one.name for one in out.iterdir() if not one.name.startswith(_OURS)) if out.exists() else []
        if strange:
            raise FileExistsError(
                f"`out` {str(out)!r} holds files ({strange[0]!r}, ...) and no {NAME}, so gdml did not make it; choose "
                "another folder."
            )
    check_writable(out, kind.capitalize(), "`out`")
    if marked(out) is None:
        _mark(out, kind, wanted)
    found = marked(out) or {}
    theirs = {name: value for name, value in found.items() if name != "gdml"}
    if found.get("gdml") != kind:
        raise FileExistsError(
            f"`out` {str(out)!r} holds gdml's {found.get('gdml')!r}, not {kind}; choose another folder."
        )
    differ = [name for name in sorted({*wanted, *theirs}) if wanted.get(name) != theirs.get(name)]
    if differ:
        listed = "; ".join(f"{name} {theirs.get(name)!r}, now {wanted.get(name)!r}" for name in differ)
        raise ValueError(f"`out` {str(out)!r} holds {kind} made otherwise ({listed}); choose another folder for these.")
    folder = Folder(out, suffix)
    for part in ("state", "leases", "work"):
        (out / part).mkdir(exist_ok=True)
    return folder


def _mark(out: Path, kind: str, about: Mapping[str, Any]) -> None:
    """Mark a folder at once and whole; the first of several processes that do so prevails."""
    out.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=_OURS, dir=out))
    try:
        mark(making, kind, **about)
        try:
            os.link(making / NAME, out / NAME)  # in contrast to a rename, never over another
        except FileExistsError:
            return
        except OSError:  # a file system without links
            if not (out / NAME).exists():
                os.replace(making / NAME, out / NAME)
    finally:
        shutil.rmtree(making, ignore_errors=True)
