"""How fast tiles are embedded, on the machine's own measure: its rate of matrix products.

    OMP_WAIT_POLICY=passive python benchmarks/throughput.py
    python benchmarks/throughput.py --encoder box --weights box.safetensors --device cuda --json out.json

In one run: the rates of bf16 and fp32 matrix products, and for a small encoder and for UNI's architecture with random
weights, the bare encoder on tiles in memory beside the whole of ``gdml.pp.embed``, from the image file to the store.
The two take turns, and medians are reported, because machines are noisy; of the matrix products the best one counts.
Without ``--image`` it embeds a real section (GDML_DATA_DIR, or a download), or a synthetic slide where there is none.
"""

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import gdml
from gdml.encoders import get_encoder
from gdml.encoders.device import resolve_device, use_bf16
from gdml.pp._extract import Extractor
from gdml.pp._tokens import thin_tokens
from gdml.slides import open_slide

POOL = 4  # batches of tiles in memory, so that the bare encoder does not find its tiles in the processor's cache


def hardware(device: torch.device) -> dict[str, str]:
    """Name what it ran on."""
    info = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    values = {key.strip(): value.strip() for key, value in lines.items()}
    flags = set(values.get("flags", "").split()) & {"amx_tile", "amx_bf16", "avx512_bf16", "avx512f", "avx2"}
    return {
        "CPU": values.get("model name", platform.processor() or platform.machine()),
        "cores": str(len(os.sched_getaffinity(0))),
        "instructions": " ".join(sorted(flags)) or "unknown",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "not set"),
    }


def wait(device: torch.device) -> None:
    """Wait until the device has computed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(dtype: torch.dtype, device: torch.device, n: int, repeats: int = 5) -> float:
    """Best rate of a product of two matrices (n, n), FLOP/s."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    product, seconds = a @ b, []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        torch.mm(a, b, out=product)
        wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def spots_on(image: str | None, um_per_px: float | None) -> ad.AnnData:
    """Tiled spots of an image, of a real section, or of a synthetic slide."""
    if image is None:
        try:
            adata = gdml.datasets.her2st(["C6"])
        except OSError as error:
            warnings.warn(f"No real section ({error}); a synthetic slide takes its place.", UserWarning, stacklevel=2)
            adata = gdml.datasets.synthetic(n_slides=1, n_patients=1)
        gdml.pp.tile(adata)
        return adata
    slide = open_slide(image)
    um_per_px = um_per_px or slide.um_per_px
    if um_per_px is None:
        raise SystemExit(f"{image} does not say how many micrometres a pixel covers; pass --um-per-px.")
    pitch = 200 / um_per_px
    centres = [np.arange(pitch, side - pitch / 2, pitch) for side in slide.size]
    xy = np.stack(np.meshgrid(*centres), -1).reshape(-1, 2)
    adata = ad.AnnData(np.zeros((len(xy), 1), np.float32), obsm={"spatial": xy})
    gdml.pp.tile(adata, image=image, um_per_px=um_per_px)
    return adata


class Clock:
    """Adds up the time that an encoder computes, and counts the tiles it is given."""

    def __init__(self, encoder, device: torch.device) -> None:
        self._encoder, self._device = encoder, device
        self._seconds, self._events, self.tiles = 0.0, [], 0

    def __enter__(self) -> "Clock":
        self._encode = self._encoder.encode
        self._encoder.encode = self._timed  # hides the method of the class
        return self

    def __exit__(self, *_: object) -> None:
        del self._encoder.encode

    def _timed(self, tiles: torch.Tensor):
        self.tiles += len(tiles)
        if self._device.type != "cuda":
            start = time.perf_counter()
            result = self._encode(tiles)
            self._seconds += time.perf_counter() - start
            return result
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = self._encode(tiles)
        end.record()
        self._events.append((begin, end))
        return result

    def seconds(self) -> float:
        """Time that the encoder was busy."""
        wait(self._device)
        return self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000


def flop_per_tile(encoder) -> int:
    """Floating-point operations for one tile, a multiplication and an addition counted as two."""
    tile = torch.zeros((1, encoder.tile_px, encoder.tile_px, 3), dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        encoder.encode(tile)
    return counter.get_total_flops()


def read_tiles(adata: ad.AnnData, n: int, px: int) -> torch.Tensor:
    """Tiles of the spots, over and over until there are ``n``."""
    (scale,) = adata.uns["gdml"]["tiles"]["slides"].values()
    slide, side = open_slide(scale["image"]), float(scale["side_px"])
    corners = adata.obsm["spatial"][: min(n, adata.n_obs)] - side / 2
    tiles = np.stack([slide.read_region(x, y, side, side, (px, px)) for x, y in corners])
    slide.close()
    return torch.from_numpy(np.resize(tiles, (n, px, px, 3)))


def bare(extractor: Extractor, tiles: torch.Tensor, n: int) -> float:
    """Seconds that the encoder takes for ``n`` tiles that lie in the device's memory."""
    device, size = extractor.device, extractor.batch_size
    start = time.perf_counter()
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=extractor.bf16):
        for number, first in enumerate(range(0, n, size)):
            at = number % POOL * size
            encoded = extractor.encoder.encode(tiles[at : at + min(size, n - first)])
            thin_tokens(*encoded, "pooled")
    wait(device)
    return time.perf_counter() - start


