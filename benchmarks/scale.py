"""Large data: memory stays bounded, time is linear in spots.

    python benchmarks/scale.py memory --folder /scratch           # training and prediction
    python benchmarks/scale.py grid --folder /scratch             # one slide without spots
    OMP_WAIT_POLICY=passive python benchmarks/scale.py --folder /scratch     # embedding

``memory`` makes synthetic feature stores and prints four tables: ``verbs``, peak memory of ``fit`` and
``cross_validate`` on 5, 50 and 200 slides, with the size of the index, the targets and the results; ``tokens``, of ST-Net
on a set with 1 GB of tokens, above the process that has not opened it; ``speed``, of training from disk and from memory;
and ``prediction`` of 25,000 to 100,000 spots of one slide, whose predictions are 4 bytes per gene and spot. ``memory
speed`` prints one of the tables. The data are made in other processes, and every figure is of a process of its own.
Memory is what is resident above the idle process, mapped files aside, with freed memory returned at once and oneDNN's
cache of compiled kernels off. Contexts of slides that are kept for the next batch are in it, 32 MiB at most (or those
of one batch). Speeds stand beside the rate of the machine's own matrix products.

``grid`` makes a pyramidal TIFF with 100,000 tiles of 112 um of tissue within glass and takes a quarter, a half and all of
it from the file to predictions: ``gdml.pp.grid``, ``gdml.pp.embed`` with the encoder "stain" and 50 tokens a tile, and
``gdml.tl.predict`` with a small Gene-DML. Then the largest is killed when half of its tiles are stored, called again, and
compared with the undisturbed run byte by byte.

Without either a large slide is embedded:

    OMP_WAIT_POLICY=passive python benchmarks/scale.py --folder /scratch
    python benchmarks/scale.py --folder /scratch --encoder timm:resnet18 --neighbors exact --spots 2000

Makes a pyramidal TIFF of 60,000 x 60,000 px (JPEG tiles, 0.25 um/px) in ``--folder`` unless it is there, and embeds a
quarter, a half and all of 20,000 spots of it, 100 um apart, each in a process of its own. Memory is what is resident
above the idle process: after all imports, with the encoder made and one tile encoded. The default encoder is one small
convolution, so that reading takes most of the time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np

UM_PER_PX, PITCH_UM = 0.25, 100.0
TEXTURE_PX = 2048


def make_slide(folder: Path, side: int) -> Path:
    """Write the slide, tissue repeated over all of it; it appears under its name when it is whole."""
    import pyvips

    import gdml

    path = folder / f"scale-{side}.tiff"
    if path.exists():
        return path
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        made = gdml.datasets.synthetic(1, 1, grid=8, n_genes=10, um_per_px=0.5, path=scratch)
        (of_slide,) = made.uns["spatial"].values()
        texture = pyvips.Image.new_from_file(of_slide["metadata"]["source_image_path"]).copy_memory()
    middle = (texture.width - TEXTURE_PX) // 2
    texture = texture.crop(middle, middle, TEXTURE_PX, TEXTURE_PX)
    times = -(-side // TEXTURE_PX)
    part = path.with_suffix(".part.tiff")
    try:
        texture.replicate(times, times).crop(0, 0, side, side).tiffsave(
            str(part), tile=True, tile_width=256, tile_height=256, pyramid=True, compression="jpeg", Q=80, bigtiff=True
        )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    print(f"made {path.name}: {path.stat().st_size / 2**20:.0f} MiB in {time.perf_counter() - start:.0f} s", flush=True)
    return path


def spots_on(path: Path, n: int, per_row: int):
    """First ``n`` spots of a square grid of ``per_row`` in a row, tiled."""
    import anndata as ad

    import gdml

    at = np.arange(n)
    xy = (np.stack([at % per_row, at // per_row], 1) + 0.75) * PITCH_UM / UM_PER_PX
    adata = ad.AnnData(np.zeros((n, 1), np.float32), obsm={"spatial": xy})
    gdml.pp.tile(adata, image=path, um_per_px=UM_PER_PX)
    return adata


def make_encoder(name: str | None):
    """Make an encoder by name (random weights for timm:...), or one convolution with 50 tokens of 64."""
    import torch

    from gdml.encoders import get_encoder

    if name is not None:
        return get_encoder(name, **({"pretrained": False} if name.startswith("timm:") else {}))

    class OneConvolution(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 64, 32, 32)

        def forward(self, tiles):
            return self.convolution(tiles).flatten(2).transpose(1, 2)

    torch.manual_seed(0)
    return get_encoder(OneConvolution(), tile_px=224)


class Memory(threading.Thread):
    """Looks at the resident memory of this process a hundred times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        import psutil

        self._rss = lambda: psutil.Process().memory_info().rss
        self._told = threading.Event()
        self.least = self.most = self._rss()

    def run(self) -> None:
        """Look until told to stop."""
        while not self._told.wait(0.01):
            self.least, self.most = min(self.least, rss := self._rss()), max(self.most, rss)

    def stop(self) -> "Memory":
        """Stop looking."""
        self._told.set()
        self.join()
        return self


