"""Functions of a slide, in a module that other processes can import."""

import os
import signal
import time


def write(item, result, scratch, *, log, sleep=0.0, fail=()):
    """Write the image backwards, and what happens to a log; `fail` names slides that go wrong.

    While a file `kill-{name}` lies beside the log, its number of processes are killed at that slide.
    """
    tell(log, f"begin {item.name} {os.getpid()}")
    order = log.parent / f"kill-{item.name}"
    if order.exists():
        times = int(order.read_text())
        (scratch / f"left-{times}").touch()
        if times == 1:
            order.unlink()
        else:
            order.write_text(str(times - 1))
        os.kill(os.getpid(), signal.SIGKILL)
    if item.name in fail:
        raise ValueError(f"no tissue on {item.name}")
    time.sleep(sleep)
    content = item.path.read_bytes()
    result.mkdir()
    (result / "bytes").write_bytes(content[::-1])
    tell(log, f"end {item.name} {os.getpid()}")
    return {"n_tiles": len(content), "left": len(list(scratch.iterdir()))}


class Unreadable:
    """A function that another process cannot read."""

    def __reduce__(self):
        return refuse, ()


def refuse():
    raise ImportError("this process lacks a package")


def tell(log, line):
    """Append a line at once: processes write to the same file."""
    with open(log, "a") as file:
        file.write(line + "\n")


def told(log, what):
    """Names of the slides that were begun or ended, with repetitions."""
    return [line.split()[1] for line in log.read_text().splitlines() if line.startswith(what)]


def call(job, items, begun):
    """Call as a process of its own; `begun` is made once it runs."""
    from gdml.corpus.run import run_here, start

    seen = start(job, items)
    begun.touch()
    run_here(job, items, seen, report=lambda state: None)
