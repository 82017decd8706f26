"""The training spots that a retrieval model keeps inside itself, and the search among them."""

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

    Exact and deterministic: of rows of equal cosine the first is taken. The cosine with a row of zeros is 0.

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
        raise ValueError(f"`k` is {k}, but for a query fewer rows of the bank are left: pass a smaller one.")
    return cosines, rows


def slide_numbers(batch: Batch) -> Tensor:
    """Give each spot the number of its slide's first spot, unique to the slide within a run: (N,) int64.

    The spots of a slide are numbered one after the other.
    """
    if batch.spot is None:
        raise ValueError("The batch does not number its spots: set `spot`.")
    ends = torch.tensor(batch.slides.lengths, device=batch.index.device).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    slide = torch.searchsorted(ends, batch.index, right=True)
    return batch.spot - (batch.index - starts[slide])


class ReferenceBank(nn.Module):
    """Training spots as buffers of a model, saved and loaded with its weights.

    Parameters
    ----------
    n_rows
        Spots B; what ``fill`` brings replaces them.
    n_genes
        Panel genes M.
    dim
        Width D of the pooled features to keep of each spot; 0 for none.

    Notes
    -----
    ``features`` (B, D) and ``expression`` (B, M), on the training scale, are saved. ``spot`` and ``slide`` (B,)
    int64, the number of each spot and of its slide within the run, are not: they serve training alone, and other
    runs give the same numbers to other spots.
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
        """Keep the spots of all batches, and pass the batches on; the bank is full after the last one."""
        kept: list[tuple[Tensor, ...]] = []
        for batch in batches:
            if batch.expression is None or batch.spot is None:
                raise ValueError("The batch has no expression to learn from, or does not number its spots.")
            features = batch.local[:, : self.features.shape[1]]
            kept.append((features, batch.expression, batch.spot, slide_numbers(batch)))
            yield batch
        self.features, self.expression, self.spot, self.slide = map(torch.cat, zip(*kept, strict=True))

    def own_rows(self, batch: Batch, kind: Literal["slide", "spot"]) -> tuple[Tensor, Tensor]:
        """Rows that are each spot of a batch itself, or of its slide, as ``exclude`` of :func:`nearest_rows`."""
        slide = slide_numbers(batch)
        if kind == "slide" or batch.spot is None:
            return slide, self.slide
        return batch.spot, self.spot

    def mean(self) -> Tensor:
        """Mean expression, (M,); zeros where the bank is empty."""
        return self.expression.sum(0) / max(len(self), 1)

    def largest_slide(self) -> int:
        """Most rows that come from one slide."""
        return int(self.slide.unique(return_counts=True)[1].amax())
