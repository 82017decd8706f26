"""Folders that gdml saves results in: written whole or not at all, and checked when they are read."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Saved:
    """What a saved folder holds, in the words of messages.

    Parameters
    ----------
    what
        Such as ``"model"``.
    record
        Name of its JSON, which says ``format`` and ``format_version``.
    files
        Names of the other files that it must have.
    format, version
        Entries of the JSON; higher versions are refused.
    write
        Call that writes one.
    """

    what: str
    record: str
    files: Sequence[str]
    format: str
    version: int
    write: str

    def check_target(self, path: Path, *, mine: bool, overwrite: bool, name: str = "path") -> None:
        """Refuse a folder that must not be written to.

        Parameters
        ----------
        path
            Folder to save in.
        mine
            Whether something of the kind is saved there.
        overwrite
            Whether that may be replaced.
        name
            Name of the argument, for messages.

        Raises
        ------
        FileExistsError
            If the folder exists, and is of another kind or ``overwrite`` is False.
        """
        if not (path.exists() or path.is_symlink()):
            return
        if not mine:
            raise FileExistsError(f"`{name}` {str(path)!r} exists and is no saved {self.what}; choose another folder.")
        if not overwrite:
            raise FileExistsError(
                f"`{name}` {str(path)!r} holds a saved {self.what}; choose another folder or pass overwrite=True."
            )

    def read(self, folder: Path) -> dict[str, Any]:
        """Read the JSON of a folder.

        Raises
        ------
        FileNotFoundError
            If the folder or one of its files does not exist.
        ValueError
            If the JSON is damaged, of another format, or of a newer version.
        """
        where, title = repr(str(folder)), self.format.replace("-", " ")
        if not folder.exists():
            raise FileNotFoundError(f"`path` {where} does not exist; {self.write} writes one.")
        missing = [name for name in (self.record, *self.files) if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"`path` {where} is not a whole {title}: {' and '.join(missing)} missing.")
        try:
            record = json.loads((folder / self.record).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{where}: {self.record} is truncated or not JSON ({error}).") from error
        if not isinstance(record, dict) or record.get("format") != self.format:
            raise ValueError(f"{where} is not a {title}: {self.record} does not say so.")
        version = record.get("format_version")
        if isinstance(version, int) and version > self.version:
            raise ValueError(
                f"{where} was written by a newer gdml (format {version}, this one reads {self.version}): "
                "pip install --upgrade gdml."
            )
        return record


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a folder to write to, which takes the place of ``target`` at the end of the block.

    After an error there is no new folder, and what was there before is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield made
        made.chmod(0o755)
        if target.exists():
            _exchange(made, target)
        else:
            os.replace(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _exchange(made: Path, target: Path) -> None:
    """Replace a folder by another; the old one is restored if that fails."""
    old = made.with_name(made.name + "-old")
    os.replace(target, old)
    try:
        os.replace(made, target)
    except BaseException:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)
