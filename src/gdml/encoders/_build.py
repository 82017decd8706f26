"""Published models without their weights."""

from typing import Any

import torch

from ._attention_pool import ImageTower
from .published import Published


def arguments(published: Published) -> dict[str, Any]:
    """Arguments of ``timm.create_model`` for an entry of the table."""
    from timm.layers import SwiGLUPacked

    gated = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU} if published.swiglu else {}
    return {"num_classes": 0, **published.options, **gated}


def build(published: Published, options: dict[str, Any] | None = None) -> Any:
    """Make the model of an entry, with random weights.

    Parameters
    ----------
    published
        Entry of the table.
    options
        Arguments of ``timm.create_model``; by default those of the entry.

    Returns
    -------
    A module whose ``forward_features`` gives tokens (B, T, D).
    """
    import timm

    options = arguments(published) if options is None else options
    model: Any = timm.create_model(published.architecture, pretrained=False, **options)
    return ImageTower(model) if published.pooling == "attention" else model
