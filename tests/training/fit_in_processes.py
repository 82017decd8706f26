"""Fit one small model in some processes: ``python fit_in_processes.py 2 ddp`` prints what came of it."""

import json
import sys

import torch

from gdml.models import STNet, STNetConfig
from gdml.training import TrainingConfig
from gdml.training.data import SpotData
from gdml.training.fabric import make_fabric
from gdml.training.fitting import fit_model
from gdml.training.split import make_split


def data():
    """Four small slides of unequal size."""
    g = torch.Generator().manual_seed(0)
    lengths, dim = (30, 21, 25, 17), 8
    n = sum(lengths)
    pooled = torch.randn(n, dim, generator=g).half()
    cells = torch.cat([torch.stack([torch.arange(k) // 6, torch.arange(k) % 6], 1) for k in lengths])
    return SpotData.in_memory(
        tokens=pooled[:, None],
        pooled=pooled,
        neighbors=torch.zeros(n, 1, dim),
        neighbor_mask=torch.zeros(n, 1, dtype=torch.bool),
        grid=cells,
        xy=cells.flip(1).float(),
        slide=torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)),
        names=list("abcd"),
        groups=list("abcd"),
        expression=pooled.float() @ torch.randn(dim, 300, generator=g) + torch.randn(n, 300, generator=g),
    )


def fit(n, strategy="auto"):
    """History, weights and epochs of a fit in ``n`` processes, or None in those that write no results."""
    spots = data()
    loop = TrainingConfig(
        max_epochs=4,
        batch_size=24,
        slides_per_batch=2,
        optimizer="sgd",
        learning_rate=0.05,
        clip=1.0,
        average=0.9,
        warmup_steps=2,
        refit=True,
    )
    split = make_split(spots, "group", 0.3, None, 0)
    fabric = make_fabric("cpu", precision="fp32", devices=n, strategy=strategy)
    module, run, epochs = fit_model(STNet, STNetConfig(), spots, [split], loop, fabric, 3)
    if not fabric.is_global_zero:
        return None
    history = {name: values.tolist() for name, values in run.history.items()}
    return {**history, "weights": module.head.weight.flatten().tolist(), "epochs": epochs}


if __name__ == "__main__":
    if found := fit(int(sys.argv[1]), sys.argv[2]):
        print("RESULT" + json.dumps(found))
