"""Leases: one holder at a time, whoever dies and whenever."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gdml.corpus import leases
from gdml.corpus._alive import this_process
from gdml.corpus._watch import Watch
from gdml.corpus.leases import claim, dead_holder


def claim_as(monkeypatch, folder, watch=None, **process):
    """Claim as another process, which does not renew its lease."""
    with monkeypatch.context() as patch:
        patch.setattr(leases, "this_process", lambda: replace(this_process(), **process))
        lease = claim(folder, watch or Watch(60))
    assert lease is not None
    return lease


@pytest.fixture
def dead_pid():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def at_once(n, function):
    """Results of a function in n threads that start together."""
    barrier, results = threading.Barrier(n), []

    def work():
        barrier.wait()
        results.append(function())

    threads = [threading.Thread(target=work) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_one_of_many_gets_a_new_lease_and_one_a_dead_one(tmp_path, monkeypatch, dead_pid):
    for i in range(20):
        folder = tmp_path / str(i)
        if i % 2:
            claim_as(monkeypatch, folder, pid=dead_pid)
        won = [lease for lease in at_once(6, lambda folder=folder: claim(folder, Watch(60))) if lease is not None]
        assert len(won) == 1 and won[0].held()
        won[0].release()
        assert not folder.exists()


def test_a_living_process_keeps_its_lease(tmp_path):
    lease = claim(tmp_path / "a", Watch(60))
    assert claim(tmp_path / "a", Watch(60)) is None
    assert dead_holder(tmp_path / "a", Watch(60)) is None
    lease.release()
    assert dead_holder(tmp_path / "a", Watch(60)) == ""


def test_the_number_of_a_process_is_given_again(tmp_path, monkeypatch):
    claim_as(monkeypatch, tmp_path / "a", started=this_process().started - 3600)
    assert claim(tmp_path / "a", Watch(60)).deaths == 1


def test_a_zombie_is_dead(tmp_path, monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", ""])
    claim_as(monkeypatch, tmp_path / "a", pid=child.pid)
    while claim(tmp_path / "a", Watch(60)) is None:  # it ends, and is not waited for
        time.sleep(0.01)
    child.wait()


def test_another_machine_is_judged_by_its_heartbeat_alone(tmp_path, monkeypatch):
    watch, here = Watch(0.4), tmp_path / "a"
    other = claim_as(monkeypatch, here, watch, machine="another", pid=1)
    os.utime(other.path, (1, 1))  # a clock that is wrong by decades says nothing
    assert claim(here, watch) is None
    with other:  # it beats
        time.sleep(0.8)
        assert claim(here, watch) is None
        other._stop.set()
        other._thread.join()
        assert claim(here, watch) is None
        time.sleep(0.6)
        mine = claim(here, watch)
        assert mine is not None and not other.held()
    assert mine.held(), "who lost a lease does not release that of another"


def test_a_holder_that_another_watch_judged_dead(tmp_path, monkeypatch):
    claim_as(monkeypatch, tmp_path / "a", machine="another")
    watch = Watch(0.05)
    assert dead_holder(tmp_path / "a", watch) is None
    time.sleep(0.1)
    dead = dead_holder(tmp_path / "a", watch)
    assert dead and claim(tmp_path / "a", Watch(60, known_dead=(dead,))) is not None


def test_a_lease_that_was_made_and_not_written(tmp_path):
    (tmp_path / "1").touch()
    watch = Watch(0.1)
    assert claim(tmp_path, watch) is None
    time.sleep(0.2)
    assert claim(tmp_path, watch).deaths == 1


def test_a_claim_that_is_overtaken_between_looking_and_writing(tmp_path, monkeypatch, dead_pid):
    folder = tmp_path / "a"
    claim_as(monkeypatch, folder, pid=dead_pid)
    others = []

    def dead(path, watch):
        with monkeypatch.context() as patch:  # meanwhile two others take over in turn, and the dead ones are deleted
            patch.setattr(leases, "_is_dead", lambda path, watch: True)
            others.extend([claim(folder, watch), claim(folder, watch)])
        for old in ("1", "2"):
            (folder / old).unlink()
        return True

    with monkeypatch.context() as patch:
        patch.setattr(leases, "_is_dead", dead)
        assert claim(folder, Watch(60)) is None
    assert others[1].held() and os.listdir(folder) == ["3"]


def test_no_dead_lease_comes_into_force_while_a_lease_is_released(tmp_path, monkeypatch, dead_pid):
    folder, unlink, in_force = tmp_path / "a", Path.unlink, []
    for _ in range(2):
        claim_as(monkeypatch, folder, pid=dead_pid)
    lease = claim(folder, Watch(60))

    def look(path, **options):
        unlink(path, **options)
        in_force.append(max(os.listdir(folder), default=None))

    monkeypatch.setattr(Path, "unlink", look)
    lease.release()
    assert in_force == ["3", "3", None]


def test_a_folder_that_is_removed_between_making_and_writing(tmp_path, monkeypatch):
    opened, times = os.open, []

    def remove_first(path, *rest):
        if not times:
            times.append(path)
            path.parent.rmdir()
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", remove_first)
    assert claim(tmp_path / "a", Watch(60)).held() and times


def test_a_full_disk_leaves_no_lease(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            claim(tmp_path / "a", Watch(60))
    assert claim(tmp_path / "a", Watch(60)).deaths == 0
