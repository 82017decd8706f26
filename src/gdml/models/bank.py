"""Training spots that a retrieval model keeps as part of itself, and the search among them."""

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch

_CHUNK = 1 << 24  # similarities that are held at once
_SMALL = 1e-12


def _top(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns of the k largest of each row, largest first; of equal ones the first column."""
    values, columns = similarity.topk(k, dim=1)
    # topk promises no order among equals, nor which of them it takes
    tied = (similarity >= values[:, -1:]).sum(1) > k
    if tied.any():
        ordered = similarity[tied].sort(dim=1, descending=True, stable=True)
        values[tied], columns[tied] = ordered.values[:, :k], ordered.indices[:, :k]
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def nearest_rows(
    queries: Tensor, keys: Tensor, k: int, exclude: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Find the k rows of ``keys`` whose cosine with each query is largest, largest first.

    Exact and deterministic: of rows with equal cosine the first is taken. The cosine with a row of zeros is 0.

    Parameters
    ----------
    queries
        (N, d), of any length.
    keys
        (B, d), of any length.
    k
        Rows to find.
    exclude
        A number of each query (N,) and of each row (B,), int64: a query does not find rows of its own number.

    Returns
    -------
    Cosines (N, k) float32 and rows (N, k) int64.

    Raises
    ------
    ValueError
        If fewer than ``k`` rows are left for a query.
    """
    if not 1 <= k <= len(keys):
        raise ValueError(f"`k` must lie between 1 and the {len(keys)} rows of the bank, found {k}.")
    found = []
    with torch.autocast(queries.device.type, enabled=False), torch.no_grad():
        queries, keys = F.normalize(queries.float(), dim=1), keys.float()
        # the keys' lengths are divided out of the product: a normalised copy of a large bank would cost more
        length = keys.norm(dim=1).clamp_min(_SMALL)
        step = max(1, _CHUNK // len(keys))
        for start in range(0, len(queries), step):
            similarity = queries[start : start + step] @ keys.T / length
            if exclude is not None:
                own, of_row = exclude
                similarity.masked_fill_(own[start : start + step, None] == of_row, -torch.inf)
            found.append(_top(similarity, k))
    cosines = torch.cat([c for c, _ in found]) if found else queries.new_zeros(0, k)
    rows = torch.cat([r for _, r in found]) if found else torch.zeros(0, k, dtype=torch.int64, device=keys.device)
    if cosines.isneginf().any():
        raise ValueError(f"`k` is {k}, but for a query fewer rows of the bank are left: pass a smaller `k`.")
    return cosines, rows


class ReferenceBank(nn.Module):
    """Training spots as buffers of a model, saved and loaded with its weights.

    Parameters
    ----------
    n_rows
        Spots B, until ``fill`` replaces them.
    n_genes
        Panel genes M.
    dim
        Width D of the pooled features to keep of each spot; 0 for none.

    Notes
    -----
    ``features`` (B, D) and ``expression`` (B, M), on the training scale, are saved. ``spot`` and ``slide`` (B,)
    int64, the numbers of each spot and of its slide within the run, are not: they are used in training only, and other
    runs number other spots alike.
    """

    features: Tensor
    expression: Tensor
    spot: Tensor
    slide: Tensor

    def __init__(self, n_rows: int, n_genes: int, dim: int = 0) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(n_rows, dim))
        self.register_buffer("expression", torch.zeros(n_rows, n_genes))
        self.register_buffer("spot", torch.full((n_rows,), -1), persistent=False)
        self.register_buffer("slide", torch.full((n_rows,), -1), persistent=False)

    def __len__(self) -> int:
        return len(self.expression)

    def fill(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Keep the spots of all batches and yield the batches; the bank is complete after the last one."""
        kept: list[tuple[Tensor, ...]] = []
        for batch in batches:
            kept.append((batch.pooled[:, : self.features.shape[1]], batch.measured, batch.spot, batch.slide))
            yield batch
        self.features, self.expression, self.spot, self.slide = map(torch.cat, zip(*kept, strict=True))

    def own_rows(self, batch: Batch, kind: Literal["slide", "spot"]) -> tuple[Tensor, Tensor]:
        """Numbers of the spots or slides of a batch and of the bank, for ``exclude`` of :func:`nearest_rows`."""
        return (batch.slide, self.slide) if kind == "slide" else (batch.spot, self.spot)

    def mean(self) -> Tensor:
        """Mean expression, (M,); zeros where the bank is empty."""
        return self.expression.sum(0) / max(len(self), 1)

    def largest_slide(self) -> int:
        """Most rows that come from one slide."""
        return int(self.slide.unique(return_counts=True)[1].amax())
