"""The image-only part of ``scale.py``: one slide without spots, from its file to predictions, and after a kill."""

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _scale_training import EXACT, SMALL, Peak, table

UM_PER_PX, TILE_UM = 0.5, 112.0
TILE_PX = int(TILE_UM / UM_PER_PX)
GLASS_PX = 2 * TILE_PX  # around the tissue
GLASS = [246, 243, 241]


def make_slide(folder: Path, n_tiles: int) -> dict[str, Any]:
    """Write a pyramidal TIFF with a square of tissue of at least ``n_tiles`` tiles within glass."""
    import pyvips
    from scale import TEXTURE_PX

    import gdml

    path = folder / f"grid-{n_tiles}.tiff"
    if path.exists():
        return {}
    with tempfile.TemporaryDirectory() as scratch:
        made = gdml.datasets.synthetic(1, 1, grid=8, n_genes=10, um_per_px=UM_PER_PX, path=scratch)
        (of_slide,) = made.uns["spatial"].values()
        texture = pyvips.Image.new_from_file(of_slide["metadata"]["source_image_path"]).copy_memory()
    middle = (texture.width - TEXTURE_PX) // 2
    side = int(np.ceil(np.sqrt(n_tiles))) * TILE_PX
    times = -(-side // TEXTURE_PX)
    tissue = texture.crop(middle, middle, TEXTURE_PX, TEXTURE_PX).replicate(times, times).crop(0, 0, side, side)
    whole = side + 2 * GLASS_PX
    slide = tissue.embed(GLASS_PX, GLASS_PX, whole, whole, extend="background", background=GLASS)
    part = path.with_suffix(".part.tiff")
    start = time.perf_counter()
    try:
        slide.tiffsave(
            str(part), tile=True, tile_width=256, tile_height=256, pyramid=True, compression="jpeg", Q=80, bigtiff=True,
            xres=1000 / UM_PER_PX, yres=1000 / UM_PER_PX,
        )  # fmt: skip
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    seconds = time.perf_counter() - start
    print(
        f"made {path.name}: {whole} x {whole} px, {path.stat().st_size / 2**20:.0f} MiB in {seconds:.0f} s", flush=True
    )
    return {}


def make_model(folder: Path) -> dict[str, Any]:
    """Train a small Gene-DML on synthetic slides; all tokens of the encoder "stain"."""
    import gdml

    if not (folder / "model").exists():
        adata = gdml.datasets.synthetic(2, 1, grid=8, n_genes=60, path=folder / "synthetic")
        gdml.pp.tile(adata, TILE_UM)
        gdml.pp.embed(adata, "stain", cache_dir=folder / "warm")
        gdml.pp.normalize(adata, n_genes=50)
        gdml.tl.fit(adata, "gene-dml", save_to=folder / "model", validation=None, **SMALL)
    return {}


def one_slide(folder: Path, n_tiles: int, largest: int, cache: Path) -> dict[str, Any]:
    """Time and peak memory of grid, embed and predict for ``n_tiles`` of the slide."""
    import torch
    from compare import matmul_rate

    import gdml

    side = int(np.ceil(np.sqrt(n_tiles))) * TILE_PX
    box = (GLASS_PX, GLASS_PX, GLASS_PX + side, GLASS_PX + side)
    path, model = folder / f"grid-{largest}.tiff", gdml.load(folder / "model")
    with contextlib.redirect_stderr(io.StringIO()):  # every library and kernel is loaded, so that idle is idle
        warm = tuple(GLASS_PX + TILE_PX * at for at in (0, 0, 8, 8))
        gdml.settings.cache_dir = folder / "warm"
        gdml.tl.predict(path, model, region=warm)
    gdml.settings.cache_dir = cache
    rate = matmul_rate(torch.float32)
    spent, peaks = {}, {}

    @contextlib.contextmanager
    def measured(name: str) -> Any:
        with Peak() as peak:
            start = time.perf_counter()
            yield
            spent[name] = time.perf_counter() - start
        peaks[name] = peak.mib

    with Peak() as whole:
        with measured("grid"):
            slide = gdml.pp.grid(path, TILE_UM, region=box)
        with measured("embed"):
            gdml.pp.embed(slide, "stain")
        with measured("predict"):
            gdml.tl.predict(slide, model)
    np.save(cache / "predicted.npy", slide.obsm["gdml"].to_numpy())
    results = sum(np.asarray(part).nbytes for part in slide.obsm.values())
    return {
        "tiles": slide.n_obs,
        **{f"{name}, s": value for name, value in spent.items()},
        "ms a tile": 1000 * sum(spent.values()) / slide.n_obs,
        **{f"{name}, MiB": value for name, value in peaks.items()},
        "peak above idle, MiB": whole.mib,
        "results in obsm, MiB": results / 2**20,
        "matrix products, 1e9/s": rate,
    }


def stored(cache: Path) -> int:
    """Tiles in all stores of a cache."""
    from gdml.features.store import open_path

    return sum(len(open_path(path.parent)) for path in cache.glob("features/*/gdml.json"))


def contents(cache: Path) -> dict[str, bytes]:
    """Digest of every file of the stores of a cache."""
    from hashlib import blake2b

    files = sorted(path for path in cache.glob("features/**/*") if path.is_file())
    return {str(path.relative_to(cache)): blake2b(path.read_bytes()).digest() for path in files}


def killed(folder: Path, n_tiles: int, undisturbed: Path) -> dict[str, Any]:
    """Kill the process when half of the tiles are stored, call it again, and compare."""
    whole = stored(undisturbed)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        cache = Path(made)
        arguments = ["one_slide", str(n_tiles), str(n_tiles), str(cache)]
        process = subprocess.Popen(command(folder, arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and stored(cache) < whole // 2:
            time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
        status, before = process.wait(), stored(cache)
        start = time.perf_counter()
        again = in_process(folder, arguments)
        return {
            "tiles": again["tiles"],
            "exit status of the first call": status,
            "tiles stored by it": before,
            "encoded by the second": stored(cache) - before,
            "encoded without a kill": whole,
            "second call, s": time.perf_counter() - start,
            "same stores": contents(cache) == contents(undisturbed),
            "same predictions": np.array_equal(
                np.load(cache / "predicted.npy"), np.load(undisturbed / "predicted.npy")
            ),
        }


def command(folder: Path, arguments: list[str]) -> list[str]:
    """Call of one measurement in a process of its own."""
    script = str(Path(__file__).with_name("scale.py"))
    return [sys.executable, script, "grid", "--folder", str(folder), "--one", json.dumps(arguments)]


def in_process(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Measure in a process of its own."""
    environment = {**os.environ, **EXACT}
    done = subprocess.run(command(folder, arguments), check=True, stdout=subprocess.PIPE, text=True, env=environment)
    lines = done.stdout.splitlines()
    for line in lines[:-1]:
        print(line, flush=True)
    return json.loads(lines[-1])


def main(args: argparse.Namespace) -> None:
    """Print the tables, or measure one thing."""
    folder = args.folder
    if args.one is not None:
        what, *rest = json.loads(args.one)
        if what == "one_slide":
            print(json.dumps(one_slide(folder, int(rest[0]), int(rest[1]), Path(rest[2]))))
        else:
            print(json.dumps(make_slide(folder, int(rest[0])) if what == "slide" else make_model(folder)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    largest = max(args.tiles)
    in_process(folder, ["slide", str(largest)])
    in_process(folder, ["model"])
    with tempfile.TemporaryDirectory(dir=folder) as made:
        caches = {n: Path(made) / str(n) for n in sorted(args.tiles)}
        for cache in caches.values():
            cache.mkdir()
        rows = (in_process(folder, ["one_slide", str(n), str(largest), str(cache)]) for n, cache in caches.items())
        table(rows)
        if args.kill:
            table([killed(folder, largest, caches[largest])])
