"""How fast models are trained on cached features, on the machine's own measure: its rate of matrix products.

    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive python benchmarks/train_speed.py
    python benchmarks/train_speed.py --against ../old/src --model gene-dml/her2st --model gene-dml
    python benchmarks/train_speed.py --device cuda --json out.json

Random features of the size of three HER2ST sections in memory, 910 spots with 50 tokens and 25 neighbour tiles of width
192, in the batches, slides and optimiser steps of each model's recipe; validation is left out. ``--against`` names the
``src`` folder of another version of gdml. Each version is measured in a process of its own, which the two take in turns,
epoch by epoch, because machines are noisy: only ratios within one run count. Medians are reported, of the matrix products
the best one. The share is that of floating-point operations, forward and backward, in the rate of products of the same
precision.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

MODELS = ("gene-dml/her2st", "gene-dml", "triplex")
PRECISIONS = ("fp32", "bf16")
BATCH = 128


def wait(device: torch.device) -> None:
    """Wait until the device has computed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(precision: str, device: torch.device, n: int, repeats: int = 5) -> float:
    """Best rate of a product of two matrices (n, n), FLOP/s."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    product, seconds = a @ b, []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        torch.mm(a, b, out=product)
        wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


def random_spots(n_spots: int, n_tokens: int, dim: int, n_genes: int, n_slides: int = 3) -> Any:
    """Make slides of random features and expression; the spots fill square grids."""
    from gdml.training.data import SpotData

    g = torch.Generator().manual_seed(0)
    slide = torch.arange(n_spots) * n_slides // n_spots
    lengths = torch.bincount(slide).tolist()
    side = int(np.ceil(max(lengths) ** 0.5))
    grid = torch.cat([torch.stack([torch.arange(n) // side, torch.arange(n) % side], 1) for n in lengths])
    normal = lambda *size: torch.randn(size, generator=g)
    names = [f"slide {i}" for i in range(n_slides)]
    return SpotData.in_memory(
        tokens=normal(n_spots, n_tokens, dim).half(),
        pooled=normal(n_spots, dim).half(),
        neighbors=normal(n_spots, 25, dim).half(),
        neighbor_mask=torch.rand(n_spots, 25, generator=g) > 0.05,
        grid=grid,
        xy=grid.float(),
        slide=slide,
        names=names,
        groups=names,
        expression=normal(n_spots, n_genes).abs(),
    )


def train(args: argparse.Namespace) -> None:
    """Train one model, an epoch for each line of the standard input, and answer each with a number.

    ``seconds`` asks for the time of the epoch; ``flop`` for its floating-point operations, forward and backward, a
    multiplication and an addition counted as two.
    """
    from gdml.models.base import get_model, make_config
    from gdml.training import loop
    from gdml.training.config import make_training_config
    from gdml.training.fabric import make_fabric

    answers, sys.stdout = sys.stdout, sys.stderr
    name, _, preset = args.model[0].partition("/")
    model_class = get_model(name)
    config = make_config(model_class, model_class.presets[preset] if preset else None)
    recipe = {**model_class.recipe, **model_class.preset_recipes.get(preset, {})}
    settings = make_training_config(recipe, {"batch_size": BATCH, "max_epochs": 10**6})
    data = random_spots(args.spots, args.tokens, args.dim, args.genes)
    fabric = make_fabric(args.device, precision=args.precision[0])
    start, counter = 0.0, FlopCounterMode(display=False)

    def next_epoch(epoch: int, n_epochs: int, row: dict[str, float]) -> None:
        nonlocal start
        wait(fabric.device)
        seconds = time.perf_counter() - start
        if question == "flop":
            counter.__exit__(None, None, None)
        answer = counter.get_total_flops() if question == "flop" else seconds
        print(json.dumps(answer), file=answers, flush=True)
        ask()
        start = time.perf_counter()

    def ask() -> None:
        nonlocal question
        question = sys.stdin.readline().strip()
        if not question:
            raise KeyboardInterrupt  # ends the training
        if question == "flop":
            counter.__enter__()

    question = ""
    ask()
    rows = torch.arange(len(data))
    make = lambda: model_class(config, data.shape())
    loop.train(make, data, rows, settings, fabric, seed=0, on_epoch=next_epoch)


class Version:
    """A process that trains one model with the version of gdml in ``src``; None for the one installed."""

    def __init__(self, src: str | None, name: str, precision: str, arguments: list[str]) -> None:
        env = dict(os.environ)
        if src is not None:
            env["PYTHONPATH"] = os.pathsep.join([str(Path(src).resolve()), env.get("PYTHONPATH", "")])
        options = ["--train", "--model", name, "--precision", precision]
        command = [sys.executable, __file__, *arguments, *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def __enter__(self) -> "Version":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()

    def ask(self, question: str) -> float:
        """Train an epoch, and give its ``seconds`` or its ``flop``."""
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("The training failed.")
        return json.loads(answer)


def measure(name: str, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time epochs of a model in all versions, in turns."""
    sizes = [f"--{size}={getattr(args, size)}" for size in ("device", "spots", "tokens", "dim", "genes")]
    sources = {"now": None, "before": args.against} if args.against else {"now": None}
    with ExitStack() as stack:
        versions = {k: stack.enter_context(Version(src, name, precision, sizes)) for k, src in sources.items()}
        seconds: dict[str, list[float]] = {label: [] for label in versions}
        for repeat in range(args.repeats + 1):
            for label, version in versions.items():
                found = version.ask("seconds")
                seconds[label] += [found] if repeat else []  # the first one warms up
        flop = versions["now"].ask("flop") / args.spots
    speed = {label: args.spots / float(np.median(found)) for label, found in seconds.items()}
    return {"model": name, "precision": precision, **speed, "FLOP per spot": flop}


