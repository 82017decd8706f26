"""Functions of a slide that the tests run, in a module that other processes can import."""

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))


def write(item, result, scratch, *, log=None, sleep=0.0, fail=(), kill=()):
    """Write the bytes of the image backwards; `fail` and `kill` name slides that go wrong while a file of theirs lies there."""
    count = 0
    if log is not None:
        with open(log, "a") as file:
            file.write(f"begin {item.name} {os.getpid()}\n")
    if item.name in kill and (Path(log).parent / f"kill-{item.name}").exists():
        left = Path(log).parent / f"kill-{item.name}"
        times = int(left.read_text())
        left.unlink() if times == 1 else left.write_text(str(times - 1))
        (scratch / "half").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    if item.name in fail:
        raise ValueError(f"no tissue on {item.name}")
    time.sleep(sleep)
    count = len(list(scratch.iterdir()))
    result.mkdir()
    (result / "bytes").write_bytes(item.path.read_bytes()[::-1])
    if log is not None:
        with open(log, "a") as file:
            file.write(f"end {item.name} {os.getpid()}\n")
    return {"n_tiles": len(item.path.read_bytes()), "found": count}
