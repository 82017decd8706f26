"""A corpus of synthetic slides on a Dask cluster of two workers, one of which is killed twice.

Reports: whether every slide was done once and with the bytes of one process; the time per slide of the engine beside a
plain loop; the throughput of two workers beside one; and the machine's matrix products, to compare machines by. Run it on a quiet machine:

    python benchmarks/corpus.py [--slides 100] [--grid 7] [--encoder stain]
"""

import argparse
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from dask.distributed import Client, LocalCluster

import gdml
from gdml.corpus.folder import open_folder
from gdml.corpus.job import Job
from gdml.corpus.manifest import read_manifest
from gdml.corpus.run import run_here, start


def main() -> None:
    """Measure, and print each figure as soon as it is known."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--slides", type=int, default=100)
    arguments.add_argument("--grid", type=int, default=7, help="spots along a side of a slide")
    arguments.add_argument("--encoder", default="stain")
    chosen = arguments.parse_args()
    import scanpy as sc

    sc.settings.verbosity = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        gdml.settings.cache_dir = root / "cache"
        print(f"matrix products: {matmul_gflops():.0f} GFLOP/s with one thread, float32")
        manifest, model = make(root, chosen.slides, chosen.grid, chosen.encoder)
        gdml.settings.cache_dir = root / "empty"  # nothing is found there
        run = partial(predict, manifest, model, root)
        gdml.tl.predict_slides(manifest[:1], model, root / "warm-up")
        seconds, _ = run("one process")
        per_slide = seconds / len(manifest)
        print(f"one process: {seconds:.1f} s, {per_slide:.2f} s a slide")
        print(f"engine without work: {1e3 * overhead(manifest, root):.1f} ms a slide more than a plain loop")
        for n in (1, 2):
            with cluster(n) as client:
                alone, _ = run(f"{n} workers", client=client)
                print(f"LocalCluster, {n} worker(s): {alone:.1f} s, {len(manifest) / alone:.2f} slides/s", flush=True)
        with cluster(2) as client:
            killer = Killer(client, root / "killed")
            killer.start()
            seconds, table = run("killed", client=client)
            killer.join()
        print(f"LocalCluster, 2 workers, {killer.kills} killed on the way: {seconds:.1f} s")
        states = Counter(table["state"])
        same = {name: contents(root / name) == contents(root / "one process") for name in ("2 workers", "killed")}
        print(f"states: {dict(states)}; results: {len(list((root / 'killed').glob('*.zarr')))}; same bytes: {same}")


def matmul_gflops(n: int = 1500) -> float:
    """Rate of float32 matrix products with one thread, the best of five."""
    import torch

    torch.set_num_threads(1)
    left, right = torch.rand(n, n), torch.rand(n, n)
    best = np.inf
    for _ in range(5):
        begun = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - begun)
    return 2 * n**3 / best / 1e9


def make(root: Path, n_slides: int, grid: int, encoder: str) -> tuple[pd.DataFrame, Path]:
    """Manifest of synthetic slides, and the folder of a ridge that was fitted on four others."""
    train = gdml.datasets.synthetic(n_slides=4, n_patients=2, grid=grid, n_genes=60, seed=1)
    gdml.pp.embed(train, encoder)
    gdml.pp.normalize(train, n_genes=50)
    gdml.tl.fit(train, "ridge", group_key="patient").save(root / "model")
    slides = gdml.datasets.synthetic(n_slides=n_slides, n_patients=n_slides, grid=grid, n_genes=4, seed=0)
    images = {s: slides.uns["spatial"][s]["metadata"]["source_image_path"] for s in slides.obs["library_id"].unique()}
    manifest = pd.DataFrame({"path": list(images.values()), "name": list(images), "um_per_px": 1.0})
    return manifest, root / "model"


def predict(manifest: pd.DataFrame, model: Path, root: Path, name: str, **engine) -> tuple[float, pd.DataFrame]:
    """Seconds and table of a run into a folder of its own."""
    begun = time.perf_counter()
    table = gdml.tl.predict_slides(manifest, model, root / name, **engine)
    return time.perf_counter() - begun, table


def overhead(manifest: pd.DataFrame, root: Path) -> float:
    """Seconds a slide that claims, states and publishing take, beyond a loop that writes the same file."""
    items = read_manifest(manifest)
    folder = open_folder(root / "engine", "predictions", {}, suffix=".zarr")
    job = Job(folder, small)
    begun = time.perf_counter()
    run_here(job, items, start(job, items), lambda state: None)
    engine = time.perf_counter() - begun
    begun = time.perf_counter()
    for item in items:
        small(item, root / f"loop-{item.name}", root)
    return (engine - (time.perf_counter() - begun)) / len(items)


def small(item, result: Path, scratch: Path) -> dict:
    """Write a file."""
    result.mkdir()
    (result / "file").write_bytes(b"result")
    return {}


class cluster:
    """A LocalCluster of n workers that have loaded what they need."""

    def __init__(self, n: int) -> None:
        self._cluster = LocalCluster(n_workers=n, threads_per_worker=1, dashboard_address=":0")
        self._client = Client(self._cluster)
        self._client.run(load)

    def __enter__(self) -> Client:
        return self._client

    def __exit__(self, *error) -> None:
        with suppress(TimeoutError):  # Dask gives busy machines little time to stop its processes
            self._client.close()
            self._cluster.close()


def load() -> None:
    """Import what a worker needs, which is no part of a slide's time."""
    import gdml.tl._predict_slide
    import gdml.training.trained  # noqa: F401


class Killer(threading.Thread):
    """Kills a worker when a quarter, and again when half, of the slides are done."""

    def __init__(self, client: Client, out: Path) -> None:
        super().__init__(daemon=True)
        self._client, self._out, self.kills = client, out, 0

    def run(self) -> None:
        """Wait, and kill."""
        states = self._out / "state"
        while not states.exists():
            time.sleep(0.01)
        for share in (0.25, 0.5):
            while len(list(self._out.glob("*.zarr"))) < share * len(list(states.glob("[!.]*.json"))):
                time.sleep(0.05)
            pids = self._client.run(os.getpid)
            os.kill(next(iter(pids.values())), signal.SIGKILL)
            self.kills += 1
            time.sleep(1)


def contents(out: Path) -> dict[str, bytes]:
    """Bytes of all files of all results."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("*.zarr/**/*")) if p.is_file()}


if __name__ == "__main__":
    main()
