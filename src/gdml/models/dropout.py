"""Dropout whose random numbers are cheap on a CPU.

torch draws one number per entry, which took a third of a training step. Here one 64-bit number serves eight entries: the
rate is rounded to a multiple of 1/256, and the scale is exact for the rounded rate.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def draw_kept(like: Tensor, rate: float) -> tuple[Tensor, float]:
    """Draw which entries of ``like``, on the CPU, are kept.

    Returns
    -------
    uint8 of the same shape, 1 for an entry that is kept and else 0, and the factor of these entries.
    """
    drop = round(rate * 256)
    words = torch.empty((like.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: like.numel()].view(like.shape)
    return kept.ge_(drop), 256 / (256 - drop)


def keep(x: Tensor, kept: Tensor, factor: float) -> Tensor:
    """Entries that are ``kept`` times ``factor``, else 0, as a new tensor."""
    # numbers of one type: a product with bytes converts entry by entry
    return kept.to(x.dtype).mul_(x).mul_(factor)


class _Drop(Function):
    """Dropout on the CPU, which remembers a byte per entry."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        kept, ctx.factor = draw_kept(x, rate)
        ctx.save_for_backward(kept)
        return keep(x, kept, ctx.factor)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return keep(gradient, kept, ctx.factor), None


def dropped(x: Tensor, rate: float) -> Tensor:
    """Zero entries of ``x`` (...) at random, and scale the others so that the mean stays."""
    if x.device.type != "cpu" or rate >= 1:
        return F.dropout(x, rate)
    return _Drop.apply(x, rate) if round(rate * 256) else x  # type: ignore[no-untyped-call]


class Dropout(nn.Dropout):
    """Dropout of :func:`dropped`, in training alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Zero entries at random in training, (...) -> (...)."""
        return dropped(x, self.p) if self.training else x
