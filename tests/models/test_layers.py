import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdml.models.layers import Attention, Block, FeedForward


def loop_attention(layer, x, bias=None):
    """Softmax attention, head by head and token by token, in numpy."""
    weight, offset = layer.qkv.weight.detach().numpy(), layer.qkv.bias.detach().numpy()
    b, t, width = x.shape
    size, heads = width // layer.heads, layer.heads
    out = np.zeros((b, t, width))
    for i in range(b):
        qkv = x[i].numpy() @ weight.T + offset
        for h in range(heads):
            q, k, v = (qkv[:, p * width + h * size : p * width + (h + 1) * size] for p in range(3))
            for a in range(t):
                logits = np.array([q[a] @ k[c] for c in range(t)]) / np.sqrt(size)
                if bias is not None:
                    logits = logits + bias.expand(b, heads, t, t)[i, h, a].numpy()
                weights = np.exp(logits - logits.max())
                out[i, a, h * size : (h + 1) * size] = weights / weights.sum() @ v
    return out @ layer.out.weight.detach().numpy().T + layer.out.bias.detach().numpy()


def masked_bias(t=5):
    bias = torch.randn(1, 2, t, t, generator=torch.Generator().manual_seed(1))
    bias[..., -1] = float("-inf")
    return bias


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("grad", [False, True])  # plain products with gradients on a CPU, fused kernels without
def test_attention_agrees_with_loops(biased, grad):
    torch.manual_seed(0)
    layer, x, bias = Attention(6, 2), torch.randn(2, 5, 6), masked_bias() if biased else None
    with torch.set_grad_enabled(grad):
        found = layer(x, bias).detach()
    np.testing.assert_allclose(found, loop_attention(layer, x, bias), atol=1e-5)


def test_both_paths_of_attention_have_the_same_gradients(monkeypatch):
    torch.manual_seed(0)
    layer, x, bias = Attention(8, 2), torch.randn(3, 5, 8), masked_bias()
    gradients = []
    for short in (1024, 0):
        monkeypatch.setattr("gdml.models.layers._SHORT", short)
        layer.zero_grad()
        layer(x, bias).square().sum().backward()
        gradients.append([p.grad.clone() for p in layer.parameters()])
    for plain, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, fused, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("grad", [False, True])
def test_biases_are_added_up(grad):
    torch.manual_seed(0)
    layer, x = Attention(8, 2), torch.randn(2, 5, 8)
    table, outside = torch.randn(1, 2, 5, 5), torch.zeros(2, 1, 1, 5)
    outside[0, ..., 1] = outside[1, ..., 4] = float("-inf")
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x, table, None, outside), layer(x, table + outside), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_some_tokens_of_a_block_are_read_alone(grad):
    torch.manual_seed(0)
    layer, x, bias = Block(8, 2).eval(), torch.randn(2, 5, 8), torch.zeros(2, 1, 1, 5)
    bias[0, ..., 4] = float("-inf")
    with torch.set_grad_enabled(grad):
        found = layer.read(x[:, [3, 0]], x, bias)
        torch.testing.assert_close(found, layer(x, bias)[:, [3, 0]], atol=1e-6, rtol=1e-5)


def test_masked_tokens_are_never_attended_to():
    layer, x, bias = Block(8, 2).eval(), torch.randn(2, 5, 8), masked_bias()
    other = x.clone()
    other[:, -1] = 100.0
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert torch.equal(layer(x, bias)[:, :-1], layer(other, bias)[:, :-1])


def visit_problem():
    torch.manual_seed(0)
    layer, context, x = Attention(8, 2), torch.randn(3, 6, 8), torch.randn(7, 8)
    lengths = (6, 3, 5)
    parts = zip(*layer.keys_values(context), lengths, strict=True)
    return layer, context, lengths, x, torch.tensor([2, 0, 1, 1, 2, 0, 0]), [(k[:, :n], v[:, :n]) for k, v, n in parts]


def test_visitors_attend_to_their_context_and_themselves():
    layer, context, lengths, x, slide, keys_values = visit_problem()
    found = layer.visit(x, slide, keys_values).detach()
    for row, number, answer in zip(x, slide.tolist(), found, strict=True):
        tokens = torch.cat([context[number, : lengths[number]], row[None]])
        np.testing.assert_allclose(answer, loop_attention(layer, tokens[None], None)[0, -1], atol=1e-5)


def test_visitors_in_chunks_are_visitors_at_once(monkeypatch):
    layer, context, _, x, slide, _ = visit_problem()
    layer.weight_dropout = 0.3
    results = []
    for chunk in (1 << 24, 24):  # all visitors of a slide at once, or two of the first slide
        monkeypatch.setattr("gdml.models.layers._CHUNK", chunk)
        for training in (True, False):
            layer.train(training).zero_grad()
            torch.manual_seed(1)
            y = layer.visit(x, slide, list(zip(*layer.keys_values(context), strict=True)))
            y.square().sum().backward()
            if not training:
                results.append([y.detach(), *(p.grad.clone() for p in layer.parameters())])
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-5, rtol=1e-5)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="`heads` must divide the token width: found 3 heads for width 8"):
        Attention(8, 3)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(6)), st.integers(0, 100))
def test_a_block_without_bias_has_no_order(order, seed):
    torch.manual_seed(seed)
    block, x = Block(8, 2).eval(), torch.randn(1, 6, 8)
    with torch.no_grad():
        torch.testing.assert_close(block(x)[:, order], block(x[:, order]), atol=1e-5, rtol=1e-4)


def test_attention_weights_are_dropped_where_asked():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    layer = Attention(8, 2, 0.5, on_weights=True)
    layer.drop.p = 0.0  # leaves the weights' dropout alone
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
    plain = Attention(8, 2, 0.5)
    plain.drop.p = 0.0
    assert torch.equal(plain(x), plain(x))


def test_feed_forward_keeps_the_width():
    assert FeedForward(6, 24)(torch.randn(2, 3, 6)).shape == (2, 3, 6)
