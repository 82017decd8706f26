"""The folder of the results: whose it is, and what it holds."""

import threading

import pytest

from gdml.corpus.folder import open_folder


def open_with(path, **about):
    return open_folder(path, "predictions", about, suffix=".zarr")


def test_it_is_made_marked_and_opened_again(tmp_path):
    made = open_with(tmp_path / "deep" / "out", model="a", region=None, size=(1, 2))
    assert open_with(tmp_path / "deep" / "out", model="a", region=None, size=(1, 2)) == made
    assert made.result("x.1") == tmp_path / "deep" / "out" / "x.1.zarr"


def test_results_of_another_model_are_refused_with_both_named(tmp_path):
    open_with(tmp_path / "out", model="a", tissue=True)
    with pytest.raises(ValueError, match="model 'a', now 'b'; tissue True, now False"):
        open_with(tmp_path / "out", model="b", tissue=False)


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match=r"'thesis\.txt'.*choose another folder"):
        open_with(tmp_path, model="a")
    with pytest.raises(FileExistsError, match="is a file"):
        open_with(tmp_path / "thesis.txt", model="a")
    open_folder(tmp_path / "runs", "runs", {}, suffix="")
    with pytest.raises(FileExistsError, match="holds gdml's 'runs', not predictions"):
        open_with(tmp_path / "runs")
    with pytest.raises(TypeError, match="`out`"):
        open_with(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "thesis.txt"]


def test_the_first_of_several_that_mark_it_prevails(tmp_path):
    barrier, refused = threading.Barrier(6), []

    def work(model):
        barrier.wait()
        try:
            open_with(tmp_path / "out", model=model)
        except ValueError:
            refused.append(model)

    threads = [threading.Thread(target=work, args=("ab"[i % 2],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused in (["a"] * 3, ["b"] * 3)
