"""Leases: which process works on a slide, for processes of many machines that share nothing but a file system.

Each slide has a folder of leases, files named 1, 2, 3, ... The file with the highest number is in force. It is made
with ``O_EXCL``, so that exactly one process makes it, also over NFS, where ``flock`` may hold for one machine alone. Who
finds the holder dead makes the file of the next number; no process removes a lease that is not its own and in force, so
that none can be removed by a process which judged it before it was renewed. A released lease is deleted, together with
the dead ones below it: what was done is known from the state of the slide, not from its leases.
"""

import json
import os
import threading
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from ._alive import Process, this_process
from ._watch import Watch

_BEATS = 6  # heartbeats before a silent holder is taken for dead


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Parameters
    ----------
    token
        Unique to this lease.
    process
        The process.
    since
        Time of the claim, ISO 8601, UTC.
    """

    token: str
    process: Process
    since: str


class Lease:
    """A lease in force, renewed by a thread while it is used as a context manager, and released at its end.

    Parameters
    ----------
    path
        Its file.
    holder
        This process.
    beat_s
        Seconds between two heartbeats.
    """

    def __init__(self, path: Path, holder: Holder, beat_s: float) -> None:
        self.path, self.holder = path, holder
        self._beat_s = beat_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {path.parent.name}", daemon=True)

    @property
    def deaths(self) -> int:
        """Number of holders that died before this one."""
        return int(self.path.name) - 1

    def held(self) -> bool:
        """Whether the lease is still in force: this process may have been suspended, and another have taken over."""
        return _read(self.path) == self.holder and _numbers(self.path.parent)[-1:] == [int(self.path.name)]

    def release(self) -> None:
        """Delete the lease, and the dead ones below it."""
        if not self.held():
            return
        for number in _numbers(self.path.parent):  # in order: this one last, so that none below comes into force
            if number <= int(self.path.name):
                (self.path.parent / str(number)).unlink(missing_ok=True)
        try:
            self.path.parent.rmdir()
        except OSError:  # another process has claimed it meanwhile
            return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.release()

    def _beat(self) -> None:
        while not self._stop.wait(self._beat_s):
            try:
                os.utime(self.path)
            except FileNotFoundError:  # taken over and released; held() tells
                return
            except OSError:  # a file system that is away for a while; the next beat may reach it
                continue


def claim(folder: Path, watch: Watch) -> Lease | None:
    """Claim a slide.

    Parameters
    ----------
    folder
        Folder of its leases; made where it does not exist.
    watch
        Judges whether a holder is dead.

    Returns
    -------
    A lease, to be used as a context manager; None where a living process holds one, or another process was faster.

    Raises
    ------
    OSError
        If the lease cannot be written.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        numbers = _numbers(folder)
        top = numbers[-1] if numbers else 0
        if top and not _is_dead(folder / str(top), watch):
            return None
        path = folder / str(top + 1)
        holder = Holder(uuid.uuid4().hex, this_process(), datetime.now(UTC).isoformat(timespec="seconds"))
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return None
        except FileNotFoundError:  # the folder was removed by a process that released its lease
            continue
        try:
            os.write(handle, json.dumps(asdict(holder)).encode())
        except OSError:  # such as a full disk
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(handle)
        if _numbers(folder)[-1:] == [top + 1]:
            return Lease(path, holder, watch.stale_s / _BEATS)
        path.unlink(missing_ok=True)  # made after others had been made and deleted: a higher one is in force
        return None


def dead_holder(folder: Path, watch: Watch) -> str | None:
    """Look whether a slide can be claimed.

    Parameters
    ----------
    folder
        Folder of its leases.
    watch
        Judges whether a holder is dead.

    Returns
    -------
    The token of the dead holder, ``""`` where there is none, and None where a living process holds the slide.
    """
    numbers = _numbers(folder)
    if not numbers:
        return ""
    path = folder / str(numbers[-1])
    if not _is_dead(path, watch):
        return None
    holder = _read(path)
    return holder.token if holder else ""


def _is_dead(path: Path, watch: Watch) -> bool:
    """Whether the holder of a lease is dead; of one that was just released, no."""
    try:
        with path.open("rb") as file:  # opened anew, so that NFS asks the server
            changed = os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return False
    holder = _read(path)
    if holder is None:  # its maker was stopped between making and writing it
        return watch.silent(str(path), changed)
    return watch.dead(holder.token, holder.process, changed)


def _read(path: Path) -> Holder | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Holder(found["token"], Process(**found["process"]), found["since"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _numbers(folder: Path) -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir(folder) if name.isdecimal())
    except FileNotFoundError:
        return []
