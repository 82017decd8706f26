"""One slide: what is done, what is not done again, and what a failure leaves."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest

from gdml.corpus import job as jobs
from gdml.corpus import leases, states
from gdml.corpus._alive import this_process
from gdml.corpus._watch import Watch
from gdml.corpus.states import read_state
from gdml.corpus.table import tabulate, write_table


def left(corpus):
    return os.listdir(corpus.folder.path / "work") + os.listdir(corpus.folder.path / "leases")


def test_every_slide_is_done_once(corpus):
    found = corpus.run()
    assert {state.state for state in found.values()} == {"done"} and not left(corpus)
    again = corpus.run()
    assert corpus.told("end") == [item.name for item in corpus.items]
    assert {name: state.record for name, state in again.items()} == {n: s.record for n, s in found.items()}
    assert corpus.contents()["s03.zarr/bytes"] == b"slide 3"[::-1]


def test_a_failed_slide_leaves_the_others_alone_and_is_tried_again(corpus):
    found = corpus.run(job=corpus.job(fail=("s03",)))
    assert [name for name, state in found.items() if state.state != "done"] == ["s03"]
    state = read_state(corpus.folder.state("s03"))
    assert state.reason == "ValueError: no tissue on s03"
    assert "corpus_work.py" in state.traceback and state.traceback.endswith(state.reason)
    assert not left(corpus) and not corpus.folder.result("s03").exists()
    assert corpus.run()["s03"].state == "done"
    assert sorted(corpus.told("begin")) == sorted([*(item.name for item in corpus.items), "s03"])


def test_a_failure_of_another_caller_stands(corpus):
    job, item = corpus.job(fail=("s00",)), corpus.items[0]
    corpus.run([item], job)  # another caller's, after this one had begun
    assert job.attempt(item, seen="", watch=Watch(60)).state == "failed"
    assert len(corpus.told("begin")) == 1


@pytest.mark.parametrize("change", ["content", "um_per_px", "group", "result"])
def test_what_changed_is_done_again(corpus, change):
    corpus.run()
    items = list(corpus.items)
    if change == "content":
        items[2].path.write_bytes(b"another")
    elif change == "result":
        shutil.rmtree(corpus.folder.result("s02"))
    else:
        items[2] = replace(items[2], **{change: 2.0 if change == "um_per_px" else "P1"})
    corpus.run(items)
    assert corpus.told("begin")[12:] == ["s02"]
    assert corpus.contents()["s02.zarr/bytes"] == (b"another" if change == "content" else b"slide 2")[::-1]


def test_an_interrupted_slide_goes_on_with_its_scratch(corpus):
    def interrupted(item, result, scratch):
        (scratch / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus.run(job=replace(corpus.job(), function=interrupted))
    assert read_state(corpus.folder.state("s00")).state == "queued"
    found = corpus.run()
    assert found["s00"].record["left"] == 1 and found["s01"].record["left"] == 0 and not left(corpus)


def test_a_full_disk_fails_the_slide_and_the_next_call_mends_it(corpus, monkeypatch):
    def full(item, result, scratch):
        (scratch / "half").touch()
        if item.name == "s01":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return corpus.job().function(item, result, scratch)

    write = states.write_state

    def no_room(path, state):  # not even for the state of the failure
        if state.name == "s01" and state.state == "failed":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "write_state", no_room)
        found = corpus.run(job=replace(corpus.job(), function=full))
    assert [name for name, state in found.items() if state.state == "failed"] == ["s01"]
    assert "No space left" in found["s01"].reason and not left(corpus)
    table = tabulate(corpus.folder, found.values(), ["n_tiles"])
    assert table.set_index("name").loc["s01", ["state", "result"]].tolist() == ["failed", ""]
    assert corpus.run()["s01"].state == "done"


def test_a_lease_that_was_lost_is_noticed_before_the_result_is_published(corpus):
    item, plain = corpus.items[0], corpus.job()

    def suspended(item, result, scratch):
        record = plain.function(item, result, scratch)
        folder = corpus.folder.leases(item.name)
        token = json.loads((folder / "1").read_text())["token"]
        taken.append(leases.claim(folder, Watch(60, known_dead=(token,))))
        return record

    taken = []
    assert replace(plain, function=suspended).attempt(item, "", Watch(60)) is None
    assert not corpus.folder.result(item.name).exists()
    assert taken[0].held(), "the lease of the other is left alone"
    taken[0].release()
    assert plain.attempt(item, "", Watch(60)).state == "done"


def test_killed_after_publishing_it_is_not_done_again(corpus, monkeypatch):
    item = corpus.items[0]

    class Killed(BaseException):
        pass

    rename = os.rename

    def die(source, target):
        rename(source, target)
        if str(target) == str(corpus.folder.result(item.name)):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", die)
        patch.setattr(jobs.Job, "_write", lambda self, state: None)  # who is killed writes nothing more
        with pytest.raises(Killed):
            corpus.job().attempt(item, "", Watch(60))
    assert read_state(corpus.folder.state(item.name)).publishing
    assert corpus.job().attempt(item, "", Watch(60)).state == "done"
    assert corpus.told("begin") == ["s00"] and not left(corpus)


def test_a_slide_that_kills_its_processes_is_failed(corpus, monkeypatch):
    item = corpus.items[0]
    with monkeypatch.context() as patch:
        patch.setattr(leases, "this_process", lambda: replace(this_process(), started=0.0))
        for deaths in range(jobs.MOST_DEATHS):
            assert leases.claim(corpus.folder.leases(item.name), Watch(60)).deaths == deaths
    state = corpus.job().attempt(item, "", Watch(60))
    assert state.state == "failed" and "3 processes died" in state.reason
    assert corpus.job().attempt(item, state.attempt, Watch(60)).state == "done", "the next call begins anew"


def test_a_function_without_a_result_failed(corpus):
    state = replace(corpus.job(), function=lambda item, result, scratch: {}).attempt(corpus.items[0], "", Watch(60))
    assert state.state == "failed" and "without a result" in state.reason


def test_the_table_names_every_slide(corpus):
    corpus.run(corpus.items[:3], corpus.job(fail=("s01",)))
    table = write_table(corpus.folder, ["n_tiles"])
    assert list(table.columns) == ["name", "path", "state", "n_tiles", "seconds", "reason", "result"]
    assert table["state"].tolist() == ["done", "failed", "done"]
    import pandas as pd

    read = pd.read_csv(corpus.folder.table, keep_default_na=False)
    assert read["reason"].tolist() == ["", "ValueError: no tissue on s01", ""]
