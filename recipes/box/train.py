"""Train weights for the encoder ``"box"``: self-supervised, on H&E images.

    pip install "gdml[train]"
    python recipes/box/train.py --images FOLDER --out box.safetensors                      # the images of sources.csv
    python recipes/box/train.py --images FOLDER --sources mine.csv --out mine.safetensors  # others

A ResNet-18 learns to match two views of the same position (VICReg, Bardes et al. 2022, as in lightly); gene
expression is not used. An interrupted run resumes from its last checkpoint (``{out}.checkpoint``) and ends with the
weights of an uninterrupted one: batch i depends on the seed and on i only.
"""

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path

# waiting threads must not spin: views are computed on the same cores as the network; read when torch is loaded
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import timm
import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from safetensors.torch import save_file
from sources import sources
from torch import Tensor, nn
from views import MASK_PX, Augmentation, Views

from gdml.encoders.device import resolve_device, use_bf16

ARCHITECTURE = "resnet18"


@dataclass
class Recipe:
    """Parameters of the training.

    Parameters
    ----------
    steps, pairs, px
        Updates, pairs of views in each, and the side of a view, px.
    lr, weight_decay, warmup
        Of AdamW; the rate increases over ``warmup`` steps and decreases to zero as a cosine.
    hidden
        Width of the projection before the loss.
    seed
        Of weights and views.
    """

    steps: int = 900
    pairs: int = 96
    px: int = 80
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 50
    hidden: int = 1024
    seed: int = 0


class Run:
    """Weights, optimizer and the number of steps done."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.step = recipe, device, 0
        self.net = timm.create_model(ARCHITECTURE, num_classes=0)
        width = self.net.num_features
        self.head = VICRegProjectionHead(width, recipe.hidden, recipe.hidden, num_layers=3)
        self.both = nn.ModuleDict({"net": self.net, "head": self.head}).to(device)
        self.net.to(memory_format=torch.channels_last)
        self.loss = VICRegLoss()
        matrices = [p for p in self.both.parameters() if p.ndim > 1]
        vectors = [p for p in self.both.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))

    def update(self, views: Tensor) -> float:
        """Train on a batch and return the loss."""
        r = self.recipe
        rate = r.lr * min((self.step + 1) / r.warmup, 1.0) * (0.5 + 0.5 * cos(pi * self.step / r.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=use_bf16(self.device)):
            projected = self.head(self.net(views.to(self.device, non_blocking=True)))
        loss = self.loss(*projected.float().chunk(2))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def save(self, path: Path, about: dict) -> None:
        """Write a checkpoint atomically."""
        state = {"model": self.both.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        beside = path.with_name(path.name + ".unfinished")
        torch.save(state | {"about": json.dumps(about)}, beside)
        beside.replace(path)

    def load(self, path: Path, about: dict) -> None:
        """Resume from a checkpoint of the same recipe."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        if json.loads(state["about"]) != about:
            raise SystemExit(
                f"{path} was made with another recipe ({state['about']}); delete it, or choose another --out."
            )
        self.both.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])


def export(net: nn.Module, path: Path, about: dict) -> None:
    """Write the weights as float16, without counters of batches."""
    half = {k: v.half().contiguous().cpu() for k, v in net.state_dict().items() if v.is_floating_point()}
    if not all(v.isfinite().all() for v in half.values()):
        raise ValueError("Weights that float16 can't hold: the training has diverged.")
    save_file(half, path, {"recipe": json.dumps(about)})  # one entry: several come in any order


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--sources", type=Path, default=Path(__file__).with_name("sources.csv"), help="what is in it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--checkpoint-every", type=int, default=50)
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = parser.parse_args()

    recipe = Recipe(**{name: getattr(args, name) for name in asdict(Recipe())})
    augmentation = Augmentation()
    about = {
        "architecture": ARCHITECTURE,
        "sources": args.sources.read_text(),
        "recipe": asdict(recipe),
        "augmentation": json.loads(json.dumps(asdict(augmentation))),
    }
    run = Run(recipe, resolve_device(args.device))
    checkpoint = args.out.with_name(args.out.name + ".checkpoint")
    if checkpoint.exists():
        run.load(checkpoint, about)
        print(f"resuming at step {run.step}", flush=True)
    views = Views(list(sources(args.sources, args.images)), recipe.pairs, recipe.px, augmentation, recipe.seed)
    for source, share in zip(views.sources, views.share, strict=True):
        area = len(source.places) * (MASK_PX * source.um_per_px / 1000) ** 2
        print(f"{source.name}: {area:.1f} mm2 with tissue, {share:.0%} of the batches", flush=True)

    losses, start, first = [], time.time(), run.step
    with ThreadPoolExecutor(1) as ahead:  # the next batch is cut while the network learns from this one
        waiting = ahead.submit(views, run.step)
        while run.step < recipe.steps:
            batch = waiting.result()
            waiting = ahead.submit(views, run.step + 1)
            losses.append(run.update(batch))
            if run.step % args.checkpoint_every == 0 or run.step == recipe.steps:
                run.save(checkpoint, about)
                per_step = (time.time() - start) / (run.step - first)
                print(f"step {run.step}: loss {np.mean(losses[-50:]):.3f}, {per_step:.2f} s a step", flush=True)
    export(run.net, args.out, about)
    checkpoint.unlink(missing_ok=True)
    print(f"wrote {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
