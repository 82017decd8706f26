"""Attention of some tokens to others, which several models fuse their branches with."""

import torch
from torch import Tensor, nn

from .layers import Dropout, FeedForward


class CrossAttention(nn.Module):
    """Multi-head attention of queries to other tokens: (B, Q, width) and (B, T, width) -> (B, Q, width).

    Parameters
    ----------
    width
        Token width; must be a multiple of ``heads``.
    heads
        Number of attention heads.
    dropout
        Rate on the output.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"`heads` must divide the token width: found {heads} heads for width {width}.")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, tokens: Tensor, inside: Tensor | None = None) -> Tensor:
        """Attend; ``inside`` (B, T) is True for the tokens that may be attended to."""
        b, n, width = x.shape
        per_head = (b, -1, self.heads, width // self.heads)
        q = self.query(x).view(per_head).transpose(1, 2)
        k, v = (part.reshape(per_head).transpose(1, 2) for part in self.key_value(tokens).chunk(2, -1))
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if inside is not None:
            logits = logits.masked_fill(~inside[:, None, None], float("-inf"))
        y = logits.softmax(-1).to(v.dtype) @ v
        return self.drop(self.out(y.transpose(1, 2).reshape(b, n, width)))


class CrossBlock(nn.Module):
    """Pre-norm layers in which queries attend to other tokens: (B, Q, width) and (B, T, width) -> (B, Q, width).

    Parameters
    ----------
    width, depth, heads
        Token width, number of layers, and attention heads.
    mlp
        Width of the feed-forward layers, as a multiple of ``width``.
    dropout
        Rate of the dropouts.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        # one norm for queries and tokens, as TRIPLEX has it
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attentions = nn.ModuleList(CrossAttention(width, heads, dropout) for _ in range(depth))
        self.mlps = nn.ModuleList(FeedForward(width, mlp * width, dropout) for _ in range(depth))

    def forward(self, x: Tensor, tokens: Tensor, inside: Tensor | None = None) -> Tensor:
        """Attend; ``inside`` as in :class:`CrossAttention`."""
        norms = iter(self.norms)
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            norm = next(norms)
            x = x + attention(norm(x), norm(tokens), inside)
            x = x + mlp(next(norms)(x))
        return x


def masked_mean(x: Tensor, inside: Tensor) -> Tensor:
    """Mean of the tokens that are inside, 0 where there is none: (B, T, width) and (B, T) -> (B, width)."""
    kept = torch.where(inside[..., None], x, torch.zeros_like(x))
    return kept.sum(1) / inside.sum(1, keepdim=True).clamp(min=1)
