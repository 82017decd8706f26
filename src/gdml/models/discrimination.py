"""The two discrimination losses of Gene-DML (Song et al., WACV 2026, equations 3 to 5) and their k-means."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
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


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each row of ``logits`` (N, C) with a distribution ``target`` (N, C): (N,)."""
    return -(target * F.log_softmax(logits, 1)).sum(1)


def instance_loss(
    scales: Sequence[Tensor], gene: Tensor, *, tau: float = 0.07, reduction: Literal["average", "sum"] = "average"
) -> Tensor:
    """Multi-scale instance-level discrimination, equations 3 and 4.

    For each scale s, with images I and genes G (rows of unit length), the soft target is
    T = softmax((I I' + G G') / (2 tau)); the loss is the mean over rows of the cross-entropies of
    G I' / tau with T and of I G' / tau with T', averaged (or summed) over the two directions, then
    averaged over scales. The paper leaves tau out of the logits of equation 4; its code divides by it.

    Parameters
    ----------
    scales
        One (N, d) embedding per scale, rows of unit length.
    gene
        (N, d) embedding of the expression, rows of unit length.
    tau
        Temperature.
    reduction
        ``"average"`` of the two directions (the authors' code) or their ``"sum"`` (the paper's print).

    Returns
    -------
    A scalar.
    """
    of_genes = gene @ gene.T
    total = gene.new_zeros(())
    for image in scales:
        target = ((image @ image.T + of_genes) / (2 * tau)).softmax(1)
        logits = gene @ image.T / tau
        both = soft_cross_entropy(logits, target) + soft_cross_entropy(logits.T, target.T)
        total = total + both.mean()
    total = total / len(scales)
    return total / 2 if reduction == "average" else total


def group_loss(
    image: Tensor,
    gene: Tensor,
    image_group: Tensor,
    gene_group: Tensor,
    *,
    k: int,
    tau: float = 0.07,
    iterations: int = 10,
    start: Tensor,
    target: Literal["paired", "nearest", "soft"] = "paired",
    detach: bool = False,
) -> Tensor:
    """Cross-level instance-group discrimination, equation 5.

    k-means groups the batch in each modality. An image is classified among the centroids of the gene
    groups, a gene profile among those of the image groups; logits are similarities over ``tau``.

    Parameters
    ----------
    image, gene
        (N, d) instance embeddings.
    image_group, gene_group
        (N, d) embeddings that are grouped, rows of unit length.
    k
        Number of groups; no more than N.
    tau
        Temperature of the logits (tau_IG of the paper).
    iterations
        Lloyd iterations.
    start
        (k,) int64, rows of the first centroids, for both modalities.
    target
        The class of an instance: ``"paired"``, the group of its paired spot in the other modality
        (the authors' code; Wang et al. 2021); ``"nearest"``, the centroid nearest to it (the paper's
        words); ``"soft"``, the softmax of its own logits (equation 5 as printed), which makes the loss the
        entropy of the assignment; as a constant it would have no gradient at all.
    detach
        Stop gradients at the centroids.

    Returns
    -------
    A scalar, the average of both directions.
    """
    label_image, centroids_image = kmeans(image_group, k, iterations, start=start)
    label_gene, centroids_gene = kmeans(gene_group, k, iterations, start=start)
    if detach:
        centroids_image, centroids_gene = centroids_image.detach(), centroids_gene.detach()

    def one_way(instance: Tensor, centroids: Tensor, label: Tensor) -> Tensor:
        logits = instance @ centroids.T / tau
        if target == "soft":
            return soft_cross_entropy(logits, logits.softmax(1)).mean()
        with torch.no_grad():
            label = nearest(instance, centroids) if target == "nearest" else label
        return F.cross_entropy(logits, label)

    return (one_way(image, centroids_gene, label_gene) + one_way(gene, centroids_image, label_image)) / 2
