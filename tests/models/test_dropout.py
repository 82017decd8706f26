import numpy as np
import pytest
import torch

from gdml.models.dropout import Dropout, dropped


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_dropout_rate_and_scale(rate):
    torch.manual_seed(0)
    y = Dropout(rate)(torch.ones(400, 501))
    share = round(rate * 256) / 256  # the rate is rounded
    assert (y == 0).float().mean() == pytest.approx(share, abs=0.005)
    kept = y[y != 0]
    np.testing.assert_allclose(kept, 1 / (1 - share), rtol=1e-6)
    # rows and columns are independent: no stripes
    assert (y == 0).float().mean(0).std() == pytest.approx(np.sqrt(share * (1 - share) / 400), rel=0.25)
    assert (y == 0).float().mean(1).std() == pytest.approx(np.sqrt(share * (1 - share) / 501), rel=0.25)


def test_dropout_follows_the_seed_and_stops_at_evaluation():
    layer, x = Dropout(0.4), torch.randn(7, 13)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_dropout_passes_gradients_to_what_it_kept():
    torch.manual_seed(0)
    x = torch.ones(50, 9, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropout_keeps_the_type():
    assert Dropout(0.5)(torch.ones(64, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean(dtype):
    # a factor of 256 / 230 that is rounded to bfloat16 would be 0.3 % too small
    torch.manual_seed(0)
    x = torch.rand(2000, 1000).to(dtype)
    y = dropped(x, 0.1)
    assert y.double().mean() == pytest.approx(x.double().mean().item(), rel=1e-3)


def test_gradients_follow_what_was_kept_in_any_layout():
    torch.manual_seed(0)
    x = torch.randn(6, 5, 7).transpose(0, 2).requires_grad_()
    y = dropped(x, 0.4)
    (found,) = torch.autograd.grad(y, x, torch.full_like(y, 2.0))
    share = round(0.4 * 256) / 256
    torch.testing.assert_close(found, torch.where(y != 0, 2 / (1 - share), 0.0))
    torch.testing.assert_close(y, torch.where(y != 0, x / (1 - share), 0.0))


def test_a_rate_of_one_leaves_nothing():
    assert not dropped(torch.ones(9), 1.0).any()
