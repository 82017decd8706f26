"""Image tower with attention pooling, as contrastive captioners have it."""

from typing import Any

import torch
from torch import nn


class AttentionPool(nn.Module):
    """One learned query that attends to the tokens of an image."""

    def __init__(self, width: int, token_width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, width))
        self.attn = nn.MultiheadAttention(width, heads, kdim=token_width, vdim=token_width, batch_first=True)
        self.ln_q = nn.LayerNorm(width)
        self.ln_k = nn.LayerNorm(token_width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pooled (B, 1, width) of tokens (B, T, token_width)."""
        context = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), -1, -1)
        return self.attn(query, context, context, need_weights=False)[0]


class ImageTower(nn.Module):
    """A vision transformer and an attention pool, whose result stands for the image as its only token.

    Names of parameters are those of CONCH's weights, of which the projection to the space of the captions is left out.

    Parameters
    ----------
    trunk
        timm model.
    width
        Width of the embedding, D.
    heads
        Heads of the pooling attention.

    References
    ----------
    Yu et al., CoCa: contrastive captioners are image-text foundation models, TMLR 2022.
    """

    num_prefix_tokens = 1
    has_class_token = True

    def __init__(self, trunk: Any, width: int = 512, heads: int = 8) -> None:
        super().__init__()
        self.num_features = width
        self.pretrained_cfg = trunk.pretrained_cfg
        self.trunk = trunk
        self.attn_pool_contrast = AttentionPool(width, trunk.num_features, heads)
        self.ln_contrast = nn.LayerNorm(width)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """Embedding (B, 1, D) of images (B, 3, H, W)."""
        return self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(images)))
