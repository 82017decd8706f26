"""Rates at which this machine encodes tiles and trains models, measured on noise before anything is downloaded."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from gdml.encoders import get_encoder
from gdml.encoders.device import resolve_device, use_bf16
from gdml.pp._tokens import thin_tokens
from gdml.training.candidates import Candidate, make_candidates
from gdml.training.data import SpotData
from gdml.training.fabric import make_fabric
from gdml.training.loop import train

_SECONDS = 2.0
_TILES = 8
_SIDE = 16  # spots per side of the training slide


@dataclass(frozen=True)
class Encoding:
    """Output and rate of an encoder.

    Parameters
    ----------
    tiles_per_s
        Tiles per second.
    n_tokens, dim
        Tokens of the spot's own tile, after thinning, and their width.
    """

    tiles_per_s: float
    n_tokens: int
    dim: int


def measure_encoder(name: str, tokens: str, device: str, tiles_per_s: float | None = None) -> Encoding:
    """Encode noise for two seconds, with random weights for encoders that require a download.

    Parameters
    ----------
    name, tokens, device
        As in :func:`gdml.pp.embed`.
    tiles_per_s
        Rate, if it is known; a single tile is then encoded for its shape.
    """
    downloaded = name.startswith(("uni", "timm:"))
    on = resolve_device(device)
    encoder = get_encoder(name, **({"pretrained": False} if downloaded else {})).to(on)
    bf16 = use_bf16(on) and not getattr(encoder, "full_precision", False)

    def encode(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        tiles = torch.randint(256, (n, encoder.tile_px, encoder.tile_px, 3), dtype=torch.uint8, device=on)
        with torch.inference_mode(), torch.autocast(on.type, torch.bfloat16, enabled=bf16):
            found = encoder.encode(tiles)
        if on.type == "cuda":
            torch.cuda.synchronize(on)
        return found

    kept = thin_tokens(*encode(1), tokens, getattr(encoder, "n_prefix", None))
    n, start = 0, time.perf_counter()
    while tiles_per_s is None and (spent := time.perf_counter() - start) < _SECONDS:
        encode(_TILES)
        n += _TILES
    return Encoding(tiles_per_s or n / spent, kept.shape[1], kept.shape[2])


def noise(encoding: Encoding, n_genes: int) -> SpotData:
    """Spots of a square slide, with random features and expression."""
    n = _SIDE**2
    grid = torch.stack([torch.arange(n) // _SIDE, torch.arange(n) % _SIDE], 1)
    counts = torch.randint(20, (n, n_genes)).float()
    return SpotData.in_memory(
        tokens=torch.randn(n, encoding.n_tokens, encoding.dim).half(),
        pooled=torch.randn(n, encoding.dim).half(),
        neighbors=torch.randn(n, 25, encoding.dim).half(),
        neighbor_mask=torch.ones(n, 25, dtype=torch.bool),
        grid=grid,
        xy=grid.flip(1).float() * 1.8,
        slide=torch.zeros(n, dtype=torch.long),
        names=["noise"],
        groups=["noise"],
        expression=counts.add(1).log10(),
        counts=counts,
    )


def measure_training(candidate: Candidate, data: SpotData, device: str) -> float:
    """Spots per second in training: two further epochs on ``data``."""
    fabric = make_fabric(device)
    rows = torch.arange(len(data))
    spent = []
    for epochs in (1, 3):
        loop = replace(candidate.loop, max_epochs=epochs)
        start = time.perf_counter()
        train(lambda: candidate.model(candidate.config, data.shape()), data, rows, loop, fabric, seed=0, name="timing")
        spent.append(time.perf_counter() - start)
    return 2 * len(data) / max(spent[1] - spent[0], 1e-3)


def training_seconds(
    models: Mapping[str, Any],
    encoding: Encoding,
    *,
    n_train: float,
    n_folds: int,
    n_seeds: int,
    n_genes: int,
    max_epochs: int | None,
    device: str,
    spots_per_s: float | None = None,
) -> dict[str, float]:
    """Upper bound of the training time of each model, seconds; without models in closed form.

    Parameters
    ----------
    models
        As :func:`gdml.tl.cross_validate` takes them.
    encoding
        Sizes of the features.
    n_train
        Training spots of a fold.
    n_folds, n_seeds, n_genes, max_epochs, device
        Parameters of the comparison.
    spots_per_s
        Rate of all models, if it is known.
    """
    found, data = {}, None
    for candidate in make_candidates(models, {}, max_epochs):
        if candidate.model.closed_form:
            continue
        if spots_per_s is None and data is None:
            data = noise(encoding, n_genes)
        rate = spots_per_s or measure_training(candidate, data, device)
        loop = candidate.loop
        epochs = loop.epochs(max(1, round(n_train / loop.batch_size))) * (2 if loop.refit else 1)
        found[candidate.label] = n_folds * n_seeds * epochs * n_train / rate
    return found
