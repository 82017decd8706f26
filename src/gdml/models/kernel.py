"""Kernel ridge regression from summaries of the features, by landmarks (Nystroem)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Shape, SpotModel
from .batch import Batch, Output
from .component_ridge import ComponentRidge, Piece
from .config import PenaltyConfig
from .ridge import learnt_pieces
from .scaling import Moments, Standardize

#: Directions of the space of the kernel whose eigenvalue is below this share of the largest are rounding errors.
_LEAST_DIRECTION = 1e-6


class KernelMap(nn.Module):
    """Ridge regression in the space of a Gaussian kernel, spanned by landmarks.

    The kernel of two standardised inputs is exp(-gamma |x - z|^2 / n_in). With as many landmarks as training rows it is
    kernel ridge regression itself; with fewer, its Nystroem approximation :cite:p:`Williams2001`.

    Parameters
    ----------
    n_in, n_out
        Widths. Until ``solve`` is called, the prediction is zero.
    n_landmarks
        Training rows that span the space, at most.
    gamma
        Of the kernel.
    """

    landmarks: Tensor
    whiten: Tensor

    def __init__(self, n_in: int, n_out: int, *, n_landmarks: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma / n_in
        self.standardize = Standardize(n_in)
        self.register_buffer("landmarks", torch.zeros(n_landmarks, n_in))
        self.register_buffer("whiten", torch.zeros(n_landmarks, n_landmarks))
        self.map = ComponentRidge(n_landmarks, n_out, standardize=False)

    def forward(self, x: Tensor) -> Tensor:
        """Predict (N, n_out) from ``x`` (N, n_in); never in bfloat16."""
        with torch.autocast(x.device.type, enabled=False):
            return self.map(self._coordinates(x.float()))

    def _coordinates(self, x: Tensor) -> Tensor:
        """Coordinates (N, n_landmarks) whose products are the kernel; zero for landmarks that are not used."""
        return self._kernel(self.standardize(x), self.landmarks) @ self.whiten.T

    def _kernel(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.exp(-self.gamma * torch.cdist(x, z).square())

    def solve(
        self,
        pieces: Callable[[], Iterable[Piece]],
        alphas: list[float],
        axes: Tensor | None = None,
    ) -> None:
        """Choose landmarks and penalties, and solve.

        Parameters
        ----------
        pieces
            Gives the training rows; called twice.
        alphas, axes
            As in :meth:`ComponentRidge.solve`.
        """
        moments, rows = Moments(self.landmarks.shape[1]), _Thinned(len(self.landmarks))
        for x, *_ in pieces():
            moments.add(x)
            rows.add(x)
        self.standardize.set(moments.mean, moments.std)
        chosen = self.standardize(rows.kept())
        # the Nystroem of scikit-learn shuffles by numpy's global state, and keeps directions that float32 cannot resolve
        values, vectors = torch.linalg.eigh(self._kernel(chosen.double(), chosen.double()))
        kept = values > _LEAST_DIRECTION * values[-1]
        whiten = vectors[:, kept] / values[kept].sqrt() @ vectors[:, kept].T
        self.landmarks.zero_()
        self.whiten.zero_()
        self.landmarks[: len(chosen)].copy_(chosen)
        self.whiten[: len(chosen), : len(chosen)].copy_(whiten)
        located = ((self._coordinates(x), y, folds, weights) for x, y, folds, weights in pieces())
        self.map.solve(located, alphas, axes)


class _Thinned:
    """Every 2^k-th of rows that come in pieces, with the least k that keeps no more than ``most``."""

    def __init__(self, most: int) -> None:
        self.most, self.stride, self.seen = most, 1, 0
        self.rows: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Take in rows (n, width)."""
        for i, row in enumerate(x, self.seen):
            if i % self.stride:
                continue
            self.rows.append(row.clone())  # not a view, which would keep the whole piece
            if len(self.rows) > self.most:
                self.rows, self.stride = self.rows[::2], 2 * self.stride
        self.seen += len(x)

    def kept(self) -> Tensor:
        """Rows that are kept, (m, width)."""
        return torch.stack(self.rows)


@dataclass(frozen=True)
class KernelConfig(PenaltyConfig):
    """Settings of kernel ridge regression.

    Parameters
    ----------
    n_landmarks
        Training spots that span the space of the kernel, at most.
    gamma
        The kernel of two spots is exp(-gamma times the mean squared difference of their standardised summaries).
    alpha_min, alpha_max, n_alphas
        Penalties that are tried, evenly spaced in the logarithm, on five stripes of each slide.
    """

    n_landmarks: int = 1024
    gamma: float = 0.3
    alpha_min: float = 1e-2
    alpha_max: float = 1e5
    n_alphas: int = 22

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(1, "n_landmarks")
        self.check_positive("gamma")


class Kernel(SpotModel):
    """Kernel ridge regression from the mean and spread of local tokens and neighbours.

    As :class:`Ridge` in the frame ``"slide"``, with a Gaussian kernel: it can follow relations that are not linear, and
    needs more spots for it.
    """

    config_class = KernelConfig
    citation: ClassVar[str] = "Williams, Seeger (2001), NIPS 13:682"
    default_frame = "slide"
    closed_form = True
    needs = frozenset({"summary"})
    config: KernelConfig

    def __init__(self, config: KernelConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.map = KernelMap(4 * shape.dim, shape.n_genes, n_landmarks=config.n_landmarks, gamma=config.gamma)

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Choose landmarks and penalties on the training spots, and solve."""
        pieces = lambda: learnt_pieces(batches, lambda batch: batch.summarized)
        self.map.solve(pieces, self.config.alphas, self.target_components)

    def forward(self, batch: Batch) -> Output:
        """Predict (N, M) from the summaries."""
        return Output(self.map(batch.summarized))


MODELS = {"kernel": Kernel}
