"""Files of weights with the tensors of the published ones, by name and shape.

Written from the model cards and their configurations alone, not from the code under test. Every tensor is one number that
is repeated without taking memory, so that a file of a billion parameters is small.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Shapes = dict[str, tuple[int, ...]]


def vit(width: int, depth: int, hidden: int, patch: int, positions: int, registers: int = 0, **options: bool) -> Shapes:
    """Names and shapes of timm's vision transformers."""
    gated, scaled = options.get("gated", False), options.get("scaled", True)
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if registers:
        shapes["reg_token"] = (1, registers, width)
    inner = 2 * hidden if gated else hidden
    for i in range(depth):
        linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        linear |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, hidden)}
        for name, shape in linear.items():
            shapes[f"blocks.{i}.{name}.weight"], shapes[f"blocks.{i}.{name}.bias"] = shape, shape[:1]
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{i}.{name}.weight"] = shapes[f"blocks.{i}.{name}.bias"] = (width,)
        for name in ("ls1", "ls2") if scaled else ():
            shapes[f"blocks.{i}.{name}.gamma"] = (width,)
    return shapes


def dinov2(width: int, depth: int, hidden: int, patch: int, positions: int, gated: bool = False) -> Shapes:
    """Names and shapes of the files of transformers' Dinov2Model."""
    shapes: Shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, positions, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    first, second = ("weights_in", "weights_out") if gated else ("fc1", "fc2")
    for i in range(depth):
        attention = "attention.attention."
        linear = {attention + part: (width, width) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (width, width)}
        linear |= {f"mlp.{first}": (2 * hidden if gated else hidden, width), f"mlp.{second}": (width, hidden)}
        for name, shape in linear.items():
            name = f"encoder.layer.{i}.{name}"
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
        for n in (1, 2):
            shapes[f"encoder.layer.{i}.norm{n}.weight"] = shapes[f"encoder.layer.{i}.norm{n}.bias"] = (width,)
            shapes[f"encoder.layer.{i}.layer_scale{n}.lambda1"] = (width,)
    return shapes


def conch() -> Shapes:
    """Names and shapes of CONCH's image tower, and some of what is beside it (conch_ViT-B-16.json)."""
    trunk = vit(768, 12, 3072, 16, 1 + 28**2, scaled=False)
    shapes: Shapes = {f"visual.trunk.{name}": shape for name, shape in trunk.items()}
    for pool, width, queries in (("contrast", 512, 1), ("caption", 768, 256)):
        name = f"visual.attn_pool_{pool}"
        shapes |= {
            f"{name}.query": (queries, width),
            f"{name}.attn.in_proj_bias": (3 * width,),
            f"{name}.attn.out_proj.weight": (width, width),
            f"{name}.attn.out_proj.bias": (width,),
            f"{name}.ln_q.weight": (width,),
            f"{name}.ln_q.bias": (width,),
            f"{name}.ln_k.weight": (768,),
            f"{name}.ln_k.bias": (768,),
            f"visual.ln_{pool}.weight": (width,),
            f"visual.ln_{pool}.bias": (width,),
        }
        if width == 768:  # one matrix where queries, keys and values have one width
            shapes[f"{name}.attn.in_proj_weight"] = (3 * width, width)
        else:
            parts = {"q": width, "k": 768, "v": 768}
            shapes |= {f"{name}.attn.{part}_proj_weight": (width, n) for part, n in parts.items()}
    return shapes | {"visual.proj_contrast": (512, 512), "logit_scale": (), "text.positional_embedding": (128, 768)}


# Counts: a vision transformer of 224 px has 16 x 16 patches of 14 px or 14 x 14 of 16 px
PUBLISHED_FILES = {
    "uni": vit(1024, 24, 4096, 16, 197),
    "uni2-h": vit(1536, 24, 4096, 14, 256, 8, gated=True),
    "virchow2": vit(1280, 32, 3416, 14, 261, 4, gated=True),
    "h-optimus-0": vit(1536, 40, 4096, 14, 256, 4, gated=True),
    "h-optimus-1": vit(1536, 40, 4096, 14, 256, 4, gated=True),
    "h0-mini": vit(768, 12, 2048, 14, 256, 4, gated=True),
    "midnight": dinov2(1536, 40, 4096, 14, 1 + 37**2, gated=True),  # DINOv2's grid of 518 px
    "conch": conch(),
    "gigapath": vit(1536, 40, 4096, 16, 197, gated=True),
    "phikon-v2": dinov2(1024, 24, 4096, 16, 197),
}


@pytest.fixture(scope="session")
def published_shapes() -> dict[str, Shapes]:
    """Names and shapes of the tensors in the published files, by encoder."""
    return PUBLISHED_FILES


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of a file with the tensors of an encoder's published one."""
    folder = tmp_path_factory.mktemp("weights")

    def write(name: str) -> Path:
        path = folder / f"{name}.bin"
        if not path.exists():
            torch.save({key: torch.full((), 0.01).expand(shape) for key, shape in PUBLISHED_FILES[name].items()}, path)
        return path

    return write
