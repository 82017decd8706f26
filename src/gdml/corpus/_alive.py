"""Whether a process of this machine lives."""

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

_TOLERANCE_S = 10.0  # start times are told by the wall clock, which may be set


@dataclass(frozen=True)
class Process:
    """A process.

    Parameters
    ----------
    host
        Name of its machine.
    machine
        What tells this start of the machine, and this container on it, from others.
    pid
        Its number.
    started
        Its start, seconds since 1970: numbers are given again.
    """

    host: str
    machine: str
    pid: int
    started: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> Process:
    """Describe the process that calls."""
    return Process(socket.gethostname(), _machine(), os.getpid(), psutil.Process().create_time())


def is_gone(process: Process) -> bool | None:
    """Whether a process is dead; None where it is on another machine, or in another container, and cannot be seen.

    Parameters
    ----------
    process
        The process.
    """
    if process.machine != _machine():
        return None
    try:
        found = psutil.Process(process.pid)
        return found.status() == psutil.STATUS_ZOMBIE or abs(found.create_time() - process.started) > _TOLERANCE_S
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:  # of another user
        return False


@cache
def _machine() -> str:
    """Start of the machine and name space of its processes: within both, numbers of processes mean the same."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return f"{socket.gethostname()} {psutil.boot_time():.0f}"
