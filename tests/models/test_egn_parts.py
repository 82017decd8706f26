import math

import numpy as np
import pytest
import torch

from gdml.models.egn import Bridge, ExemplarLayer, Projector, ResidualPooling


def by_hand(module, x):
    """A linear layer, as loops have it."""
    w, b = module.weight.detach().numpy(), module.bias
    return np.array([sum(w[i, j] * x[j] for j in range(len(x))) for i in range(len(w))]) + (
        0 if b is None else b.detach().numpy()
    )


def norm_by_hand(x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5)


def test_the_bridge_as_loops_have_it():
    torch.manual_seed(0)
    width, heads, each, t, k = 6, 2, 3, 4, 3
    bridge = Bridge(width, t, heads, each)
    tokens, view, exemplars, expression = (torch.randn(2, *s, width) for s in ((t,), (), (k,), (k,)))
    with torch.no_grad():
        found = [x.numpy() for x in bridge(tokens, view, exemplars, expression)]
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    for n in range(2):
        h, revised, sums = view[n].numpy(), [], []
        for r, s in zip(exemplars[n].numpy(), expression[n].numpy(), strict=True):
            hidden = by_hand(bridge.interact[0], np.concatenate([h - r, r]))
            gates = sigmoid(by_hand(bridge.interact[2], hidden * sigmoid(hidden)))
            value = by_hand(bridge.value, s)
            sums.append(gates[:width] * value)
            revised.append(norm_by_hand(r + gates[width:] * value))
        h = h + sum(sums) / k
        gate = sigmoid(by_hand(bridge.gate[1], norm_by_hand(h))).reshape(heads, t)
        gated = []
        for i in range(t):
            value = by_hand(bridge.token[1], norm_by_hand(tokens[n, i].numpy())).reshape(heads, each)
            gated.append((value * gate[:, i, None]).reshape(-1))
            np.testing.assert_allclose(
                found[0][n, i], tokens[n, i].numpy() + by_hand(bridge.to_tokens, gated[i]), atol=1e-5
            )
        np.testing.assert_allclose(found[1][n], h + by_hand(bridge.to_view, sum(gated) / t), atol=1e-5)
        np.testing.assert_allclose(found[2][n], revised, atol=1e-5)


def test_the_order_of_exemplars_is_of_no_account():
    torch.manual_seed(0)
    projector, bridge = Projector(5, 3, 8, 1, 0.0), Bridge(8, 4, 2, 4)
    view, exemplars, expression = torch.randn(2, 5), torch.randn(2, 6, 5), torch.randn(2, 6, 3)
    tokens, order = torch.randn(2, 4, 8), torch.randperm(6)
    one = bridge(tokens, *projector(view, exemplars, expression))
    other = bridge(tokens, *projector(view, exemplars[:, order], expression[:, order]))
    torch.testing.assert_close(one[0], other[0])
    torch.testing.assert_close(one[1], other[1])
    torch.testing.assert_close(one[2][:, order], other[2])


def test_pooling_as_loops_have_it():
    torch.manual_seed(0)
    pool = ResidualPooling(3, 0.4, 0.7)
    tokens = torch.randn(2, 5, 3)
    with torch.no_grad():
        found, score = pool(tokens).numpy(), pool.score(tokens).numpy()
    for n in range(2):
        for c in range(3):
            column = [float(x) for x in score[n, :, c]]
            weight = [math.exp(0.4 * x) for x in column]
            attended = sum(w * x for w, x in zip(weight, column, strict=True)) / sum(weight)
            assert found[n, c] == pytest.approx(sum(column) / 5 + 0.7 * attended, rel=1e-5)


def test_a_layer_without_a_bridge_leaves_the_exemplars():
    torch.manual_seed(0)
    tokens, position, view, exemplars, expression = (
        torch.randn(2, 4, 8),
        torch.randn(4, 8),
        torch.randn(2, 8),
        torch.randn(2, 3, 8),
        torch.randn(2, 3, 8),
    )
    plain = ExemplarLayer(8, 2, 2, 0.0, None)
    found = plain(tokens, position, view, exemplars, expression)
    assert found[1] is view and found[2] is exemplars
    # the position is told to the attention alone, not added to what passes by
    torch.nn.init.zeros_(plain.block.attention.out.weight)
    torch.nn.init.zeros_(plain.block.attention.out.bias)
    torch.testing.assert_close(
        plain(tokens, position, view, exemplars, expression)[0],
        plain(tokens, 0 * position, view, exemplars, expression)[0],
    )
    bridged = ExemplarLayer(8, 2, 2, 0.0, Bridge(8, 4, 2, 4))
    assert not torch.equal(bridged(tokens, position, view, exemplars, expression)[1], view)