def report(found: dict[str, Any]) -> None:
    """Print the rates of the machine and a table."""
    rates, rows = found["matmul"], found["results"]
    shown = ", ".join(f"{precision} {rate / 1e9:,.0f}" for precision, rate in rates.items())
    print(f"torch {found['torch']}, {found['threads']} threads; matrix products, GFLOP/s: {shown}\n")
    titles = ["model", "precision", "spots/s", "MFLOP per spot", "share of products"]
    before = {(row["model"], row["precision"]): row["before"] for row in rows if "before" in row}
    if before:
        titles += ["before, spots/s", *(f"ratio to {precision} before" for precision in rates)]
    print("| " + " | ".join(titles) + " |\n|---|---|" + "---:|" * (len(titles) - 2))
    for row in rows:
        share = row["now"] * row["FLOP per spot"] / rates[row["precision"]]
        cells = [f"{row['now']:.0f}", f"{row['FLOP per spot'] / 1e6:.0f}", f"{share:.0%}"]
        if before:
            cells += [f"{row['before']:.0f}", *(f"{row['now'] / before[row['model'], p]:.2f}" for p in rates)]
        print("| " + " | ".join([row["model"], row["precision"], *cells]) + " |")


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="name, or name/preset; may be repeated")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="may be repeated (both)")
    parser.add_argument("--against", help="src folder of another version")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--spots", type=int, default=910)
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--genes", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--matmul", type=int, help="side of the matrices (2048, on CUDA 8192)")
    parser.add_argument("--json", help="file to write the figures to")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.model, args.precision = args.model or list(MODELS), args.precision or list(PRECISIONS)
    if args.train:
        train(args)
        return
    device = torch.device(args.device)
    side = args.matmul or (8192 if device.type == "cuda" else 2048)
    rates, results = dict.fromkeys(args.precision, 0.0), []
    for name in args.model:
        for precision in args.precision:
            rates[precision] = max(rates[precision], matmul_rate(precision, device, side))
            results.append(measure(name, precision, args))
    found = {"torch": torch.__version__, "threads": torch.get_num_threads(), "matmul": rates, "results": results}
    report(found)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
