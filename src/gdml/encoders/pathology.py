"""Pathology foundation models on the Hugging Face hub, built as their model cards say."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ._hub import hub_file
from .timm_models import IMAGENET_MEAN, IMAGENET_STD, TimmEncoder


@dataclass(frozen=True)
class Published:
    """Repository with the weights of a model, and the timm architecture that they fit."""

    repository: str
    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    filename: str = "pytorch_model.bin"


def _uni() -> Published:
    """UNI, ViT-L/16, D = 1024 (Chen et al., Nature Medicine 2024)."""
    return Published(
        "MahmoodLab/UNI",
        "vit_large_patch16_224",
        {"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True},
    )


def _uni2_h() -> Published:
    """UNI2-h, ViT-H/14 with 8 register tokens, D = 1536."""
    from timm.layers import SwiGLUPacked

    return Published(
        "MahmoodLab/UNI2-h",
        "vit_giant_patch14_224",
        {
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "no_embed_class": True,
            "mlp_layer": SwiGLUPacked,
            "act_layer": torch.nn.SiLU,
            "reg_tokens": 8,
            "dynamic_img_size": True,
        },
    )


def _factory(name: str, describe: Callable[[], Published]) -> Callable[..., TimmEncoder]:
    def make(*, weights: str | Path | None = None, **kwargs: Any) -> TimmEncoder:
        published = describe()
        if weights is None and kwargs.get("pretrained", True):
            weights = hub_file(published.repository, published.filename, name)
        options = {"name": name, "weights": weights, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        return TimmEncoder(published.architecture, **{**options, **published.options, **kwargs})

    return make


ENCODERS = {"uni": _factory("uni", _uni), "uni2-h": _factory("uni2-h", _uni2_h)}
