"""The training part of ``scale.py``: synthetic slides with their feature stores, and what learning from them takes."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SIDE_PX = 400.0
SMALL = {
    "config": {"width": 32, "branch_width": 32, "neighbor_depth": 1, "slide_depth": 1, "n_groups": 8},
    "training": {"max_epochs": 1, "refit": False},
}


def make_slides(folder: Path, n_slides: int, side: int, n_tokens: int, dim: int, n_genes: int = 50) -> Any:
    """Slides of side x side spots, one tile apart, with features and counts at random, as tiled and embedded."""
    import anndata as ad
    import pandas as pd
    from scipy import sparse

    from gdml.features import FeatureSpec, open_store, store_path

    rng = np.random.default_rng(0)
    n = side**2
    grid = np.stack([np.arange(n) // side, np.arange(n) % side], 1)
    xy = (grid[:, ::-1] + 0.5) * SIDE_PX
    spread = rng.normal(size=(dim, n_genes)) / dim**0.5
    slides, stores, counts = {}, {}, []
    for i in range(n_slides):
        name = f"S{i:03}"
        rng = np.random.default_rng(i)
        pooled = rng.normal(size=(n, dim)).astype(np.float16)
        spec = FeatureSpec(f"image {i}", f"noise {n_tokens} {dim}", 0.25, SIDE_PX, 224, "all")
        path = store_path(folder, spec)
        if not path.exists():
            store = open_store(folder, spec, n_tokens=n_tokens, dim=dim)
            for at in np.array_split(np.arange(n), max(1, n // 2000)):
                tokens = rng.normal(size=(len(at), n_tokens, dim)).astype(np.float16)
                store.append(xy[at], tokens, pooled[at])
        stores[name] = str(path)
        size = int(side * SIDE_PX)
        about = {"side_px": SIDE_PX, "um_per_px": 0.25, "width": size, "height": size, "image": "in memory"}
        slides[name] = {**about, "fingerprint": f"image {i}"}
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
    return adata


class Peak:
    """Peak of the anonymous memory of this process above what it is at the start, MiB; mapped files are not in it."""

    def __init__(self) -> None:
        from scale import Memory

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

    adata = make_slides(folder / "warm", 2, 8, 4, 16)
    gdml.pp.normalize(adata, n_genes=10)
    gdml.tl.cross_validate(
        adata, {"a": {"model": "gene-dml", **SMALL}, "b": "stnet"}, save_to=folder / "warm-runs", max_epochs=1
    )


def verbs(folder: Path, n_slides: int, what: str) -> dict[str, float]:
    """Peak memory of fit, or of one fold of cross_validate."""
    import gdml

    warm_up(folder)
    adata = make_slides(folder / "stores", n_slides, 12, 10, 128)
    gdml.pp.normalize(adata, n_genes=50)
    names = list(adata.uns["gdml"]["tiles"]["slides"])
    start = time.perf_counter()
    with Peak() as peak:
        if what == "fit":
            gdml.tl.fit(adata, "gene-dml", validation=None, save_to=folder / f"model-{n_slides}", **SMALL)
        else:
            folds = {"x": (names[:-2], names[-2:])}
            models = {"m": {"model": "gene-dml", **SMALL}}
            gdml.tl.cross_validate(adata, models, folds=folds, validation=None, save_to=folder / f"runs-{n_slides}")
    about = {"slides": n_slides, "spots": adata.n_obs, "what": what}
    targets = adata.n_obs * 50 * 4 / 2**20
    return {**about, "MiB": peak.mib, "targets": targets, "seconds": time.perf_counter() - start}


def stnet(folder: Path) -> dict[str, float]:
    """Peak memory of ST-Net on slides with 1 GB of tokens."""
    import gdml

    warm_up(folder)
    adata = make_slides(folder / "tokens", 40, 20, 50, 640)
    gdml.pp.normalize(adata, n_genes=50)
    with Peak() as peak:
        gdml.tl.fit(adata, "stnet", max_epochs=2, validation=None, save_to=folder / "stnet")
    return {"GB of tokens": adata.n_obs * 50 * 640 * 2 / 1e9, "MiB": peak.mib}


def speed(folder: Path, model: str) -> dict[str, Any]:
    """Training speed from disk and from memory, spots per second; alternating, the best of three."""
    import torch

    from gdml.features import MemoryBank
    from gdml.models.base import get_model, make_config
    from gdml.spots.data import spot_data
    from gdml.spots.resolve import Spots
    from gdml.training.config import make_training_config
    from gdml.training.data import SlideSpots, SpotData
    from gdml.training.fabric import make_fabric
    from gdml.training.loop import Trainer, seeded

    adata = make_slides(folder / "speed", 4, 16, 50, 256)
    disk, _ = spot_data(Spots.resolve(adata), expression=np.log1p(adata.X.toarray()))
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
    for _ in range(3):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.epoch()
            rates[name].append(len(disk) / (time.perf_counter() - start))
    best = {name: max(found) for name, found in rates.items()}
    return {"model": model, **best, "ratio": best["disk"] / best["memory"]}


def prediction(folder: Path, n: int, model: str) -> dict[str, float]:
    """Time and peak memory of predicting the first ``n`` spots of a slide."""
    import torch

    from gdml.models.base import get_model, make_config
    from gdml.spots.data import spot_data
    from gdml.spots.resolve import Spots
    from gdml.training.fabric import make_fabric
    from gdml.training.loop import predict

    side = round(n**0.5)
    adata = make_slides(folder / f"slide-{side}", 1, side, 5, 64, n_genes=20)
    data, _ = spot_data(Spots.resolve(adata))
    model_class, fabric = get_model(model), make_fabric("cpu")
    shape = data.shape().__class__(64, 5, 5, 20, side, side)
    torch.manual_seed(0)
    module = model_class(make_config(model_class, None, SMALL["config"] if model == "gene-dml" else {}), shape).eval()
    predict(module, data, fabric, rows=torch.arange(600))
    with Peak() as peak:
        start = time.perf_counter()
        predict(module, data, fabric)
    return {"spots": len(data), "seconds": time.perf_counter() - start, "MiB": peak.mib}


def in_process(folder: Path, *arguments: object) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("scale.py")), "memory", "--folder", str(folder), "--one"]
    done = subprocess.run([*command, json.dumps(arguments)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---:|" * len(rows[0]))
    for row in rows:
        print(
            "| "
            + " | ".join(
                f"{v:.3g}" if isinstance(v, float) and v < 10 else f"{v:.0f}" if isinstance(v, float) else str(v)
                for v in row.values()
            )
            + " |",
            flush=True,
        )


PARTS = {
    "verbs": lambda folder: [
        in_process(folder, "verbs", n, what) for what in ("fit", "cross_validate") for n in (5, 50, 200)
    ],
    "stnet": lambda folder: [in_process(folder, "stnet")],
    "speed": lambda folder: [in_process(folder, "speed", model) for model in ("gene-dml", "triplex")],
    "prediction": lambda folder: [in_process(folder, "prediction", n, "gene-dml") for n in (25_000, 50_000, 100_000)],
}


def main(args: argparse.Namespace) -> None:
    """Print the tables, or measure one thing."""
    if args.one is not None:
        what, *arguments = json.loads(args.one)
        measure = {"verbs": verbs, "stnet": stnet, "speed": speed, "prediction": prediction}[what]
        print(json.dumps(measure(args.folder, *arguments)))
        return
    for part in args.parts or PARTS:
        table(PARTS[part](args.folder))
