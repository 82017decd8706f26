import math

import numpy as np
import pytest
import torch
from scipy.stats import nbinom

from gdml.models.hist2st import size_factors, zinb_loss

N, M = 6, 5


def numbers(seed=0):
    g = np.random.default_rng(seed)
    counts = g.poisson(2, (N, M)) * g.integers(0, 2, (N, M))
    return counts.astype(np.float32), g.normal(0, 2, (N, M)), g.gamma(1, 3, (N, M)) + 0.01, g.normal(0, 2, (N, M))


def loss(*parts):
    return float(zinb_loss(*(torch.as_tensor(part, dtype=torch.float32) for part in parts)))


def reference(counts, log_mean, dispersion, zero_logit):
    """Entry by entry, with SciPy's negative binomial."""
    total = 0.0
    for x, log_mu, r, logit in zip(*(np.ravel(a) for a in (counts, log_mean, dispersion, zero_logit)), strict=True):
        mu, pi = math.exp(log_mu), 1 / (1 + math.exp(-logit))
        p = (1 - pi) * nbinom.pmf(x, r, r / (r + mu)) + (pi if x == 0 else 0)
        total -= math.log(p)
    return total / counts.size


@pytest.mark.parametrize("seed", range(5))
def test_likelihood_agrees_with_scipy(seed):
    parts = numbers(seed)
    assert (parts[0] == 0).any() and (parts[0] > 0).any()
    assert loss(*parts) == pytest.approx(reference(*parts), rel=1e-4)


def test_large_counts():
    parts = np.array([[500.0, 3000.0]]), np.log([[480.0, 2000.0]]), np.array([[5.0, 80.0]]), np.array([[-3.0, 1.0]])
    assert loss(*parts) == pytest.approx(reference(*parts), rel=1e-3)


@pytest.mark.parametrize("extreme", [-60.0, 60.0])
def test_extreme_heads_stay_finite_and_so_do_their_gradients(extreme):
    counts = torch.tensor([[0.0, 7.0]])
    heads = [torch.full((1, 2), extreme, requires_grad=True) for _ in range(3)]
    value = zinb_loss(counts, heads[0], torch.nn.functional.softplus(heads[1]), heads[2])
    value.backward()
    assert value.isfinite() and all(head.grad.isfinite().all() for head in heads)


def test_size_factors():
    counts = torch.tensor([[1.0, 1.0], [4.0, 0.0], [3.0, 5.0], [0.0, 0.0]])
    depths = [sum(row) for row in counts.tolist()]  # 2, 4, 8, 0, of median 3
    np.testing.assert_allclose(size_factors(counts)[:3], [depth / 3 for depth in depths[:3]], rtol=1e-6)
    assert size_factors(counts)[3] > 0 and size_factors(torch.zeros(3, 2)).isfinite().all()
