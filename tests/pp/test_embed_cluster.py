"""Slides that the workers of a Dask cluster encode."""

import os
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import gdml
from gdml.pp import _cluster, workers
from gdml.pp._embed_slide import SlideTask
from gdml.pp._plan import Plan
from gdml.spots.features import load_features

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    """Client of two worker processes of one thread each, which are restarted when they die."""
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """Arguments of embed for a network that workers can make: its name, and a file of weights."""
    from safetensors.torch import save_file

    from gdml.encoders import TimmEncoder

    model = TimmEncoder("resnet18", pretrained=False, seed=3).model
    path = tmp_path_factory.mktemp("resnet") / "resnet18.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return {"encoder": "timm:resnet18", "weights": path}


@pytest.fixture
def slides(synthetic_adata):
    """Three slides of four spots."""
    names = synthetic_adata.obs.groupby("library_id", observed=True).head(4).index
    few = synthetic_adata[[name for name in names if not name.endswith("S4")]].copy()
    gdml.pp.tile(few)
    return few


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_stores_and_record_are_those_of_one_process(slides, client, tmp_path):
    torch.set_num_threads(1)  # as on the workers of Dask
    alone, spread = slides.copy(), slides.copy()
    gdml.pp.embed(alone, "stain", neighbors="lattice", cache_dir=tmp_path / "alone")
    gdml.pp.embed(spread, "stain", neighbors="lattice", cache_dir=tmp_path / "spread", client=client)
    assert contents(tmp_path / "spread") == contents(tmp_path / "alone")
    np.testing.assert_array_equal(spread.obsm["X_stain"], alone.obsm["X_stain"])
    one, other = alone.uns["gdml"]["features"], spread.uns["gdml"]["features"]
    assert list(one["names"]) == list(other["names"])
    same = lambda record: {k: v for k, v in record.items() if k not in ("stores", "names")}
    assert same(one) == same(other)
    assert list(other["stores"]["own"]) == list(one["stores"]["own"]) == ["S1", "S2", "S3"]
    assert alone.uns["gdml"]["tiles"]["slides"] == spread.uns["gdml"]["tiles"]["slides"]
    for slide, features in load_features(spread).items():
        np.testing.assert_array_equal(features.tokens[:], load_features(alone)[slide].tokens[:])


