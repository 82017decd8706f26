"""Ridge regression with a penalty for each component of the outputs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import gram
from .gathered import Gathered
from .scaling import Standardize

#: Inputs (n, n_in), outputs (n, n_out), folds (n,) and weights (n,) of some training rows; weights None: all 1.
Piece = tuple[Tensor, Tensor, Tensor, Tensor | None]


class ComponentRidge(nn.Module):
    """Weighted ridge regression of which each output, or component of the outputs, has a penalty of its own.

    The inputs are centred once, over all training rows, and not again on each fold: in units of its slide a part of a
    slide has a mean, and a penalty that is chosen as if it had none is too small.

    Parameters
    ----------
    n_in, n_out
        Widths. Until ``solve`` is called, the prediction is zero.
    standardize
        Bring the inputs to mean 0 and standard deviation 1 over the training rows, by their weights.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, n_in: int, n_out: int, *, standardize: bool = True) -> None:
        super().__init__()
        self.scaled = standardize
        self.standardize = Standardize(n_in)
        self.register_buffer("weight", torch.zeros(n_out, n_in))
        self.register_buffer("bias", torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Predict (N, n_out) from ``x`` (N, n_in); never in bfloat16, in which large weights of opposite sign leave noise."""
        with torch.autocast(x.device.type, enabled=False):
            return self.standardize(x.float()) @ self.weight.T + self.bias

    def solve(
        self,
        pieces: Iterable[Piece],
        alphas: Sequence[float],
        axes: Tensor | None = None,
    ) -> None:
        """Choose each penalty by the squared error on folds that are left out, and solve.

        An output that is predicted no better than by its mean is predicted by it.

        Parameters
        ----------
        pieces
            The training rows.
        alphas
            Penalties to try, ascending.
        axes
            (k, n_out) orthonormal components of the outputs; what they do not span is predicted by its mean. None:
            no components, and one penalty for all outputs.
        """
        gathered = Gathered()
        total, n = torch.zeros(len(self.weight), dtype=torch.float64), 0.0
        for x, y, folds, weights in pieces:
            weights = torch.ones(len(x)) if weights is None else weights
            total += weights.double() @ y.double()
            n += float(weights.double().sum())
            gathered.add(x, y if axes is None else y.double() @ axes.double().T, folds, weights)
        problem = self._rows(gathered) if gathered.sums is None else self._sums(gathered.sums)
        errors, null = problem.errors(alphas)
        if axes is None:
            errors, null = errors.sum(1, keepdim=True), null.sum(0, keepdim=True)
        # without a second fold there is nothing to choose by: the strongest penalty
        chosen = errors.argmin(0) if bool(null.any()) else torch.full(errors.shape[1:], len(alphas) - 1)
        useful = (errors.amin(0) < null) | ~null.any()
        weight, bias = problem.solve(torch.tensor(list(alphas), dtype=torch.float64)[chosen], useful)
        if axes is not None:
            axes, mean = axes.double(), total / n
            weight, bias = axes.T @ weight, axes.T @ (bias - axes @ mean) + mean
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def _rows(self, gathered: Gathered) -> "_Rows":
        x, y, folds, weights = gathered.rows()
        w = weights.double()
        if self.scaled:
            mean = w @ x.double() / w.sum()
            self.standardize.set(mean, (w @ (x - mean).square() / w.sum()).sqrt())
        return _Rows(self.standardize(x).double(), y.double(), folds, w)

    def _sums(self, sums: gram.GramMatrices) -> "_Sums":
        if self.scaled:
            self.standardize.set(*sums.moments())
        nothing = torch.zeros(sums.n_outputs), torch.ones(sums.n_outputs)
        return _Sums(sums.standardized((self.standardize.mean, self.standardize.scale), nothing))


@dataclass
class _Rows:
    """The problem by its rows: inputs (n, p), outputs (n, k), folds (n,) and weights (n,)."""

    x: Tensor
    y: Tensor
    folds: Tensor
    weights: Tensor

    def errors(self, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Squared errors of left-out folds by penalty and output (a, k), and those of the mean (k,)."""
        k = self.y.shape[1]
        errors, null = torch.zeros(len(alphas), k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
        for fold in self.folds.unique() if len(self.folds.unique()) > 1 else ():
            out = self.folds == fold
            mean, s, vt, onto = self._decomposed(~out)
            into, left, w = self.x[out] @ vt.T, self.y[out] - mean, self.weights[out, None]
            null += (left.square() * w).sum(0)
            for i, alpha in enumerate(alphas):
                predicted = into @ ((s / (s.square() + alpha))[:, None] * onto)
                errors[i] += ((predicted - left).square() * w).sum(0)
        return errors, null

    def solve(self, alphas: Tensor, useful: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (k, p) and bias (k,) at the penalty of each output (k,); outputs that are not ``useful`` get none."""
        mean, s, vt, onto = self._decomposed(torch.ones(len(self.x), dtype=torch.bool))
        shrunk = s[:, None] / (s.square()[:, None] + alphas) * useful
        return (vt.T @ (shrunk * onto)).T, mean

    def _decomposed(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean of the outputs, and the singular values and vectors of the inputs, with the outputs along the left ones."""
        x, y, w = self.x[rows], self.y[rows], self.weights[rows]
        mean, root = w @ y / w.sum(), w.sqrt()[:, None]
        u, s, vt = torch.linalg.svd(x * root, full_matrices=False)
        return mean, s, vt, u.T @ ((y - mean) * root)


@dataclass
class _Sums:
    """The problem by its sums over each fold, whose size does not depend on the number of rows."""

    folds: list[gram.Sums]

    def errors(self, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Give errors as :meth:`_Rows.errors`."""
        if len(self.folds) < 2:
            k = len(self.folds[0].y)
            return torch.zeros(len(alphas), k), torch.zeros(k)
        return gram.fold_errors(self.folds, alphas, center_inputs=False), gram.null_errors(self.folds)

    def solve(self, alphas: Tensor, useful: Tensor) -> tuple[Tensor, Tensor]:
        """Solve as :meth:`_Rows.solve`."""
        everything = gram.total(self.folds)
        mean = everything.y / everything.n
        centered = everything.shifted(torch.zeros_like(everything.x), mean)
        values, axes = torch.linalg.eigh(centered.xx)
        shrunk = useful / (values.clamp(min=0)[:, None] + alphas)
        return (axes @ (shrunk * (axes.T @ centered.xy))).T, mean
