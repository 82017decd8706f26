"""Attention by plain products, for training on a CPU.

torch's fused attention is five times slower than plain products in its bf16 backward pass on a CPU, and it has no dropout
of the weights there. What autograd makes of plain products copies queries, keys and values several times and keeps masks
as large as the weights; here each is copied once, and masks are a byte per weight.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .dropout import draw_kept, keep


def _split(x: Tensor, heads: int, parts: int) -> list[Tensor]:
    """Cut (B, T, parts x width) into the parts, by head: (B x heads, T, width / heads) each."""
    b, t, _ = x.shape
    by_head = x.reshape(b, t, parts, heads, -1).permute(2, 0, 3, 1, 4)
    return list(by_head.reshape(parts, b * heads, t, -1))


def _join(parts: list[Tensor], heads: int) -> Tensor:
    """Undo :func:`_split`."""
    n, t, size = parts[0].shape
    joined = parts[0].new_empty(n // heads, t, len(parts), heads, size)
    for i, part in enumerate(parts):
        joined[:, :, i] = part.view(-1, heads, t, size).transpose(1, 2)
    return joined.view(n // heads, t, -1)


class _Attention(Function):
    """Of queries (B, Q, width) to keys and values (B, T, 2 width); ``biases`` are added to the logits."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys_values: Tensor, heads: int, rate: float, *biases: Tensor) -> Tensor:
        (q,), (k, v) = _split(queries, heads, 1), _split(keys_values, heads, 2)
        ctx.heads, ctx.scale, ctx.factor = heads, q.shape[-1] ** -0.5, 1.0
        ctx.shapes = [(bias.shape, bias.dtype) for bias in biases]
        logits = torch.bmm(q, k.transpose(1, 2)).mul_(ctx.scale)
        by_head = logits.view(-1, heads, *logits.shape[1:])
        for bias in biases:
            by_head.add_(bias)
        weights = logits.softmax(-1)
        kept = None
        if round(rate * 256):
            kept, ctx.factor = draw_kept(weights, rate)
        ctx.save_for_backward(q, k, v, weights, kept)
        return _join([torch.bmm(weights if kept is None else keep(weights, kept, ctx.factor), v)], heads)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, kept = ctx.saved_tensors
        (of_y,) = _split(gradient, ctx.heads, 1)
        used = weights if kept is None else keep(weights, kept, ctx.factor)
        of_v = torch.bmm(used.transpose(1, 2), of_y)
        of_weights = torch.bmm(of_y, v.transpose(1, 2))
        if kept is not None:
            of_weights = keep(of_weights, kept, ctx.factor)
        of_logits = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        by_head = of_logits.view(-1, ctx.heads, *of_logits.shape[1:])
        of_biases = [
            by_head.sum_to_size(shape).to(dtype) if wanted else None
            for (shape, dtype), wanted in zip(ctx.shapes, ctx.needs_input_grad[4:], strict=True)
        ]
        of_logits = of_logits.mul_(ctx.scale)
        of_q, of_k = torch.bmm(of_logits, k), torch.bmm(of_logits.transpose(1, 2), q)
        return _join([of_q], ctx.heads), _join([of_k, of_v], ctx.heads), None, None, *of_biases


def plain_attention(queries: Tensor, keys_values: Tensor, heads: int, rate: float = 0.0, *biases: Tensor) -> Tensor:
    """softmax(q k' / sqrt(width / heads) + biases) v for each head.

    Parameters
    ----------
    queries
        (B, Q, width), on the CPU.
    keys_values
        (B, T, 2 width), keys beside values.
    heads
        Heads, which divide the width.
    rate
        Rate at which weights are dropped, see :func:`gdml.models.dropout.draw_kept`.
    *biases
        Each added to the logits, broadcast over (B, heads, Q, T), four dimensions; -inf masks a key.

    Returns
    -------
    (B, Q, width).
    """
    biases = tuple(bias.to(queries.dtype) for bias in biases)
    return _Attention.apply(queries, keys_values, heads, rate, *biases)  # type: ignore[no-untyped-call, no-any-return]
