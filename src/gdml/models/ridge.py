"""Ridge regression on pooled features, in closed form: the baseline of every comparison."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.linear_model import Ridge as FixedRidge
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from . import gram
from .base import Shape, SpotModel
from .batch import Batch, Output
from .component_ridge import ComponentRidge, Piece
from .config import PenaltyConfig
from .gathered import Gathered
from .scaling import Standardize

N_STRIPES = 5


def pooled_features(batch: Batch) -> Tensor:
    """Mean local token beside the mean of the neighbours inside the image, (N, 2 D) float32."""
    inside = batch.neighbor_mask[..., None].float()
    neighbors = (batch.neighbors.float() * inside).sum(1) / inside.sum(1).clamp(min=1)
    return torch.cat([batch.tokens.float().mean(1), neighbors], 1)


def stripes(grid: Tensor, n: int = N_STRIPES) -> Tensor:
    """Stripe, 0 to n - 1, of each spot of a slide across the longer side of its grid: (S, 2) int64 to (S,) int64.

    All stripes have the same number of spots, up to one.
    """
    axis = int((grid.amax(0) - grid.amin(0)).argmax())
    rank = grid[:, axis].argsort(stable=True).argsort()
    return rank * n // len(grid)


def learnt_stripes(batch: Batch) -> Tensor:
    """Stripes of a batch that is learnt from, (N,) int64; a ValueError where it has none."""
    if batch.stripe is None:
        raise ValueError(
            "The batch has no stripes to choose a penalty on: set `stripe`, see gdml.models.ridge.stripes."
        )
    return batch.stripe


def learnt_pieces(batches: Iterable[Batch], inputs: Callable[[Batch], Tensor]) -> Iterator[Piece]:
    """Give what a ridge regression learns of batches, with ``inputs`` (n, n_in) of each."""
    for batch in batches:
        yield inputs(batch), batch.measured, learnt_stripes(batch), batch.weight


class RidgeMap(nn.Module):
    """Ridge regression from standardised inputs, with one penalty for all outputs.

    Parameters
    ----------
    n_in, n_out
        Widths. Until ``solve`` is called, the prediction is zero.
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
        """Predict (N, n_out) from ``x`` (N, n_in); never in bfloat16, in which large weights of opposite sign leave noise."""
        with torch.autocast(x.device.type, enabled=False):
            return self.standardize(x.float()) @ self.weight.T + self.bias

    def solve(
        self,
        x: Tensor,
        y: Tensor,
        alphas: Sequence[float],
        folds: Tensor | None = None,
        weights: Tensor | None = None,
        *,
        n_components: int = 0,
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
        weights
            (n,) weight of each row in every sum; None: all 1.
        n_components
            Principal components of the standardised inputs that are kept; 0 for all.
        """
        w = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double()
        inputs, onto = self._components(x, n_components, w)
        outputs = y.double()
        if folds is not None:
            alphas = [_best_alpha(inputs, outputs, alphas, folds, w)]
        solved = RidgeCV(alphas=alphas).fit(inputs.numpy(), outputs.numpy(), w.numpy())
        self.weight.copy_(torch.from_numpy(solved.coef_.reshape(len(self.weight), -1)) @ onto)
        self.bias.copy_(torch.from_numpy(np.atleast_1d(solved.intercept_)))
        self.alpha.fill_(float(solved.alpha_))

    def solve_gathered(
        self,
        gathered: Gathered,
        alphas: Sequence[float],
        target: Standardize | None = None,
        *,
        by_fold: bool = True,
        n_components: int = 0,
    ) -> None:
        """Take the penalty that predicts best, and solve with it, for rows that came in pieces.

        The solution is that of ``solve``. Generalised cross-validation uses the leverage of each row where the rows are
        held, and the mean leverage where only sums are.

        Parameters
        ----------
        gathered
            Inputs, outputs, folds and weights.
        alphas, n_components
            As in ``solve``.
        target
            Scale of the outputs; None: as they are.
        by_fold
            Choose the penalty on folds that are left out, or by generalised cross-validation.
        """
        if gathered.sums is None:
            x, y, of_rows, weights = gathered.rows()
            y = y if target is None else target(y)
            self.solve(x, y, alphas, of_rows if by_fold else None, weights, n_components=n_components)
            return
        folds, onto = self._sums(gathered.sums, target, n_components)
        everything = gram.total(folds)
        if by_fold:
            error = gram.fold_errors(folds, alphas).sum(1) if len(folds) > 1 else torch.zeros(len(alphas))
        else:
            error = gram.gcv_errors(everything, alphas)
        alpha = _least(error, alphas)
        weight = gram.solve(everything.centered(), alpha).T
        self.weight.copy_(weight @ onto)
        self.bias.copy_((everything.y - weight @ everything.x) / everything.n)
        self.alpha.fill_(alpha)

    def solve_hest_gathered(self, gathered: Gathered, n_components: int) -> None:
        """Solve as ``solve_hest``, for rows that came in pieces."""
        if gathered.sums is None:
            x, y, _, weights = gathered.rows()
            self.solve_hest(x, y, n_components, weights)
            return
        folds, onto = self._sums(gathered.sums, None, n_components)
        alpha = 100 / (len(onto) * len(self.weight))
        self.weight.copy_(gram.solve(gram.total(folds), alpha).T @ onto)
        self.bias.zero_()
        self.alpha.fill_(alpha)

    def _sums(
        self, sums: gram.GramMatrices, target: Standardize | None, n_components: int
    ) -> tuple[list[gram.Sums], Tensor]:
        """Give sums by fold of the standardised inputs on their first principal axes, and the axes; as ``_components``."""
        self.standardize.set(*sums.moments())
        unscaled = Standardize(len(self.weight)) if target is None else target
        folds = sums.standardized((self.standardize.mean, self.standardize.scale), (unscaled.mean, unscaled.scale))
        n_in = self.weight.shape[1]
        if not n_components or n_components >= n_in:
            return folds, torch.eye(n_in, dtype=torch.float64)
        onto = gram.principal_axes(gram.total(folds), n_components)
        return [fold.projected(onto) for fold in folds], onto

    def solve_hest(self, x: Tensor, y: Tensor, n_components: int, weights: Tensor | None = None) -> None:
        """Solve with the fixed penalty of the HEST benchmark, 100 / (width M), and without an intercept.

        Its script divides by the number of inputs and of genes. The inputs are centred, so the level of a gene is not
        learnt.
        """
        w = torch.ones(len(x), dtype=torch.float64) if weights is None else weights.double()
        inputs, onto = self._components(x, n_components, w)
        alpha = 100 / (inputs.shape[1] * y.shape[1])
        # the exact solution, where HEST iterates
        solved = FixedRidge(alpha, fit_intercept=False, solver="cholesky").fit(
            inputs.numpy(), y.double().numpy(), w.numpy()
        )
        self.weight.copy_(torch.from_numpy(solved.coef_.reshape(len(self.weight), -1)) @ onto)
        self.bias.zero_()
        self.alpha.fill_(alpha)

    def _components(self, x: Tensor, n: int, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Give inputs on their first n principal axes, and the axes, (n, n_in) float64; all inputs for n = 0."""
        mean = weights @ x.double() / weights.sum()
        self.standardize.set(mean, (weights @ (x - mean).square() / weights.sum()).sqrt())
        inputs = self.standardize(x).double()
        if not n or n >= min(inputs.shape):
            return inputs, torch.eye(inputs.shape[1], dtype=torch.float64)
        onto = torch.linalg.svd(inputs * weights.sqrt()[:, None], full_matrices=False).Vh[:n]
        return inputs @ onto.T, onto


def _best_alpha(x: Tensor, y: Tensor, alphas: Sequence[float], folds: Tensor, weights: Tensor) -> float:
    """Penalty with the least weighted squared error on folds that were left out; the largest where there is one fold."""
    # scikit-learn's search solves each penalty and fold anew; here one decomposition of a fold serves all penalties
    error = torch.zeros(len(alphas), dtype=torch.float64)
    for fold in folds.unique() if len(folds.unique()) > 1 else ():
        out = folds == fold
        w = weights[~out]
        x_mean, y_mean, root = w @ x[~out] / w.sum(), w @ y[~out] / w.sum(), w.sqrt()[:, None]
        u, s, vt = torch.linalg.svd((x[~out] - x_mean) * root, full_matrices=False)
        into, onto = (x[out] - x_mean) @ vt.T, u.T @ ((y[~out] - y_mean) * root)
        for i, alpha in enumerate(alphas):
            predicted = into @ ((s / (s.square() + alpha))[:, None] * onto) + y_mean
            error[i] += weights[out] @ (predicted - y[out]).square().sum(1)
    return _least(error, alphas)


def _least(error: Tensor, alphas: Sequence[float]) -> float:
    """Penalty of the least error; the largest where there is none to compare."""
    return float(alphas[int(error.argmin()) if bool(error.any()) else -1])


@dataclass(frozen=True)
class RidgeConfig(PenaltyConfig):
    """Settings of ridge regression; ``preset="pooled"`` and ``"hest"`` of :func:`gdml.tl.fit` give earlier ones.

    Parameters
    ----------
    inputs
        ``"summary"``: mean and spread of the local tokens and of the neighbours; ``"local+neighbors"``: their means;
        ``"local"``: the mean of the local tokens.
    selection
        How the penalty is chosen on the training spots. ``"stripes"``: each of five stripes of each slide is predicted
        from the others; ``"gcv"``: generalised cross-validation, which treats neighbouring spots as independent;
        ``"hest"``: the fixed 100 / (width M) after PCA, without an intercept, as in the probe of the HEST benchmark
        :cite:p:`Jaume2024`, which predicts the profile of a spot but not the level of a gene.
    penalty
        ``"component"``: one for each component of the targets that the frame keeps, and a component that is predicted
        no better than by its mean is left out (reduced-rank regression; :cite:t:`Breiman1997`); ``"one"``: the same for
        all genes. In a frame that keeps no components, and with a ``selection`` other than ``"stripes"``, it is one.
    n_components
        Principal components of the inputs that are kept, with ``penalty="one"``; 0 for all.
    alpha_min, alpha_max, n_alphas
        Penalties that are tried, evenly spaced in the logarithm.
    """

    inputs: Literal["summary", "local+neighbors", "local"] = "summary"
    selection: Literal["stripes", "gcv", "hest"] = "stripes"
    penalty: Literal["component", "one"] = "component"
    n_components: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least(0, "n_components")


_WIDTHS = {"summary": 4, "local+neighbors": 2, "local": 1}


class Ridge(SpotModel):
    """Ridge regression from summaries of the features, standardised.

    In the frame ``"slide"``, its default, features and targets are in units of their slide, each component of the
    targets has a penalty of its own, and spots are weighed by their depth. With more than 4,096 training spots the
    solution is found from sums over the spots, so that memory does not depend on their number; ``selection="gcv"`` then
    uses the mean leverage of the spots.
    """

    config_class = RidgeConfig
    citation: ClassVar[str] = "Hoerl, Kennard (1970), Technometrics 12:55"
    presets: ClassVar[dict[str, Any]] = {
        "pooled": RidgeConfig(inputs="local+neighbors", penalty="one"),
        "hest": RidgeConfig(selection="hest", inputs="local", penalty="one", n_components=256),
    }
    default_frame = "slide"
    closed_form = True
    needs = frozenset({"summary"})
    config: RidgeConfig

    def __init__(self, config: RidgeConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        width = shape.dim * _WIDTHS[config.inputs]
        by_component = config.penalty == "component" and config.selection == "stripes"
        self.map = (ComponentRidge if by_component else RidgeMap)(width, shape.n_genes)
        self.needs = frozenset(
            {"summary": {"summary"}, "local": {"tokens"}}.get(config.inputs, {"tokens", "neighbors"})
        )

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Choose the penalties on the training spots and solve."""
        c = self.config
        if isinstance(self.map, ComponentRidge):
            self.map.solve(learnt_pieces(batches, self._inputs), c.alphas, self.target_components)
            return
        gathered = Gathered()
        for batch in batches:
            folds = learnt_stripes(batch) if c.selection == "stripes" else torch.zeros_like(batch.spot)
            gathered.add(self._inputs(batch), batch.measured, folds, batch.weight)
        if c.selection == "hest":
            self.map.solve_hest_gathered(gathered, c.n_components)
        else:
            self.map.solve_gathered(gathered, c.alphas, by_fold=c.selection == "stripes", n_components=c.n_components)

    def forward(self, batch: Batch) -> Output:
        """Predict (N, M) from the summaries."""
        return Output(self.map(self._inputs(batch)))

    def _inputs(self, batch: Batch) -> Tensor:
        if self.config.inputs == "summary":
            return batch.summarized
        return batch.tokens.float().mean(1) if self.config.inputs == "local" else pooled_features(batch)


MODELS = {"ridge": Ridge}