def embed_one(path: Path, n: int, per_row: int, args: argparse.Namespace) -> dict[str, float]:
    """Embed ``n`` spots in this process; what it took."""
    import torch

    import gdml
    from gdml.encoders.device import resolve_device

    adata, encoder = spots_on(path, n, per_row), make_encoder(args.encoder)
    warm = torch.zeros((1, encoder.tile_px, encoder.tile_px, 3), dtype=torch.uint8)
    device = resolve_device(args.device)
    encoder.to(device).encode(warm.to(device))
    if encoder.tile_px != adata.uns["gdml"]["tiles"]["tile_px"]:
        gdml.pp.tile(adata, image=path, um_per_px=UM_PER_PX, tile_px=encoder.tile_px)
    (idle := Memory()).start()
    time.sleep(0.5)
    idle.stop()
    (busy := Memory()).start()
    with tempfile.TemporaryDirectory(dir=args.folder) as cache:
        start = time.perf_counter()
        gdml.pp.embed(adata, encoder, neighbors=args.neighbors, device=args.device, cache_dir=cache)
        seconds = time.perf_counter() - start
    return {"spots": n, "seconds": seconds, "idle": idle.least / 2**20, "peak": (busy.stop().most - idle.least) / 2**20}


def report(results: list[dict[str, float]], side: int, args: argparse.Namespace) -> None:
    """Print the table, and how well a line fits it."""
    spots, seconds = (np.array([r[key] for r in results]) for key in ("spots", "seconds"))
    slope, intercept = np.polyfit(spots, seconds, 1)
    off = np.abs(seconds / (slope * spots + intercept) - 1).max()
    print(f"\n{side} x {side} px, {args.neighbors}, encoder: {args.encoder or 'one convolution'}\n")
    print("| spots | time, s | spots/s | peak memory above idle, MiB | idle, MiB |\n|---:|---:|---:|---:|---:|")
    for r in results:
        rate = r["spots"] / r["seconds"]
        print(f"| {r['spots']} | {r['seconds']:.1f} | {rate:.1f} | {r['peak']:.0f} | {r['idle']:.0f} |")
    print(
        f"\ntime = {intercept:.2f} s + {1000 * slope:.3f} ms per spot; no measurement is further than "
        f"{100 * off:.1f} % from this line"
    )


def main() -> None:
    """Make the slide, and embed three numbers of spots."""
    if sys.argv[1:2] == ["memory"]:
        from _scale_training import PARTS
        from _scale_training import main as training

        parser = argparse.ArgumentParser(prog="scale.py memory")
        parser.add_argument("parts", nargs="*", help=f"tables to print, of {', '.join(PARTS)}; all by default")
        parser.add_argument("--folder", type=Path, required=True, help="of the feature stores, which are kept")
        parser.add_argument("--one", help=argparse.SUPPRESS)
        training(parser.parse_args(sys.argv[2:]))
        return
    if sys.argv[1:2] == ["grid"]:
        from _scale_grid import main as image_only

        parser = argparse.ArgumentParser(prog="scale.py grid")
        parser.add_argument("--tiles", type=int, nargs="+", default=[25_000, 50_000, 100_000])
        parser.add_argument("--no-kill", dest="kill", action="store_false", help="leave out the run that is killed")
        parser.add_argument("--folder", type=Path, required=True, help="of the slide and the model, which are kept")
        parser.add_argument("--one", help=argparse.SUPPRESS)
        image_only(parser.parse_args(sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=60_000, help="of the slide, px")
    parser.add_argument("--spots", type=int, default=20_000)
    parser.add_argument("--neighbors", default="lattice", choices=["lattice", "exact"])
    parser.add_argument("--encoder", help="name of an encoder; random weights for timm:...")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, help="of the slide, which is kept, and of the stores, which are not")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.spots < 4:
        parser.error("--spots must be at least 4, for its quarter")
    per_row = int(np.ceil(np.sqrt(args.spots)))
    least = int((per_row + 0.5) * PITCH_UM / UM_PER_PX)
    if args.side < max(least, TEXTURE_PX):
        parser.error(f"{args.spots} spots need a slide of at least {max(least, TEXTURE_PX)} px; see --side")
    if args.one is not None:
        print(json.dumps(embed_one(args.folder / f"scale-{args.side}.tiff", args.one, per_row, args)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        args.folder = args.folder or Path(scratch)
        make_slide(args.folder, args.side)
        options = ["--side", args.side, "--spots", args.spots, "--neighbors", args.neighbors, "--device", args.device]
        options += ["--folder", args.folder] + (["--encoder", args.encoder] if args.encoder else [])
        results = []
        for n in (args.spots // 4, args.spots // 2, args.spots):
            command = [sys.executable, __file__, *map(str, options), "--one", str(n)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    report(results, args.side, args)
    if args.json:
        args.json.write_text(json.dumps({**vars(args), "results": results}, indent=2, default=str))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    main()
