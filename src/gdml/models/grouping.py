"""k-means on the rows of a batch, by matrix product and differentiable through its centroids."""

import torch
from torch import Tensor


def nearest(x: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid of each row, by Euclidean distance.

    Parameters
    ----------
    x
        (N, d) rows.
    centroids
        (k, d).

    Returns
    -------
    (N,) int64.
    """
    # |x - c|^2 without the |x|^2 that all centroids share
    return (centroids.square().sum(1) - 2 * x @ centroids.T).argmin(1)


def kmeans(x: Tensor, k: int, iterations: int = 10, *, start: Tensor) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from given rows.

    The centroids are means of rows of ``x``, so gradients flow through them; the assignments are
    constants. A group that loses all its rows keeps its last centroid.

    Parameters
    ----------
    x
        (N, d) rows.
    k
        Number of groups.
    iterations
        Number of Lloyd iterations.
    start
        (k,) int64, the rows that serve as the first centroids.

    Returns
    -------
    (N,) int64 group of each row, by the centroids before their last update, and (k, d) centroids.

    Raises
    ------
    ValueError
        If there are fewer rows than groups.
    """
    if len(x) < k:
        raise ValueError(f"`k` is {k} groups, but there are {len(x)} rows only.")
    rows = x.detach().float()
    centroids = rows[start]
    members = rows.new_zeros(k, len(rows))
    label = torch.zeros(len(rows), dtype=torch.long, device=x.device)
    for _ in range(iterations):
        label = nearest(rows, centroids)
        members = torch.zeros_like(members).scatter_(0, label[None], 1.0)
        count = members.sum(1, keepdim=True)
        last, centroids = centroids, torch.where(count > 0, members @ rows / count.clamp(min=1), centroids)
    # Once more with gradients: the same means, of x itself.
    count = members.sum(1, keepdim=True)
    means = (members / count.clamp(min=1)).to(x.dtype) @ x
    return label, torch.where(count > 0, means, last.to(x.dtype))