def pipeline(adata: ad.AnnData, extractor: Extractor, neighbors: str) -> tuple[float, float, int]:
    """Seconds from the image file to a new store, those that the encoder was busy, and tiles encoded."""
    with tempfile.TemporaryDirectory() as folder, Clock(extractor.encoder, extractor.device) as clock:
        start = time.perf_counter()
        gdml.pp.embed(
            adata,
            extractor.encoder,
            neighbors=neighbors,
            device=extractor.device,
            compile=extractor.compiled,
            cache_dir=folder,
        )
        seconds = time.perf_counter() - start
        return seconds, clock.seconds(), clock.tiles - 1  # a white one tells how many tokens there are


def measure(name: str, adata: ad.AnnData, device: torch.device, args: argparse.Namespace) -> dict[str, float | str]:
    """Bare encoder and pipeline in turns, on the same number of tiles."""
    options = {"pretrained": False} if name.startswith("timm:") else {}
    encoder = get_encoder(name, **({"weights": args.weights} if args.weights and name == args.encoder else options))
    flop = flop_per_tile(encoder)  # of the plain network, before it is compiled
    if args.compile:
        encoder.compile()
    encoder.to(device)
    bf16 = use_bf16(device) and not getattr(encoder, "full_precision", False)
    extractor = Extractor(encoder=encoder, tokens="grid7", device=device, bf16=bf16, compiled=args.compile)
    if encoder.tile_px != adata.uns["gdml"]["tiles"]["tile_px"]:
        scale = next(iter(adata.uns["gdml"]["tiles"]["slides"].values()))
        gdml.pp.tile(adata, tile_px=encoder.tile_px, image=scale["image"], um_per_px=scale["um_per_px"])
    tiles = read_tiles(adata, POOL * extractor.batch_size, encoder.tile_px).to(device)

    pipeline(adata[: min(3, adata.n_obs)].copy(), extractor, "lattice")
    bare(extractor, tiles, extractor.batch_size)
    runs, rates = [], {"bf16": [], "fp32": []}
    for _ in range(args.repeats):
        for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            rates[precision].append(matmul_rate(dtype, device, args.matmul))
        exact, busy, n = pipeline(adata, extractor, "exact")
        alone = bare(extractor, tiles, n)
        lattice, _, n_lattice = pipeline(adata, extractor, "lattice")
        runs.append((exact, busy / exact, alone, exact / alone, lattice))
    exact, share_busy, alone, over_bare, lattice = np.median(runs, axis=0)
    precision = "bf16" if bf16 else "fp32"
    peak = max(rates[precision])
    return {
        "encoder": name,
        "precision": precision,
        "batch size": extractor.batch_size,
        "spots": adata.n_obs,
        "tiles": n,
        "FLOP per tile": flop,
        "matmul bf16, FLOP/s": max(rates["bf16"]),
        "matmul fp32, FLOP/s": max(rates["fp32"]),
        "bare encoder, tiles/s": n / alone,
        "bare encoder, share of matmul rate": flop * n / alone / peak,
        "pipeline, tiles/s": n / exact,
        "pipeline, share of matmul rate": flop * n / exact / peak,
        "pipeline time / bare encoder time": over_bare,
        "share of time the encoder is busy": share_busy,
        "exact, s": exact,
        "lattice, s": lattice,
        "exact, encoder calls per spot": n / adata.n_obs,
        "lattice, encoder calls per spot": n_lattice / adata.n_obs,
    }


def shown(value: float | str) -> str:
    """Three digits, with G and T for large numbers."""
    if isinstance(value, str):
        return value
    for factor, letter in ((1e12, " T"), (1e9, " G")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def report(machine: dict[str, str], results: list[dict[str, float | str]]) -> None:
    """Print the two tables."""
    print("| Machine | |\n|---|---|")
    for key, value in machine.items():
        print(f"| {key} | {value} |")
    print("\n| | " + " | ".join(f"`{result['encoder']}`" for result in results) + " |")
    print("|---|" + "---:|" * len(results))
    for key in list(results[0])[1:]:
        print(f"| {key} | " + " | ".join(shown(result[key]) for result in results) + " |")


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="timm:resnet18", help="the small one; random weights for timm:...")
    parser.add_argument("--weights", help="file of weights of --encoder")
    parser.add_argument("--large", default="timm:vit_large_patch16_224", help="the large one")
    parser.add_argument("--spots", type=int, default=10**9, help="spots for the small encoder, from the top (all)")
    parser.add_argument("--large-spots", type=int, default=12, help="spots for the large encoder; 0 leaves it out")
    parser.add_argument("--image", help="image file with spots every 200 um")
    parser.add_argument("--um-per-px", type=float, help="of --image, where its metadata do not tell")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="compile the encoders")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--matmul", type=int, help="side of the matrices (4096, on CUDA 8192)")
    parser.add_argument("--json", help="file to write the figures to")
    args = parser.parse_args()
    device = resolve_device(args.device)
    args.matmul = args.matmul or (8192 if device.type == "cuda" else 4096)

    adata = spots_on(args.image, args.um_per_px)
    adata = adata[np.argsort(adata.obsm["spatial"][:, 1], kind="stable")].copy()
    machine, results = hardware(device), []
    for name, n in ((args.encoder, args.spots), (args.large, args.large_spots)):
        if n:
            results.append(measure(name, adata[: min(n, adata.n_obs)].copy(), device, args))
    report(machine, results)
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    main()