def test_what_is_stored_is_found_by_either(slides, client, tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr("gdml.pp.embedding.tell", lines.append)
    gdml.pp.embed(slides[slides.obs["library_id"] == "S1"].copy(), "stain", cache_dir=tmp_path)
    before = contents(tmp_path)
    gdml.pp.embed(slides, "stain", cache_dir=tmp_path, client=client)
    assert before.items() <= contents(tmp_path).items()
    gdml.pp.embed(slides.copy(), "stain", cache_dir=tmp_path, client=client)
    gdml.pp.embed(slides.copy(), "stain", cache_dir=tmp_path)
    encoded = [int(line.split("; ")[1].split()[0]) for line in lines]
    assert encoded[0] > 0 and encoded[1] > encoded[0] and encoded[2:] == [0, 0]


def test_weights_by_a_relative_path(slides, client, resnet, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the workers are elsewhere
    shutil.copy(resnet["weights"], "mine.safetensors")
    one = slides[slides.obs["library_id"] == "S2"][:2].copy()
    options = {"weights": "mine.safetensors", "tokens": "pooled", "neighbors": "lattice", "encoder_name": "mine"}
    gdml.pp.embed(one, "timm:resnet18", **options, cache_dir="cluster", client=client)
    spread = one.obsm["X_mine"]
    gdml.pp.embed(one, "timm:resnet18", **options, cache_dir="here")
    np.testing.assert_array_equal(spread, one.obsm["X_mine"])


def test_a_worker_that_is_killed(slides, client, resnet, tmp_path):
    expected = slides.copy()
    torch.set_num_threads(1)
    gdml.pp.embed(expected, **resnet, neighbors="lattice", cache_dir=tmp_path / "alone")
    pids = client.run(os.getpid)

    def kill():
        # one of the workers has begun a store; the nanny starts another worker in its place
        while not list((tmp_path / "spread").rglob("zarr.json")):
            time.sleep(0.01)
        os.kill(next(iter(pids.values())), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    gdml.pp.embed(slides, **resnet, neighbors="lattice", cache_dir=tmp_path / "spread", client=client)
    killer.join()
    assert contents(tmp_path / "spread") == contents(tmp_path / "alone")
    np.testing.assert_array_equal(slides.obsm["X_resnet18"], expected.obsm["X_resnet18"])
    deadline = time.monotonic() + 60
    while len(set(client.nthreads()) - set(pids)) != 1 or len(client.nthreads()) != 2:
        assert time.monotonic() < deadline, "no worker took the place of the one that was killed"
        time.sleep(0.05)


@pytest.mark.parametrize("encoder", [torch.nn.Flatten(), lambda tiles: tiles.mean((2, 3))])
def test_own_encoders_are_refused(slides, client, encoder, tmp_path):
    with pytest.raises(TypeError, match="with `client` it must be a name.*leave `client` out"):
        gdml.pp.embed(slides, encoder, client=client, cache_dir=tmp_path)
    assert "features" not in slides.uns["gdml"] and not contents(tmp_path)


def test_images_in_memory_are_refused(slides, client, tmp_path):
    image = np.full((400, 400, 3), 200, np.uint8)
    one = slides[slides.obs["library_id"] == "S1"][:1].copy()
    one.obsm["spatial"][:] = 200
    gdml.pp.tile(one, tile_um=112, um_per_px=1, image=image, check=False)
    with pytest.raises(ValueError, match="images in memory are not sent.*slides S1"):
        gdml.pp.embed(one, "stain", image=image, client=client, cache_dir=tmp_path)
    assert "features" not in one.uns["gdml"]


@pytest.mark.parametrize("client", ["tcp://127.0.0.1:8786", object()])
def test_no_client(slides, client):
    with pytest.raises(TypeError, match="`client` must be a dask.distributed.Client, found"):
        gdml.pp.embed(slides, "stain", client=client)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a": ("1", "fp32"), "b": ("2", "fp32")}, "gdml 1, 2; install one version"),
        ({"a": ("1", "fp32"), "b": ("1", "bf16")}, "pass precision='fp32' or precision='bf16'"),
    ],
)
def test_workers_that_differ(slides, client, tmp_path, monkeypatch, found, message):
    monkeypatch.setattr(client, "run", lambda *args, **kwargs: found)
    with pytest.raises(ValueError, match=message):
        gdml.pp.embed(slides, "stain", client=client, cache_dir=tmp_path)


def test_a_folder_that_workers_do_not_see(slides, client, tmp_path, monkeypatch):
    """Each worker looks for a file that this process writes: here they look for another."""
    run = client.run
    monkeypatch.setattr(
        client,
        "run",
        lambda f, *args, **kwargs: run(f, *[Path("/no") if isinstance(a, Path) else a for a in args], **kwargs),
    )
    with pytest.raises(OSError, match="worker tcp://.*does not see.*file system that all machines share"):
        gdml.pp.embed(slides, "stain", client=client, cache_dir=tmp_path)
    assert "features" not in slides.uns["gdml"]


def test_a_worker_without_the_device_is_named(slides, client, tmp_path):
    with pytest.raises(ValueError, match="'cuda:7'") as raised:
        gdml.pp.embed(slides, "stain", device="cuda:7", client=client, cache_dir=tmp_path)
    assert "Raised on the worker tcp://" in raised.value.__notes__[0]


def test_precision_is_that_of_the_workers(slides, client, resnet, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_about", lambda device, precision: ("1", "bf16"))
    one = slides[slides.obs["library_id"] == "S1"][:1].copy()
    gdml.pp.embed(one, **resnet, client=client, cache_dir=tmp_path, tokens="pooled", neighbors="lattice")
    assert one.uns["gdml"]["features"]["precision"] == "bf16"


def task(slides, name="S1"):
    record = slides.uns["gdml"]["tiles"]["slides"][name]
    rows = np.flatnonzero(slides.obs["library_id"] == name)[:2]
    xy = np.asarray(slides.obsm["spatial"][rows], float)
    return SlideTask(name, record["image"], record, xy, 5, "lattice", Path("unused"))


def test_an_image_that_a_worker_cannot_see(slides):
    unseen = replace(task(slides), source="/elsewhere/S1.jpg")
    with pytest.raises(FileNotFoundError, match="'S1', '/elsewhere/S1.jpg', does not exist on the worker"):
        _cluster._embed_on_worker(unseen, Plan("stain"), "any")


def test_another_encoder_on_a_worker(slides, tmp_path):
    with pytest.raises(ValueError, match="'other', where|'other' where"):
        _cluster._embed_on_worker(replace(task(slides), folder=tmp_path), Plan("stain"), "other")


def test_threads_of_a_worker_take_turns(slides, monkeypatch):
    """Slides that were encoded at once would share the memory of the device, and its speed."""
    running, most = [], []

    def embed_slide(task, extractor, progress):
        running.append(task.name)
        most.append(len(running))
        time.sleep(0.05)
        running.remove(task.name)

    monkeypatch.setattr(_cluster, "embed_slide", embed_slide)
    identity = Plan("stain").make().identity
    threads = [
        threading.Thread(target=_cluster._embed_on_worker, args=(task(slides, name), Plan("stain"), identity))
        for name in ("S1", "S2", "S3")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]


def test_the_encoder_is_made_once_a_worker(slides, monkeypatch):
    made, make = [], Plan.make
    monkeypatch.setattr(Plan, "make", lambda plan: made.append(plan) or make(plan))
    monkeypatch.setattr(_cluster, "embed_slide", lambda *args: None)
    plan = Plan("stain", encoder_name="once")
    identity = make(plan).identity
    for name in ("S1", "S2", "S3"):
        _cluster._embed_on_worker(task(slides, name), plan, identity)
    assert len(made) == 1


def test_workers_that_die_of_a_slide(slides, client, tmp_path, monkeypatch):
    """As they do where memory runs out: the slide is named when the scheduler gives up on it."""

    def allow(dask_scheduler, n):
        before, dask_scheduler.allowed_failures = dask_scheduler.allowed_failures, n
        return before

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(_cluster, "_embed_on_worker", die)
    before = client.run_on_scheduler(allow, n=0)
    try:
        with pytest.raises(RuntimeError, match=r"'S\d': 1 worker died that had it.*smaller batch_size"):
            gdml.pp.embed(slides, "stain", client=client, cache_dir=tmp_path)
    finally:
        client.run_on_scheduler(allow, n=before)
    assert "features" not in slides.uns["gdml"]


def test_a_scheduler_that_goes_away(slides, tmp_path, monkeypatch):
    """No slide is done before: a fast machine would be done with all of them."""
    begun = threading.Event()

    def embed_slide(task, extractor, progress):
        begun.set()
        worker = distributed.get_worker()
        while worker.status == distributed.Status.running:
            time.sleep(0.01)

    monkeypatch.setattr(_cluster, "embed_slide", embed_slide)
    cluster = distributed.LocalCluster(1, threads_per_worker=1, processes=False, dashboard_address=":0")
    with distributed.Client(cluster) as client:

        def close():
            begun.wait()
            cluster.close()

        closer = threading.Thread(target=close, daemon=True)
        closer.start()
        with pytest.raises(ConnectionError, match="went away.*call again with a new client"):
            gdml.pp.embed(slides, "stain", cache_dir=tmp_path, client=client)
        closer.join()
    assert "features" not in slides.uns["gdml"]
