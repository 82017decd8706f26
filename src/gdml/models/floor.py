"""The models in closed form that a network is blended with."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .batch import Batch
from .component_ridge import ComponentRidge
from .kernel import KernelConfig, KernelMap
from .ridge import RidgeConfig, learnt_pieces


def even_shares(n: int) -> Tensor:
    """Shares of ``n`` members until they are chosen, (n,): half for the network, the last one, the rest for the others."""
    return torch.tensor([0.5 / (n - 1)] * (n - 1) + [0.5])


class Floor(nn.Module):
    """Ridge regression, and kernel ridge regression where asked for, with the shares of a blend.

    Parameters
    ----------
    n_in, n_out
        Widths of the summaries and of the prediction.
    kernel
        Add kernel ridge regression.
    """

    shares: Tensor

    def __init__(self, n_in: int, n_out: int, *, kernel: bool) -> None:
        super().__init__()
        self.ridge = ComponentRidge(n_in, n_out)
        c = KernelConfig()
        self.kernel = KernelMap(n_in, n_out, n_landmarks=c.n_landmarks, gamma=c.gamma) if kernel else None
        self.register_buffer("shares", even_shares(3 if kernel else 2))

    def solve(self, batches: Iterable[Batch], axes: Tensor | None) -> None:
        """Solve on the training spots; ``axes`` as in :meth:`ComponentRidge.solve`."""
        pieces = lambda: learnt_pieces(batches, lambda batch: batch.summarized)
        self.ridge.solve(pieces(), RidgeConfig().alphas, axes)
        if self.kernel is not None:
            self.kernel.solve(pieces, KernelConfig().alphas, axes)

    def forward(self, summary: Tensor) -> list[Tensor]:
        """Predict (N, n_out) by each, from ``summary`` (N, n_in)."""
        return [self.ridge(summary), *([] if self.kernel is None else [self.kernel(summary)])]

    def blend(self, members: Tensor) -> Tensor:
        """Weigh the predictions of all members (N, k, n_out), the network's last: (N, n_out)."""
        with torch.autocast(members.device.type, enabled=False):
            return torch.einsum("nkm,k->nm", members.float(), self.shares)
