"""Transformer parts that the models share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """Dropout whose random numbers are cheap on a CPU.

    torch draws one number per entry, which took a third of a training step; here one 64-bit number serves
    eight entries, so that the rate is rounded to the next 1/256 (the scale is exact for that rate).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Zero entries at random in training, (...) -> (...)."""
        drop = round(self.p * 256)
        if not self.training or not drop or x.device.type != "cpu":
            return super().forward(x)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= drop
        return x * kept.to(x.dtype).mul_(256 / (256 - drop))


# torch's fused attention is five times slower than plain products in its bf16 backward pass on a CPU;
# beyond this many tokens its smaller memory matters more
_SHORT = 1024


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rate: float) -> Tensor:
    """softmax(q k' / sqrt(width) + bias) v, all (B, heads, T, width)."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = (logits if bias is None else logits + bias).softmax(-1).to(v.dtype)
    return F.dropout(weights, rate) @ v if rate else weights @ v


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
            nn.Linear(width, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, width), Dropout(dropout)
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
        Rate on the output.
    on_weights
        Drop attention weights at the same rate, which rules out the fused kernels.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, *, on_weights: bool = False) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"`heads` must divide the token width: found {heads} heads for width {width}.")
        self.heads = heads
        self.weight_dropout = dropout if on_weights else 0.0
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend; ``bias`` is added to the logits, broadcast over (B, heads, T, T) (-inf masks a key)."""
        b, t, width = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        rate = self.weight_dropout if self.training else 0.0
        if bias is not None:
            bias = bias.to(q.dtype)
        if x.device.type == "cpu" and torch.is_grad_enabled() and t <= _SHORT:
            y = _plain_attention(q, k, v, bias, rate)
        else:
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
        Rate of the dropouts in the layer.
    attention_dropout
        Drop attention weights too.
    """

    def __init__(
        self, width: int, heads: int, mlp: int = 4, dropout: float = 0.0, *, attention_dropout: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout, on_weights=attention_dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, mlp * width, dropout)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """One layer; ``bias`` as in :class:`Attention`."""
        x = x + self.attention(self.norm1(x), bias)
        return x + self.mlp(self.norm2(x))
