"""Ridge regression from sums of products, whose size does not depend on the number of rows."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass
class Sums:
    """Weighted sums over rows of inputs x, with p columns, and outputs y, with m columns.

    Parameters
    ----------
    n
        Number of rows, or the sum of their weights.
    x, y
        (p,) and (m,) float64 sums.
    xx, xy, yy
        (p, p) and (p, m) sums of products, and (m,) of squares, float64.
    """

    n: float
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, weights: Tensor | None = None) -> Self:
        """Sum the rows of ``x`` (n, p) and ``y`` (n, m), float64, by their weights (n,)."""
        if weights is None:
            return cls(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum(0))
        w = weights.double()
        weighted = x * w[:, None]
        return cls(float(w.sum()), weighted.sum(0), w @ y, weighted.T @ x, weighted.T @ y, w @ y.square())

    def __iadd__(self, other: Self) -> Self:
        for part in fields(self):
            value = getattr(self, part.name)
            value += getattr(other, part.name)
            setattr(self, part.name, value)
        return self

    def __sub__(self, other: Self) -> Self:
        return replace(self, **{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    def shifted(self, dx: Tensor, dy: Tensor) -> Self:
        """Return the sums of x - ``dx`` and y - ``dy``."""
        n, x, y = self.n, self.x, self.y
        xx = self.xx - torch.outer(x, dx)
        xx -= torch.outer(dx, x - n * dx)
        xy = self.xy - torch.outer(x, dy) - torch.outer(dx, y - n * dy)
        return replace(self, x=x - n * dx, y=y - n * dy, xx=xx, xy=xy, yy=self.yy - dy * (2 * y - n * dy))

    def scaled(self, x: Tensor, y: Tensor) -> Self:
        """Return the sums of the columns divided by ``x`` (p,) and ``y`` (m,)."""
        xx = self.xx / x
        xx /= x[:, None]
        return replace(self, x=self.x / x, y=self.y / y, xx=xx, xy=self.xy / y / x[:, None], yy=self.yy / y.square())

    def projected(self, onto: Tensor) -> Self:
        """Return the sums of the inputs projected on the rows of ``onto`` (k, p)."""
        return replace(self, x=onto @ self.x, xx=onto @ self.xx @ onto.T, xy=onto @ self.xy)

    def centered(self) -> Self:
        """Return the sums of the deviations from the means."""
        return self.shifted(self.x / self.n, self.y / self.n)


class GramMatrices:
    """Sums of a ridge regression by fold, of rows that come in pieces.

    Parameters
    ----------
    x, y
        (p,) and (m,) values near the means, which are subtracted from all rows before they are multiplied.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.near = x.double(), y.double()
        self.folds: dict[int, Sums] = {}

    @property
    def n_outputs(self) -> int:
        """Number of outputs m."""
        return len(self.near[1])

    def add(self, x: Tensor, y: Tensor, folds: Tensor | None = None, weights: Tensor | None = None) -> None:
        """Take in inputs (n, p), outputs (n, m), the fold and the weight of each row (n,); None: one fold, weight 1."""
        x, y = x.double() - self.near[0], y.double() - self.near[1]
        for fold in [0] if folds is None else folds.unique().tolist():
            rows = slice(None) if folds is None else folds == fold
            found = Sums.of(x[rows], y[rows], None if weights is None else weights[rows])
            if fold in self.folds:
                self.folds[fold] += found
            else:
                self.folds[fold] = found

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and population standard deviation of the inputs, (p,) float64 each."""
        everything = total(list(self.folds.values()))
        mean = everything.x / everything.n
        return mean + self.near[0], (everything.xx.diagonal() / everything.n - mean.square()).clamp(min=0).sqrt()

    def standardized(self, x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> list[Sums]:
        """Return the sums of each fold; ``x`` and ``y`` are the mean to subtract and the scale to divide by."""
        (dx, x_scale), (dy, y_scale) = (
            (mean.double() - near, scale.double()) for (mean, scale), near in zip((x, y), self.near, strict=True)
        )
        return [self.folds[fold].shifted(dx, dy).scaled(x_scale, y_scale) for fold in sorted(self.folds)]


def total(folds: Sequence[Sums]) -> Sums:
    """Add up the sums of all folds."""
    everything = folds[0] - folds[0]
    for sums in folds:
        everything += sums
    return everything


def principal_axes(sums: Sums, n: int) -> Tensor:
    """Find the first ``n`` principal axes of the inputs, (n, p) float64."""
    return torch.linalg.eigh(sums.centered().xx).eigenvectors.flip(1)[:, :n].T


def fold_errors(folds: Sequence[Sums], alphas: Sequence[float], *, center_inputs: bool = True) -> Tensor:
    """Predict each fold from the others: the total squared error by penalty and output, (n_alphas, m) float64.

    Outputs, and where asked for inputs, are centred on their means over the other folds.
    """
    error = torch.zeros(len(alphas), len(folds[0].y), dtype=torch.float64)
    everything = total(folds)
    for fold in folds:
        others = everything - fold
        x_mean = others.x / others.n if center_inputs else torch.zeros_like(others.x)
        y_mean = others.y / others.n
        left_out, others = fold.shifted(x_mean, y_mean), others.shifted(x_mean, y_mean)
        # one decomposition serves all penalties
        values, axes = torch.linalg.eigh(others.xx)
        learnt, gram, cross = axes.T @ others.xy, axes.T @ left_out.xx @ axes, axes.T @ left_out.xy
        for i, alpha in enumerate(alphas):
            weights = learnt / (values.clamp(min=0) + alpha)[:, None]
            error[i] += left_out.yy + (weights * (gram @ weights - 2 * cross)).sum(0)
    return error


def null_errors(folds: Sequence[Sums]) -> Tensor:
    """Predict each fold by the mean of the others: the total squared error by output, (m,) float64."""
    everything = total(folds)
    error = torch.zeros_like(everything.y)
    for fold in folds:
        others = everything - fold
        error += fold.shifted(others.x / others.n, others.y / others.n).yy
    return error


def gcv_errors(sums: Sums, alphas: Sequence[float]) -> Tensor:
    """Score each penalty by generalised cross-validation, (n_alphas,) float64; less is better."""
    sums = sums.centered()
    values, axes = torch.linalg.eigh(sums.xx)
    values, learnt = values.clamp(min=0), axes.T @ sums.xy
    error = []
    for alpha in alphas:
        shrunk = values + alpha
        squares = (learnt.square() * ((2 * shrunk - values) / shrunk.square())[:, None]).sum()
        freedom = 1 + (values / shrunk).sum()
        error.append((sums.yy.sum() - squares) / (1 - freedom / sums.n) ** 2)
    return torch.stack(error)


def solve(sums: Sums, alpha: float) -> Tensor:
    """Solve for the weights of a ridge regression without an intercept, (p, m) float64."""
    penalized = sums.xx.clone()
    penalized.diagonal().add_(alpha)
    return torch.cholesky_solve(sums.xy, torch.linalg.cholesky(penalized))
