import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from gdml.models.discrimination import kmeans, nearest


def blobs(n, d, k, seed, spread=0.6):
    g = torch.Generator().manual_seed(seed)
    centers = torch.randn(k, d, generator=g) * 3
    return centers[torch.randint(k, (n,), generator=g)] + spread * torch.randn(n, d, generator=g)


def loop_kmeans(x, k, iterations, start):
    """Lloyd's algorithm, row by row: labels are those by the centroids before their last update."""
    x = np.asarray(x, np.float64)
    centroids, label = x[start].copy(), np.zeros(len(x), int)
    for _ in range(iterations):
        for i, row in enumerate(x):
            label[i] = min(range(k), key=lambda j: ((row - centroids[j]) ** 2).sum())
        for j in range(k):
            if (label == j).any():
                centroids[j] = x[label == j].mean(0)
    return label, centroids


def test_nearest_agrees_with_a_loop():
    x, c = torch.randn(30, 5), torch.randn(4, 5)
    expected = [min(range(4), key=lambda j: float(((row - c[j]) ** 2).sum())) for row in x]
    assert nearest(x, c).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 12))
def test_agrees_with_a_loop(seed, k, iterations):
    x = blobs(40, 4, k, seed)
    start = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:k]
    label, centroids = kmeans(x, k, iterations, start=start)
    expected_label, expected = loop_kmeans(x, k, iterations, start.numpy())
    assert label.tolist() == expected_label.tolist()
    np.testing.assert_allclose(centroids, expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_agrees_with_scikit_learn_from_the_same_start(seed, iterations):
    k, x = 6, blobs(200, 8, 6, seed, spread=2.0)
    start = torch.randperm(200, generator=torch.Generator().manual_seed(seed))[:k]
    label, centroids = kmeans(x, k, iterations, start=start)
    theirs = KMeans(k, init=x[start].numpy(), n_init=1, max_iter=iterations, tol=0).fit(x.numpy())
    np.testing.assert_allclose(centroids, theirs.cluster_centers_, atol=1e-5)
    # scikit-learn labels by the last centroids, we by those before: one iteration more brings them together
    assert kmeans(x, k, iterations + 1, start=start)[0].tolist() == theirs.labels_.tolist()


def test_an_empty_group_keeps_its_centroid():
    # the second and third start are the same row: ties go to the first of them, the other is left empty
    x = torch.tensor([[0.0], [0.1], [5.0], [5.2]])
    label, centroids = kmeans(x, 3, 1, start=torch.tensor([0, 2, 2]))
    assert label.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(centroids, torch.tensor([[0.05], [5.1], [5.0]]))


def test_all_rows_alike():
    label, centroids = kmeans(torch.ones(5, 2), 3, 10, start=torch.arange(3))
    assert label.tolist() == [0] * 5 and torch.equal(centroids, torch.ones(3, 2))


def test_gradients_through_the_centroids_are_those_of_finite_differences():
    x = blobs(12, 3, 3, 0).double().requires_grad_()
    weight = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    # groups far apart: a small step moves no row from one to the other
    torch.autograd.gradcheck(lambda rows: (kmeans(rows, 3, 5, start=torch.arange(3))[1] * weight).sin(), x)


def test_a_rows_gradient_is_its_share_of_its_centroid():
    # the last row is a group of its own
    x = torch.tensor([[0.0], [1.0], [10.0], [11.0], [12.0], [50.0]], requires_grad=True)
    _, centroids = kmeans(x, 3, 3, start=torch.tensor([0, 2, 5]))
    (centroids * torch.tensor([[1.0], [6.0], [7.0]])).sum().backward()
    torch.testing.assert_close(x.grad.flatten(), torch.tensor([0.5, 0.5, 2.0, 2.0, 2.0, 7.0]))


def test_as_many_groups_as_rows():
    x = torch.randn(5, 2)
    label, centroids = kmeans(x, 5, 10, start=torch.arange(5))
    assert label.tolist() == list(range(5))
    torch.testing.assert_close(centroids, x)


def test_fewer_rows_than_groups():
    with pytest.raises(ValueError, match="`k` is 6 groups, but there are 5 rows"):
        kmeans(torch.randn(5, 2), 6, start=torch.arange(5))


def test_half_precision_rows_are_grouped_in_full():
    x = blobs(50, 4, 3, 0)
    label, centroids = kmeans(x.bfloat16(), 3, 10, start=torch.arange(3))
    expected, _ = kmeans(x.bfloat16().float(), 3, 10, start=torch.arange(3))
    assert centroids.dtype == torch.bfloat16 and label.tolist() == expected.tolist()
