"""Several processes on one corpus, killed at random."""

import multiprocessing
import os
import random
import time
from collections import Counter
from dataclasses import replace

import corpus_work
import pytest

from gdml.corpus.processes import run_in_processes


@pytest.fixture
def spawn(corpus):
    context, made = multiprocessing.get_context("spawn"), []

    def begin(job):
        begun = corpus.root / f"begun-{len(made)}"
        made.append(context.Process(target=corpus_work.call, args=(job, corpus.items, begun)))
        made[-1].start()
        return made[-1], begun

    yield begin
    for process in made:
        process.kill()
        process.join()


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_callers_that_are_killed_at_random_do_every_slide_once(corpus, spawn):
    seed = int.from_bytes(os.urandom(4), "little")
    rng, job = random.Random(seed), corpus.job(sleep=0.1)
    running, killed = [spawn(job) for _ in range(3)], set()
    wait_for(lambda: all(begun.exists() for _, begun in running))
    for _ in range(4):
        time.sleep(rng.uniform(0, 0.15))
        process, _ = running.pop(rng.randrange(len(running)))
        process.kill()
        process.join()
        killed.add(process.pid)
        if len(running) < 2:
            running.append(spawn(job))
            wait_for(running[-1][1].exists)
    corpus.run(job=job)  # this call waits for what the others do
    for process, _ in running:
        process.join()  # they may still be releasing the leases of what is done
    working: dict[str, int] = {}
    for line in corpus.log.read_text().splitlines():
        what, name, pid = line.split()
        if what == "begin":
            assert working.get(name) in {None, *map(str, killed)}, f"two at a time on {name}, seed {seed}"
            working[name] = pid
        else:
            assert working.pop(name) == pid
            working[name] = "done" if int(pid) not in killed else pid
    done = Counter(corpus.told("end"))
    assert set(done) == {item.name for item in corpus.items}
    assert sum(done.values()) <= len(corpus.items) + len(killed)
    expected = {f"{item.name}.zarr/bytes": item.path.read_bytes()[::-1] for item in corpus.items}
    assert corpus.contents() == expected, f"seed {seed}"
    assert not os.listdir(corpus.folder.path / "work") and not os.listdir(corpus.folder.path / "leases")


def test_a_caller_waits_for_what_another_does(corpus, spawn):
    _, begun = spawn(corpus.job(sleep=0.2))
    wait_for(begun.exists)
    found = corpus.run()
    assert {state.state for state in found.values()} == {"done"}
    assert Counter(corpus.told("end")) == Counter(item.name for item in corpus.items)
    assert len({line.split()[2] for line in corpus.log.read_text().splitlines()}) == 2, "they shared the work"


def test_a_process_for_each_device_one_of_them_killed_twice(corpus):
    (corpus.root / "kill-s03").write_text("2")
    job = corpus.job(fail=("s05",))
    found = corpus.run(run=lambda job, items, seen, told: run_in_processes([job, job], items, seen, told), job=job)
    assert Counter(state.state for state in found.values()) == {"done": 11, "failed": 1}
    assert Counter(corpus.told("begin"))["s03"] == 3
    assert found["s03"].record["left"] == 2, "what the dead left was handed on"


def test_processes_that_cannot_run_say_so(corpus):
    job = replace(corpus.job(), function=corpus_work.Unreadable())
    with pytest.raises(RuntimeError, match="exit code 1"):
        corpus.run(run=lambda job, items, seen, told: run_in_processes([job], items, seen, told), job=job)
