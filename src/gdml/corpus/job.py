"""One slide: claim it, run its function, publish the result, keep its state."""

import logging
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ._watch import Watch
from .folder import Folder
from .leases import Lease, claim
from .manifest import Item
from .states import DONE, FAILED, QUEUED, RUNNING, State, now, read_state, source_of, write_state

#: Function of one slide: takes it, the path of its result, which it makes, and a folder for what is worth keeping if
#: the process is killed; returns plain values for the table.
Function = Callable[[Item, Path, Path], Mapping[str, Any]]

#: A slide whose process died as often as this is marked as failed: it may be what kills them.
MOST_DEATHS = 3
_RESULT, _SCRATCH, _OLD = "result", "scratch", "old"
_TRACEBACK_LINES = 30
_one_at_a_time = threading.Lock()
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is done with each slide of a corpus.

    Parameters
    ----------
    folder
        Where results and states are.
    function
        Function of one slide.
    stale_s
        Seconds without a sign of life after which a process on another machine counts as dead.
    """

    folder: Folder
    function: Function
    stale_s: float = 180.0

    def settled(self, item: Item, seen: str = "") -> State | None:
        """State of a slide that needs no work: done, or failed since this call began.

        Parameters
        ----------
        item
            The slide.
        seen
            Attempt that had failed when the call began, which is tried again.

        Returns
        -------
        Its state; None if there is work to do.
        """
        state = read_state(self.folder.state(item.name))
        if state is None:
            return None
        if state.state == FAILED and state.attempt != seen and state.source == source_of(item):
            return state
        done = state.state == DONE and state.source == source_of(item) and _whole(self.folder.result(item.name))
        return state if done else None

    def attempt(self, item: Item, seen: str, watch: Watch) -> State | None:
        """Do a slide, unless it is done or another process works on it.

        Whatever the function raises is written to the state of the slide.

        Parameters
        ----------
        item
            The slide.
        seen
            As in :meth:`settled`.
        watch
            Judges whether other processes are dead.

        Returns
        -------
        The state that the slide is in now, done or failed; None if another process works on it.
        """
        state = self.settled(item, seen)
        if state is not None:
            return state
        with _one_at_a_time:  # threads of a process would share its settings and its memory
            try:
                lease = claim(self.folder.leases(item.name), watch)
            except OSError as error:
                return self._failure(item, "", time.monotonic(), error)
            if lease is None:
                return None
            with lease:
                state = self.settled(item, seen) or self._published(item)  # it may have been done before the claim
                return state if state is not None else self._run(item, lease)

    def give_up(self, item: Item, error: Exception) -> State:
        """Mark a slide as failed whose processes could not even begin it.

        Parameters
        ----------
        item
            The slide.
        error
            What became of them.

        Returns
        -------
        Its state, which is written unless another process has claimed the slide.
        """
        lease = claim(self.folder.leases(item.name), Watch(self.stale_s))
        state = State(item.name, str(item.path), source=source_of(item))
        if lease is None:
            return _failed(state, "", time.monotonic(), error)
        with lease:
            return self._failure(item, lease.holder.token, time.monotonic(), error, state)

    def _published(self, item: Item) -> State | None:
        """Done state of a slide whose process was killed between publishing the result and saying so."""
        state = read_state(self.folder.state(item.name))
        if state is None or not state.publishing or state.source != source_of(item):
            return None
        moved = not (self.folder.work(item.name) / state.attempt / _RESULT).exists()
        if not (moved and _whole(self.folder.result(item.name))):
            return None
        done = replace(state, state=DONE, publishing=False)
        shutil.rmtree(self.folder.work(item.name), ignore_errors=True)
        self._write(done)
        return done

    def _run(self, item: Item, lease: Lease) -> State | None:
        token, start, path = lease.holder.token, time.monotonic(), self.folder.state(item.name)
        work = self.folder.work(item.name) / token
        state = State(item.name, str(item.path), RUNNING, attempt=token, by=str(lease.holder.process), since=now())
        try:
            state = replace(state, source=source_of(item))
            if lease.deaths >= MOST_DEATHS:
                raise RuntimeError(
                    f"{lease.deaths} processes died at this slide, perhaps for want of memory; the next call tries again"
                )
            write_state(path, state)
            self._take_over(item, work)
            record = dict(self.function(item, work / _RESULT, work / _SCRATCH))
            if not _whole(work / _RESULT):
                raise RuntimeError("the function of the slide returned without a result")
            state = replace(state, record=record, seconds=round(time.monotonic() - start, 3))
            if not lease.held():
                self._lost(item, work)
                return None
            write_state(path, replace(state, publishing=True))
            try:
                os.rename(work / _RESULT, self.folder.result(item.name))
            except OSError:
                if not lease.held():  # another process has published
                    self._lost(item, work)
                    return None
                raise
            done = replace(state, state=DONE, since=now())
            shutil.rmtree(
                self.folder.work(item.name), ignore_errors=True
            )  # first: nobody looks after a slide that is done
            self._write(done)
            return done
        except Exception as error:  # noqa: BLE001  # whatever a slide raises, the others go on
            if not lease.held():
                self._lost(item, work)
                return None
            shutil.rmtree(self.folder.work(item.name), ignore_errors=True)  # before the state: the disk may be full
            return self._failure(item, token, start, error, state)
        except BaseException:  # interrupted: the next call goes on with what is in the scratch folder
            self._write(replace(state, state=QUEUED, since=now()))
            raise

    def _take_over(self, item: Item, work: Path) -> None:
        """Make the folder of this attempt, with what dead processes left, and remove an outdated result."""
        work.mkdir(parents=True)
        for left in work.parent.iterdir():
            if left == work:
                continue
            scratch = left / _SCRATCH
            if scratch.exists() and not (work / _SCRATCH).exists():
                # by a rename: a process that was taken for dead and is not finds that it is gone
                os.rename(scratch, work / _SCRATCH)
            shutil.rmtree(left, ignore_errors=True)
        (work / _SCRATCH).mkdir(exist_ok=True)
        result = self.folder.result(item.name)
        if result.exists():  # moved first: what is in its place is whole
            os.rename(result, work / _OLD)
            shutil.rmtree(work / _OLD, ignore_errors=True)

    def _lost(self, item: Item, work: Path) -> None:
        """Give up an attempt whose lease was taken over."""
        _log.warning("%s: another process has taken over, as this one showed no sign of life; it stops.", item.name)
        shutil.rmtree(work, ignore_errors=True)

    def _failure(self, item: Item, token: str, start: float, error: Exception, state: State | None = None) -> State:
        failed = _failed(state or State(item.name, str(item.path)), token, start, error)
        self._write(failed)
        return failed

    def _write(self, state: State) -> None:
        """Write a state, where the disk has room for it: else the caller alone is told, and the next call tries again."""
        try:
            write_state(self.folder.state(state.name), state)
        except OSError as error:
            _log.warning("%s: its state %r cannot be written (%s).", state.name, state.state, error)


def _whole(result: Path) -> bool:
    """Whether there is a result: it takes its place whole, so that an empty folder is none."""
    if result.is_dir():
        with os.scandir(result) as entries:
            return next(entries, None) is not None
    return result.exists()


def _failed(state: State, token: str, start: float, error: Exception) -> State:
    lines = "".join(traceback.format_exception(error)).splitlines()[-_TRACEBACK_LINES:]
    return replace(
        state,
        state=FAILED,
        attempt=token,
        since=now(),
        seconds=round(time.monotonic() - start, 3),
        record={},
        publishing=False,
        reason=" ".join(f"{type(error).__name__}: {error}".split()),
        traceback="\n".join(lines),
    )
