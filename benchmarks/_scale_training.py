"""The training part of ``scale.py``: synthetic slides with their feature stores, and what learning from them takes."""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

SIDE_PX = 400.0
SMALL = {
    "config": {"width": 32, "branch_width": 32, "neighbor_depth": 1, "slide_depth": 1, "n_groups": 8},
    "training": {"max_epochs": 1, "refit": False},
}


def make_slides(folder: Path, name: str) -> dict[str, Any]:
    """Write slides of side x side spots, one tile apart, tiled, embedded and normalised, to ``name``.h5ad.

    Features and counts are random.
    """
    import anndata as ad
    import pandas as pd
    from scipy import sparse

    import gdml
    from gdml.features import FeatureSpec, open_store
    from gdml.features.store import store_path

    n_slides, side, n_tokens, dim, n_genes = DATA[name]
    rng = np.random.default_rng(0)
    n = side**2
    grid = np.stack([np.arange(n) // side, np.arange(n) % side], 1)
    xy = (grid[:, ::-1] + 0.5) * SIDE_PX
    spread = rng.normal(size=(dim, n_genes)) / dim**0.5
    slides, stores, counts = {}, {}, []
    for i in range(n_slides):
        slide = f"S{i:03}"
        rng = np.random.default_rng(i)
        pooled = rng.normal(size=(n, dim)).astype(np.float16)
        spec = FeatureSpec(f"image {i}", f"noise {side} {n_tokens} {dim}", 0.25, SIDE_PX, 224, "all")
        path = store_path(folder / "stores", spec)
        if not path.exists():
            store = open_store(folder / "stores", spec, n_tokens=n_tokens, dim=dim)
            for at in np.array_split(np.arange(n), max(1, n // 2000)):
                tokens = rng.normal(size=(len(at), n_tokens, dim)).astype(np.float16)
                store.append(xy[at], tokens, pooled[at])
        stores[slide] = str(path)
        size = int(side * SIDE_PX)
        about = {"side_px": SIDE_PX, "um_per_px": 0.25, "width": size, "height": size, "image": "in memory"}
        slides[slide] = {**about, "fingerprint": f"image {i}"}
        counts.append(sparse.csr_matrix(rng.poisson(np.exp(1 + pooled.astype(np.float32) @ spread)), dtype=np.float32))
    obs = pd.DataFrame(np.tile(grid, (n_slides, 1)), columns=["array_row", "array_col"])
    obs["library_id"] = np.repeat(list(slides), n)
    obs.index = obs.index.astype(str)
    adata = ad.AnnData(sparse.vstack(counts, "csr"), obs=obs, obsm={"spatial": np.tile(xy, (n_slides, 1))})
    keys = {"library_key": "library_id", "spatial_key": "spatial"}
    adata.uns["gdml"] = {
        "tiles": {**keys, "tile_um": 100.0, "tile_px": 224, "n_side": 5, "slides": slides},
        "features": {
            **{"encoder": "noise", "identity": "noise", "precision": "fp32", "tokens": "all", "neighbors": "lattice"},
            **{"n_tokens": n_tokens, "dim": dim, "stores": {"own": stores, "neighbors": stores}, "keys": {}},
        },
    }
    gdml.pp.normalize(adata, n_genes=n_genes)
    adata.write_h5ad(folder / f"{name}.h5ad")
    return {}


def read(folder: Path, name: str) -> Any:
    """AnnData of ``make_slides``."""
    import anndata as ad

    return ad.read_h5ad(folder / f"{name}.h5ad")


class Peak:
    """Peak of the anonymous memory of this process above what it is at the start, MiB; mapped files are not in it."""

    def __init__(self) -> None:
        from scale import Memory

        gc.collect()
        if sys.platform == "linux":  # memory that was freed must not serve what is measured unseen
            ctypes.CDLL("libc.so.6").malloc_trim(0)

        class Anonymous(Memory):
            def __init__(self) -> None:
                super().__init__()
                import psutil

                process = psutil.Process()
                self._rss = lambda: (found := process.memory_info()).rss - found.shared
                self.least = self.most = self._rss()

        self._watch = Anonymous()

    def __enter__(self) -> "Peak":
        self._start = self._watch.most
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.mib = (self._watch.stop().most - self._start) / 2**20


def warm_up(folder: Path) -> None:
    """Load every library and kernel, so that idle is idle."""
    import gdml

    with tempfile.TemporaryDirectory() as runs:
        models = {"a": {"model": "gene-dml", **SMALL}, "b": "stnet"}
        gdml.tl.cross_validate(read(folder, "warm"), models, save_to=runs, max_epochs=1)


def index_bytes(data: Any) -> int:
    """Bytes of the arrays that a run holds for its spots, targets aside."""
    for slide in data.slides:
        assert len(slide.nearest) == len(slide.stripe)  # computed when they are first read
    return sum(part.nbytes for slide in data.slides for part in vars(slide).values() if isinstance(part, np.ndarray))


def verbs(folder: Path, name: str, what: str) -> dict[str, Any]:
    """Peak memory of fit, or of one fold of cross_validate, above the process that has read the AnnData."""
    import gdml
    from gdml.spots.data import spot_data
    from gdml.spots.resolve import Spots

    warm_up(folder)
    adata = read(folder, name)
    slides, before = list(adata.uns["gdml"]["tiles"]["slides"]), set(adata.obsm)
    with tempfile.TemporaryDirectory() as made, Peak() as peak:
        start = time.perf_counter()
        if what == "fit":
            gdml.tl.fit(adata, "gene-dml", validation=None, save_to=Path(made) / "model", **SMALL)
        else:
            folds = {"x": (slides[:-2], slides[-2:])}
            models = {"m": {"model": "gene-dml", **SMALL}}
            gdml.tl.cross_validate(adata, models, folds=folds, validation=None, save_to=made)
        seconds = time.perf_counter() - start
    n = adata.n_obs
    index, targets = index_bytes(spot_data(Spots.resolve(adata))[0]), adata.obsm["gdml_measured"].shape[1] * 4 * n
    written = sum(np.asarray(adata.obsm[name]).nbytes for name in set(adata.obsm) - before)
    return {
        "verb": what,
        "slides": len(slides),
        "spots": n,
        "peak above idle, MiB": peak.mib,
        "index, bytes a spot": index / n,
        "index, MiB": index / 2**20,
        "targets, MiB": targets / 2**20,
        "results in obsm, MiB": written / 2**20,
        "peak less these, MiB": peak.mib - (index + targets + written) / 2**20,
        "time, s": seconds,
    }


def tokens(folder: Path) -> dict[str, Any]:
    """Peak memory of ST-Net on slides with 1 GB of tokens, above the process before it has read the AnnData."""
    import gdml

    warm_up(folder)
    with tempfile.TemporaryDirectory() as made, Peak() as peak:
        adata = read(folder, "tokens")
        gdml.tl.fit(adata, "stnet", max_epochs=2, validation=None, save_to=Path(made) / "model")
    features = adata.uns["gdml"]["features"]
    stored = adata.n_obs * int(features["n_tokens"]) * int(features["dim"]) * 2
    return {"model": "stnet", "spots": adata.n_obs, "tokens, GB": stored / 1e9, "peak above idle, MiB": peak.mib}


def speed(folder: Path, model: str) -> dict[str, Any]:
    """Training speed from disk and from memory, spots per second; alternating, the best of five."""
    import torch
    from compare import matmul_rate

    from gdml.features import MemoryBank
    from gdml.models.base import get_model, make_config
    from gdml.spots.data import spot_data
    from gdml.spots.resolve import Spots
    from gdml.training.config import make_training_config
    from gdml.training.data import SlideSpots, SpotData
    from gdml.training.fabric import make_fabric
    from gdml.training.loop import Trainer, seeded

    adata = read(folder, "speed")
    disk, _ = spot_data(Spots.resolve(adata), expression=adata.obsm["gdml_measured"].to_numpy(np.float32))
    held = []
    for slide in disk.slides:
        n = len(slide.bank)
        bank: Any = MemoryBank(slide.bank.tokens(np.arange(n)), slide.bank.pooled(np.arange(n)))
        held.append(SlideSpots(slide.name, slide.group, bank, slide.own, slide.neighbors, slide.grid, slide.xy))
    fabric, model_class = make_fabric("cpu"), get_model(model)
    rates: dict[str, list[float]] = {"disk": [], "memory": []}
    trainers = {}
    for name, data in {"disk": disk, "memory": SpotData(held, disk.expression)}.items():
        with seeded(0, fabric.device) as generator:
            made = model_class(make_config(model_class, None, {}), data.shape())
            rows = torch.arange(len(data))
            made.prepare(data.in_order(rows, 128, made.needs))
            trainers[name] = Trainer(made, data, rows, make_training_config(model_class.recipe), fabric, generator)
            trainers[name].epoch()
    for _ in range(5):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.epoch()
            rates[name].append(len(disk) / (time.perf_counter() - start))
    best = {name: max(found) for name, found in rates.items()}
    return {
        "model": model,
        "from disk, spots/s": best["disk"],
        "from memory, spots/s": best["memory"],
        "disk / memory": best["disk"] / best["memory"],
        "matrix products, 1e9/s": matmul_rate(torch.float32),
    }


def prediction(folder: Path, name: str, model: str) -> dict[str, Any]:
    """Time and peak memory of predicting a slide."""
    import torch
    from compare import matmul_rate

    from gdml.models.base import get_model, make_config
    from gdml.spots.data import spot_data
    from gdml.spots.resolve import Spots
    from gdml.training.fabric import make_fabric
    from gdml.training.loop import predict

    data, _ = spot_data(Spots.resolve(read(folder, name)))
    model_class, fabric = get_model(model), make_fabric("cpu")
    shape = replace(data.shape(), n_genes=250)
    torch.manual_seed(0)
    module = model_class(make_config(model_class, None, SMALL["config"] if model == "gene-dml" else {}), shape).eval()
    predict(module, data, fabric, rows=torch.arange(600))
    with Peak() as peak:
        start = time.perf_counter()
        predict(module, data, fabric)
        seconds = time.perf_counter() - start
    outputs = len(data) * 4 * (shape.n_genes + (module.config.width if module.shared_space else 0)) / 2**20
    index = index_bytes(data)
    return {
        "model": model,
        "spots": len(data),
        "time, s": seconds,
        "ms a spot": 1000 * seconds / len(data),
        "peak above idle, MiB": peak.mib,
        "output, MiB": outputs,
        "peak less output, MiB": peak.mib - outputs,
        "index, bytes a spot": index / len(data),
        "matrix products, 1e9/s": matmul_rate(torch.float32),
    }


#: What gdml holds, rather than what libraries keep for the next call: freed memory goes back to the system at once, and
#: oneDNN keeps none of the kernels (1,024 by default) that it compiles for each new size of a batch.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1"}


def in_process(folder: Path, *arguments: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("scale.py")), "memory", "--folder", str(folder), "--one"]
    environment = {**os.environ, **(EXACT if arguments[0] in ("verbs", "tokens", "prediction") else {})}
    done = subprocess.run(
        [*command, json.dumps(arguments)], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: Iterable[dict[str, Any]]) -> None:
    """Print rows as a table, each as soon as it is measured."""
    for i, row in enumerate(rows):
        if not i:
            print("\n| " + " | ".join(row) + " |\n|" + "---:|" * len(row))
        values = (
            f"{v:.3g}" if isinstance(v, float) and v < 10 else f"{v:.0f}" if isinstance(v, float) else str(v)
            for v in row.values()
        )
        print("| " + " | ".join(values) + " |", flush=True)


#: Data sets by name: slides, spots along one side of a slide, tokens of a tile, their width, genes.
DATA = {
    "warm": (2, 8, 4, 16, 10),
    **{f"slides-{n}": (n, 12, 10, 128, 50) for n in (5, 50, 200)},
    "tokens": (40, 20, 50, 640, 50),
    "speed": (4, 16, 50, 256, 50),
    **{f"spots-{side}": (1, side, 5, 64, 20) for side in (158, 224, 316)},
}
MEASURES = {"make": make_slides, "verbs": verbs, "tokens": tokens, "speed": speed, "prediction": prediction}
#: Rows of each table: what is measured, and with which arguments; the first argument may be a data set.
PARTS: dict[str, list[tuple[str, ...]]] = {
    "verbs": [("verbs", f"slides-{n}", what) for what in ("fit", "cross_validate") for n in (5, 50, 200)],
    "tokens": [("tokens",)],
    "speed": [("speed", model) for model in ("gene-dml", "triplex")],
    "prediction": [("prediction", f"spots-{side}", "gene-dml") for side in (158, 224, 316)],
}


def main(args: argparse.Namespace) -> None:
    """Print the tables, or measure one thing."""
    if args.one is not None:
        what, *arguments = json.loads(args.one)
        print(json.dumps(MEASURES[what](args.folder, *arguments)))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    for part in args.parts or PARTS:
        rows = PARTS[part]
        for name in {"warm", *(word for row in rows for word in row)} & DATA.keys():
            if not (args.folder / f"{name}.h5ad").exists():
                in_process(args.folder, "make", name)
        table(in_process(args.folder, *row) for row in rows)
