"""A linear map in closed form, its penalty chosen by generalised or by spatial cross-validation."""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from .batch import Batch
from .scaling import Standardize

N_STRIPES = 5


def pooled_features(batch: Batch) -> Tensor:
    """Mean local token beside the mean of the neighbours inside the image, (N, 2 D) float32."""
    inside = batch.neighbor_mask[..., None].float()
    neighbors = (batch.neighbors.float() * inside).sum(1) / inside.sum(1).clamp(min=1)
    return torch.cat([batch.tokens.float().mean(1), neighbors], 1)


def stripes(batch: Batch, n: int = N_STRIPES) -> Tensor:
    """Stripe of the slide that each spot lies in, 0 to n - 1, across the longer side of its grid: (N,) int64.

    Every stripe has the same number of spots of the slide, whichever of them the batch holds.
    """
    found = []
    for grid in batch.slides.grid.split(batch.slides.lengths):
        axis = int((grid.amax(0) - grid.amin(0)).argmax())
        rank = grid[:, axis].argsort(stable=True).argsort()
        found.append(rank * n // len(grid))
    return torch.cat(found)[batch.index]


class RidgeMap(nn.Module):
    """Ridge regression from standardised inputs, one penalty for all outputs: (N, n_in) -> (N, n_out).

    Parameters
    ----------
    n_in, n_out
        Widths. Until ``solve`` is called, the answer is zero.
    """

    weight: Tensor
    bias: Tensor
    alpha: Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.standardize = Standardize(n_in)
        self.register_buffer("weight", torch.zeros(n_out, n_in))
        self.register_buffer("bias", torch.zeros(n_out))
        self.register_buffer("alpha", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Predict."""
        return self.standardize(x) @ self.weight.T + self.bias

    def solve(
        self, x: Tensor, y: Tensor, alphas: Sequence[float], folds: Tensor | None = None, *, n_components: int = 0
    ) -> None:
        """Take the penalty that predicts best, and solve with it.

        Parameters
        ----------
        x
            (n, n_in) inputs.
        y
            (n, n_out) outputs.
        alphas
            Penalties to try.
        folds
            (n,) fold of each row: each is predicted from the others. None: generalised cross-validation
            (Golub, Heath, Wahba 1979), which takes neighbouring spots for independent.
        n_components
            Principal components of the standardised inputs that are kept; 0 for all.
        """
        inputs, onto = self._components(x, n_components)
        outputs = y.double()
        if folds is not None:
            alphas = [_best_alpha(inputs, outputs, alphas, folds)]
        solved = RidgeCV(alphas=alphas).fit(inputs.numpy(), outputs.numpy())
        self.weight.copy_(torch.from_numpy(solved.coef_.reshape(len(self.weight), -1)) @ onto)
        self.bias.copy_(torch.from_numpy(np.atleast_1d(solved.intercept_)))
        self.alpha.fill_(float(solved.alpha_))

    def solve_hest(self, x: Tensor, y: Tensor, n_components: int) -> None:
        """Solve with the fixed penalty of the HEST benchmark, 100 / (width M), and without an intercept.

        Its script divides by the number of inputs and of genes; the level of a gene is not learnt, since the inputs
        are centred.
        """
        inputs, onto = self._components(x, n_components)
        outputs = y.double()
        alpha = 100 / (inputs.shape[1] * outputs.shape[1])
        penalty = alpha * torch.eye(inputs.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ outputs)
        self.weight.copy_(weight.T @ onto)
        self.bias.zero_()
        self.alpha.fill_(alpha)

    def _components(self, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Give inputs on their first n principal axes, and the axes, (n, n_in) float64; all inputs for n = 0."""
        self.standardize.fit([x])
        inputs = self.standardize(x).double()
        if not n or n >= min(inputs.shape):
            return inputs, torch.eye(inputs.shape[1], dtype=torch.float64)
        onto = torch.linalg.svd(inputs - inputs.mean(0), full_matrices=False)[2][:n]
        return inputs @ onto.T, onto


def _best_alpha(x: Tensor, y: Tensor, alphas: Sequence[float], folds: Tensor) -> float:
    """Penalty with the least squared error on folds that were left out; the largest where there is one fold."""
    error = torch.zeros(len(alphas), dtype=torch.float64)
    for fold in folds.unique() if len(folds.unique()) > 1 else ():
        out = folds == fold
        x_mean, y_mean = x[~out].mean(0), y[~out].mean(0)
        u, s, vt = torch.linalg.svd(x[~out] - x_mean, full_matrices=False)
        into, onto = (x[out] - x_mean) @ vt.T, u.T @ (y[~out] - y_mean)
        for i, alpha in enumerate(alphas):
            predicted = into @ ((s / (s.square() + alpha))[:, None] * onto) + y_mean
            error[i] += (predicted - y[out]).square().sum()
    best = int(error.argmin()) if bool(error.any()) else len(alphas) - 1
    return float(alphas[best])
