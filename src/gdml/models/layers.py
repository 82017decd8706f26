"""Transformer parts that the models share."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import plain_attention
from .dropout import Dropout, dropped

# beyond this many tokens the smaller memory of fused attention matters more than the speed of plain products
_SHORT = 1024
# logits of visitors that are held at once
_CHUNK = 1 << 24


def _visiting_attention(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, rate: float) -> Tensor:
    """Attention of each of q (heads, V, width) to its own k and v and to ``keys`` and ``values`` (heads, L, width)."""
    q = q * q.shape[-1] ** -0.5
    logits = torch.cat([(q * k).sum(-1, keepdim=True), q @ keys.transpose(-1, -2)], -1)
    weights = dropped(logits.softmax(-1).to(v.dtype), rate)
    return weights[..., :1] * v + weights[..., 1:] @ values


class FeedForward(nn.Sequential):
    """Linear, GELU, dropout, linear, dropout: (..., width) -> (..., out or width)."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__(
            nn.Linear(width, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, width), Dropout(dropout)
        )


class ProjectionHead(nn.Module):
    """Linear layer with a residual GELU, linear and dropout, then layer norm."""

    def __init__(self, n_in: int, width: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(n_in, width)
        self.refine = nn.Sequential(nn.GELU(), nn.Linear(width, width), Dropout(dropout))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Rows ``x`` (N, n_in) to (N, width)."""
        x = self.project(x)
        return self.norm(x + self.refine(x))


def _undivided(width: int, heads: int) -> str:
    fitting = next(n for n in range(heads, 0, -1) if width % n == 0)
    return (
        f"`heads` must divide the token width: found {heads} heads for width {width}, which {fitting} divides; change the "
        "number of heads in `config`."
    )


class Attention(nn.Module):
    """Multi-head self-attention, (B, T, width) -> (B, T, width).

    The width must be a multiple of ``heads``. ``dropout`` is that of the output, and with ``on_weights`` that of the
    attention weights too, which rules out the fused kernels.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, on_weights: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(_undivided(width, heads))
        self.heads = heads
        self.weight_dropout = dropout if on_weights else 0.0
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, *biases: Tensor | None) -> Tensor:
        """Tokens ``x`` (B, T, width) attend to each other: (B, T, width).

        ``biases`` are added to the logits, each broadcast over (B, heads, T, T); -inf masks a key.
        """
        width = x.shape[-1]
        return self._attend(*self.qkv(x).split([width, 2 * width], -1), *biases)

    def read(self, x: Tensor, context: Tensor, *biases: Tensor | None) -> Tensor:
        """Tokens ``x`` (B, Q, width) attend to ``context`` (B, T, width), as if they were a part of it: (B, Q, width)."""
        width = x.shape[-1]
        parts = zip(self.qkv.weight.split([width, 2 * width]), self.qkv.bias.split([width, 2 * width]), strict=True)
        return self._attend(*(F.linear(y, *part) for y, part in zip((x, context), parts, strict=True)), *biases)

    def _attend(self, queries: Tensor, keys_values: Tensor, *biases: Tensor | None) -> Tensor:
        """Let queries (B, Q, width) attend to keys and values (B, T, 2 width), as the linear layer gives them."""
        b, n, width = queries.shape
        rate = self.weight_dropout if self.training else 0.0
        added = [bias.to(queries.dtype) for bias in biases if bias is not None]
        if queries.device.type == "cpu" and torch.is_grad_enabled() and keys_values.shape[1] <= _SHORT:
            y = plain_attention(queries, keys_values, self.heads, rate, *added)
        else:
            q, k, v = (
                part.view(b, -1, self.heads, width // self.heads).transpose(1, 2)
                for part in (queries, *keys_values.chunk(2, -1))
            )
            bias = sum(added[1:], added[0]) if added else None
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=rate)
            y = y.transpose(1, 2).reshape(b, n, width)
        return self.drop(self.out(y))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens ``x`` (B, T, width), each (B, heads, T, width / heads)."""
        b, t, width = x.shape
        both = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
        k, v = both.view(b, t, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return k, v

    def visit(self, x: Tensor, slide: Tensor, context: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Visitors ``x`` (V, width) attend to the context of their slide and each to itself: (V, width).

        ``slide`` (V,) is the place of each visitor's slide in ``context``, which has the keys and values of each
        slide, (heads, L, width / heads). The memory is that of a fixed number of logits: the visitors pass in chunks,
        whose logits are computed again for the gradient.
        """
        n, width = x.shape
        q, k, v = self.qkv(x).view(n, 3, self.heads, width // self.heads).permute(1, 2, 0, 3)
        rate = self.weight_dropout if self.training else 0.0
        order, found = [], []
        for number, (keys, values) in enumerate(context):
            rows = (slide == number).nonzero()[:, 0]
            parts = rows.split(max(1, _CHUNK // (self.heads * keys.shape[1])))
            again = torch.is_grad_enabled() and len(parts) > 1
            for part in parts if len(rows) else ():
                inputs = (q[:, part], k[:, part], v[:, part], keys, values, rate)
                y = (
                    checkpoint(_visiting_attention, *inputs, use_reentrant=False)
                    if again
                    else _visiting_attention(*inputs)
                )
                order.append(part)
                found.append(y)
        y = torch.cat(found, 1)[:, torch.cat(order).argsort()]
        return self.drop(self.out(y.transpose(0, 1).reshape(n, width)))


class Block(nn.Module):
    """Pre-norm transformer layer, (B, T, width) -> (B, T, width).

    The feed-forward layer is ``mlp`` times as wide. ``attention_dropout`` drops attention weights too.
    """

    def __init__(
        self, width: int, heads: int, mlp: int = 4, dropout: float = 0.0, *, attention_dropout: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout, on_weights=attention_dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, mlp * width, dropout)

    def forward(self, x: Tensor, *biases: Tensor | None) -> Tensor:
        """Tokens ``x`` (B, T, width) to (B, T, width); ``biases`` as in :class:`Attention`."""
        x = x + self.attention(self.norm1(x), *biases)
        return x + self.mlp(self.norm2(x))

    def read(self, x: Tensor, context: Tensor, *biases: Tensor | None) -> Tensor:
        """Compute some tokens ``x`` (B, Q, width) of the ``context`` (B, T, width) alone: (B, Q, width)."""
        x = x + self.attention.read(self.norm1(x), self.norm1(context), *biases)
        return x + self.mlp(self.norm2(x))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values that visitors attend to, of tokens ``x`` (B, T, width) before this layer."""
        return self.attention.keys_values(self.norm1(x))

    def visit(self, x: Tensor, slide: Tensor, context: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Visitors ``x`` (V, width) to (V, width); ``slide`` and ``context`` as in :meth:`Attention.visit`."""
        x = x + self.attention.visit(self.norm1(x), slide, context)
        return x + self.mlp(self.norm2(x))


class CrossAttention(nn.Module):
    """Multi-head attention of queries to other tokens: (B, Q, width) and (B, T, width) -> (B, Q, width)."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(_undivided(width, heads))
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, tokens: Tensor, inside: Tensor | None = None) -> Tensor:
        """Let queries ``x`` (B, Q, width) attend to ``tokens`` (B, T, width) that are ``inside`` (B, T)."""
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
    """Pre-norm layers in which queries attend to other tokens: (B, Q, width) and (B, T, width) -> (B, Q, width)."""

    def __init__(self, width: int, depth: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        # one norm for queries and tokens, as TRIPLEX has it
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attentions = nn.ModuleList(CrossAttention(width, heads, dropout) for _ in range(depth))
        self.mlps = nn.ModuleList(FeedForward(width, mlp * width, dropout) for _ in range(depth))

    def forward(self, x: Tensor, tokens: Tensor, inside: Tensor | None = None) -> Tensor:
        """Let queries ``x`` (B, Q, width) attend to ``tokens`` (B, T, width) that are ``inside`` (B, T)."""
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
