import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gdml.models.discrimination import group_loss, instance_loss, kmeans, soft_cross_entropy


def rows(n, d, seed, *, unit=True):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(x, dim=1) if unit else x


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def softmax(values):
    top = max(values)
    exps = [math.exp(v - top) for v in values]
    return [e / sum(exps) for e in exps]


def cross_entropy(logits, target):
    return -sum(t * math.log(p) for t, p in zip(target, softmax(logits), strict=True))


def loop_instance_loss(scales, gene, tau, reduction):
    n, total = len(gene), 0.0
    for image in scales:
        target = [
            softmax([(dot(image[i], image[j]) + dot(gene[i], gene[j])) / (2 * tau) for j in range(n)]) for i in range(n)
        ]
        for i in range(n):
            gene_to_image = cross_entropy([dot(gene[i], image[j]) / tau for j in range(n)], target[i])
            # the second term of equation 4 runs down the columns of T
            column = [target[j][i] for j in range(n)]
            image_to_gene = cross_entropy([dot(image[i], gene[j]) / tau for j in range(n)], column)
            total += (gene_to_image + image_to_gene) / n / len(scales)
    return total / 2 if reduction == "average" else total


def loop_group_loss(image, gene, image_group, gene_group, *, k, tau, iterations, start, target):
    label_i, centroids_i = (a.numpy() for a in kmeans(image_group, k, iterations, start=start))
    label_g, centroids_g = (a.numpy() for a in kmeans(gene_group, k, iterations, start=start))
    total = 0.0
    for instances, centroids, paired in ((image, centroids_g, label_g), (gene, centroids_i, label_i)):
        for i, row in enumerate(instances):
            logits = [dot(row, c) / tau for c in centroids]
            if target == "soft":
                of = softmax(logits)
            else:
                distance = [sum((float(a) - b) ** 2 for a, b in zip(row, c, strict=True)) for c in centroids]
                label = paired[i] if target == "paired" else distance.index(min(distance))
                of = [float(j == label) for j in range(k)]
            total += cross_entropy(logits, of) / len(image) / 2
    return total


def test_soft_cross_entropy_agrees_with_a_loop():
    logits, target = rows(4, 6, 0, unit=False), rows(4, 6, 1, unit=False).softmax(1)
    expected = [cross_entropy(a.tolist(), b.tolist()) for a, b in zip(logits, target, strict=True)]
    np.testing.assert_allclose(soft_cross_entropy(logits, target), expected)


def test_soft_cross_entropy_of_a_hard_target_is_torchs():
    logits, label = rows(5, 4, 0, unit=False), torch.tensor([0, 3, 1, 1, 2])
    hard = F.one_hot(label, 4).double()
    torch.testing.assert_close(soft_cross_entropy(logits, hard), F.cross_entropy(logits, label, reduction="none"))


@pytest.mark.parametrize("reduction", ["average", "sum"])
@pytest.mark.parametrize("tau", [0.07, 0.5])
@pytest.mark.parametrize("n_scales", [1, 3])
def test_instance_loss_agrees_with_loops(reduction, tau, n_scales):
    scales, gene = [rows(6, 4, seed) for seed in range(n_scales)], rows(6, 4, 9)
    found = instance_loss(scales, gene, tau=tau, reduction=reduction)
    assert float(found) == pytest.approx(loop_instance_loss(scales, gene, tau, reduction), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(7)), st.integers(0, 1000))
def test_instance_loss_does_not_depend_on_the_order_of_spots(order, seed):
    scales, gene = [rows(7, 3, seed + s) for s in range(3)], rows(7, 3, seed + 5)
    shuffled = instance_loss([s[order] for s in scales], gene[order])
    torch.testing.assert_close(shuffled, instance_loss(scales, gene))


def test_instance_loss_is_lower_where_images_match_their_genes():
    gene = rows(8, 16, 0)
    assert instance_loss([gene], gene) < instance_loss([gene.roll(1, 0)], gene)


@pytest.mark.parametrize("target", ["paired", "nearest", "soft"])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("unit", [False, True])
def test_group_loss_agrees_with_loops(target, detach, unit):
    image, gene = rows(12, 4, 0, unit=unit), rows(12, 4, 1)
    groups = rows(12, 4, 2), rows(12, 4, 3)
    options = {"k": 3, "tau": 0.07, "iterations": 4, "start": torch.tensor([2, 7, 11]), "target": target}
    found = group_loss(image, gene, *groups, detach=detach, **options)
    # kmeans computes its groups in float32
    assert float(found) == pytest.approx(loop_group_loss(image, gene, *groups, **options), rel=1e-5)


@pytest.mark.parametrize("target", ["paired", "nearest", "soft"])
@pytest.mark.parametrize("detach", [False, True])
def test_gradients_stop_at_the_centroids_where_asked(target, detach):
    leaves = [rows(12, 4, seed).requires_grad_() for seed in range(4)]
    loss = group_loss(*leaves, k=3, iterations=4, start=torch.arange(3), target=target, detach=detach)
    loss.backward()
    image, gene, image_group, gene_group = (0.0 if x.grad is None else float(x.grad.abs().sum()) for x in leaves)
    assert min(image, gene) > 1e-3
    assert image_group == gene_group == 0 if detach else min(image_group, gene_group) > 1e-3


def test_targets_of_the_group_loss_differ():
    image, gene, image_group, gene_group = (rows(20, 4, seed) for seed in range(4))
    losses = {
        target: float(group_loss(image, gene, image_group, gene_group, k=4, start=torch.arange(4), target=target))
        for target in ("paired", "nearest", "soft")
    }
    assert len(set(losses.values())) == 3
    assert losses["nearest"] < losses["paired"]  # groups drawn at random: the pair's group is not the nearest
