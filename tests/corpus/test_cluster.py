"""A corpus on Dask: workers that die, a scheduler that goes away, workers that see other files."""

import logging
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import dask
import pytest
from distributed import Client, KilledWorker, LocalCluster

from gdml.corpus.cluster import Tasks, run_with_dask
from gdml.corpus.shared import check_shared
from gdml.corpus.states import read_state


def cluster(**options):
    return LocalCluster(dashboard_address=":0", silence_logs=logging.CRITICAL, **options)


@pytest.fixture
def threads():
    """One worker in this process: quick to start."""
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        cluster(n_workers=1, threads_per_worker=4, processes=False) as made,
        Client(made) as client,
    ):
        yield SimpleNamespace(cluster=made, client=client)


def test_two_workers_one_of_them_killed_twice(corpus):
    (corpus.root / "kill-s03").write_text("2")
    with cluster(n_workers=2, threads_per_worker=1) as made, Client(made) as client:
        found = corpus.run(run=partial(run_with_dask, client), job=corpus.job(fail=("s05",)))
    assert Counter(state.state for state in found.values()) == {"done": 11, "failed": 1}
    assert Counter(corpus.told("end")) == Counter(item.name for item in corpus.items if item.name != "s05")
    assert corpus.told("begin").count("s03") == 3 and found["s03"].record["left"] == 2
    assert found["s05"].reason == "ValueError: no tissue on s05"
    mended = corpus.run()
    assert mended["s05"].state == "done" and len(corpus.told("end")) == 12


def test_one_slide_at_a_time_in_a_process(corpus, threads):
    corpus.run(run=partial(run_with_dask, threads.client), job=corpus.job(sleep=0.01))
    events = [line.split()[0] for line in corpus.log.read_text().splitlines()]
    assert events == ["begin", "end"] * 12


def test_it_takes_what_another_caller_left(corpus, threads):
    corpus.run(corpus.items[:5])
    corpus.run(run=partial(run_with_dask, threads.client))
    assert sorted(corpus.told("end")) == [item.name for item in corpus.items]


def test_a_scheduler_that_goes_away(corpus, threads):
    def told(state):
        threads.client.sync(threads.cluster.scheduler.close)

    with pytest.raises(ConnectionError, match="scheduler at .* went away.*call again"):
        corpus.run(run=lambda job, items, seen, _: run_with_dask(threads.client, job, items, seen, told))
    corpus.run()
    assert {read_state(corpus.folder.state(item.name)).state for item in corpus.items} == {"done"}
    assert sorted(set(corpus.told("end"))) == [item.name for item in corpus.items]


def test_workers_that_do_not_see_the_files(corpus, threads, monkeypatch):
    with pytest.raises(OSError, match=r"does not see the slides /nowhere/x\.svs"):
        check_shared(threads.client, corpus.folder.path, [corpus.items[0].path.parent / "/nowhere/x.svs"])
    corpus_job = replace(corpus.job(), folder=replace(corpus.folder, path=corpus.root / "gone"))
    with pytest.raises(FileNotFoundError):
        run_with_dask(threads.client, corpus_job, corpus.items, {}, report=print)


def test_a_slide_that_dask_gives_up(corpus, threads, monkeypatch):
    killed = KilledWorker(task="gdml-s02", last_worker=SimpleNamespace(address="tcp://dead"), allowed_failures=3)
    outcome = Tasks.finished

    def finished(self, *args):
        return [(name, killed if name == "s02" else value) for name, value in outcome(self, *args)]

    monkeypatch.setattr(Tasks, "finished", finished)
    monkeypatch.setattr("gdml.corpus.job.Job.settled", lambda self, item, seen="": None)
    found = corpus.run(run=partial(run_with_dask, threads.client))
    assert found["s02"].state == "failed" and "KilledWorker" in found["s02"].reason
    assert read_state(corpus.folder.state("s02")).state == "failed"


def test_a_function_that_workers_cannot_run_is_told(corpus, threads):
    def broken(*args):
        raise ImportError("No module named 'gdml'")

    tasks = Tasks(threads.client, broken)
    tasks.submit("s00")
    ((name, error),) = tasks.finished(20.0)
    assert name == "s00" and isinstance(error, ImportError)


def test_clients_that_are_none(threads):
    with pytest.raises(TypeError, match="`client` must be a dask.distributed.Client, found str"):
        Tasks("tcp://scheduler:8786", print)
    # Not the client of the fixture: one that is closed twice stays dask's default scheduler for the tests that follow.
    closed = Client(threads.cluster, set_as_default=False)
    closed.close()
    with pytest.raises(ConnectionError, match="went away"):
        Tasks(closed, print)
