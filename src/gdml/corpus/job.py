"""One slide: claim it, run its function, publish the result, keep its state."""

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ._watch import Watch
from ._work import RESULT, SCRATCH, take_over, whole
from .folder import Folder
from .leases import Lease, claim
from .manifest import Item
from .states import DONE, FAILED, QUEUED, RUNNING, State, failed, now, read_state, source_of, write_state
from .turns import one_slide_at_a_time

#: Function of one slide: takes it, the path of its result, which it makes, and a folder for what is worth keeping if
#: the process is killed; returns plain values for the table.
Function = Callable[[Item, Path, Path], Mapping[str, Any]]

#: A slide whose process died as often as this is marked as failed: it may be what kills them.
MOST_DEATHS = 3
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
        done = state.state == DONE and state.source == source_of(item) and whole(self.folder.result(item.name))
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
        with one_slide_at_a_time:
            try:
                lease = claim(self.folder.leases(item.name), watch)
            except OSError as error:
                return failed(State(item.name, str(item.path)), "", time.monotonic(), error)
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
            return failed(state, "", time.monotonic(), error)
        with lease:
            return self._failure(item, lease.holder.token, time.monotonic(), error, state)

    def _published(self, item: Item) -> State | None:
        """Done state of a slide whose process was killed between publishing the result and saying so."""
        state = read_state(self.folder.state(item.name))
        if state is None or not state.publishing or state.source != source_of(item):
            return None
        moved = not (self.folder.work(item.name) / state.attempt / RESULT).exists()
        if not (moved and whole(self.folder.result(item.name))):
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
            take_over(work, self.folder.result(item.name))
            record = dict(self.function(item, work / RESULT, work / SCRATCH))
            if not whole(work / RESULT):
                raise RuntimeError("the function of the slide returned without a result")
            state = replace(state, record=record, seconds=round(time.monotonic() - start, 3))
            if not lease.held():
                self._lost(item, work)
                return None
            write_state(path, replace(state, publishing=True))
            try:
                os.rename(work / RESULT, self.folder.result(item.name))
            except OSError:
                if not lease.held():  # another process has published
                    self._lost(item, work)
                    return None
                raise
            done = replace(state, state=DONE, since=now())
            # before the state: a slide that is done is not looked at again
            shutil.rmtree(self.folder.work(item.name), ignore_errors=True)
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

    def _lost(self, item: Item, work: Path) -> None:
        """Give up an attempt whose lease was taken over."""
        _log.warning("%s: another process has taken over, as this one showed no sign of life; it stops.", item.name)
        shutil.rmtree(work, ignore_errors=True)

    def _failure(self, item: Item, token: str, start: float, error: Exception, state: State) -> State:
        found = failed(state, token, start, error)
        self._write(found)
        return found

    def _write(self, state: State) -> None:
        """Write a state, where the disk has room for it: else the caller alone is told, and the next call tries again."""
        try:
            write_state(self.folder.state(state.name), state)
        except OSError as error:
            _log.warning("%s: its state %r cannot be written (%s).", state.name, state.state, error)
