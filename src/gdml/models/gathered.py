"""Inputs and outputs of a regression that come in pieces."""

import torch
from torch import Tensor

from . import gram

#: Training spots that are solved from the rows themselves; with more, the solution is found from sums over the spots.
MAX_ROWS = 4096


class Gathered:
    """Inputs, outputs, folds and weights of a ridge regression that come in pieces.

    Up to ``MAX_ROWS`` rows are held as they are. Of more rows only sums are kept, so that memory does not depend on
    their number.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self.held: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.sums: gram.GramMatrices | None = None

    def add(self, x: Tensor, y: Tensor, folds: Tensor, weights: Tensor | None = None) -> None:
        """Take in inputs (n, n_in), outputs (n, n_out), and the fold and the weight of each row (n,); None: weight 1."""
        self.n_rows += len(x)
        self.held.append((x, y, folds, torch.ones(len(x)) if weights is None else weights))
        if self.n_rows <= MAX_ROWS:
            return
        if self.sums is None:
            first = self.rows()
            self.sums = gram.GramMatrices(first[0].double().mean(0), first[1].double().mean(0))
        for piece in self.held:
            self.sums.add(*piece)
        self.held.clear()

    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows that are held: inputs, outputs, folds and weights."""
        x, y, folds, weights = (torch.cat(parts) for parts in zip(*self.held, strict=True))
        return x, y, folds, weights
