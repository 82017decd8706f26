"""Transformer parts that the models share."""

import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Sequential):
    """Linear, GELU, dropout, linear, dropout: (..., width) -> (..., out or width).

    Parameters
    ----------
    width
        Width of the input.
    hidden
        Width of the hidden layer.
    dropout
        Rate of both dropouts.
    """

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )


class Attention(nn.Module):
    """Multi-head self-attention, (B, T, width) -> (B, T, width).

    Parameters
    ----------
    width
        Token width; must be a multiple of ``heads``.
    heads
        Number of attention heads.
    dropout
        Rate on the attention weights and on the output.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"`heads` must divide the token width: found {heads} heads for width {width}.")
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend; ``bias`` is added to the logits, broadcast over (B, heads, T, T) (-inf masks a key)."""
        b, t, width = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        if bias is not None:
            bias = bias.to(q.dtype)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)
        return self.drop(self.out(y.transpose(1, 2).reshape(b, t, width)))


class Block(nn.Module):
    """Pre-norm transformer layer, (B, T, width) -> (B, T, width).

    Parameters
    ----------
    width, heads
        Token width and number of attention heads.
    mlp
        Width of the feed-forward layer, as a multiple of ``width``.
    dropout
        Rate of all dropouts in the layer.
    """

    def __init__(self, width: int, heads: int, mlp: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, mlp * width, dropout)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """One layer; ``bias`` as in :class:`Attention`."""
        x = x + self.attention(self.norm1(x), bias)
        return x + self.mlp(self.norm2(x))
