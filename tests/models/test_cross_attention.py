import numpy as np
import pytest
import torch

from gdml.models.layers import CrossAttention, CrossBlock, masked_mean

WIDTH, HEADS = 8, 2


def loop_attention(made, x, tokens, inside):
    """Head by head and query by query, for one sample."""
    linear = lambda layer, rows: rows @ layer.weight.numpy().T + layer.bias.numpy()
    q, (k, v) = linear(made.query, x), np.split(linear(made.key_value, tokens), 2, 1)
    each = WIDTH // HEADS
    out = np.zeros_like(q)
    for head in range(HEADS):
        part = slice(head * each, (head + 1) * each)
        for i in range(len(q)):
            weight = np.array([np.exp(q[i, part] @ k[j, part] / np.sqrt(each)) for j in range(len(k))]) * inside
            out[i, part] = (weight / weight.sum()) @ v[:, part]
    return linear(made.out, out)


@torch.no_grad()
def test_agrees_with_loops():
    torch.manual_seed(0)
    made = CrossAttention(WIDTH, HEADS).eval()
    x, tokens = torch.randn(3, 2, WIDTH), torch.randn(3, 5, WIDTH)
    inside = torch.rand(3, 5) > 0.4
    inside[:, 0] = True
    found = made(x, tokens, inside)
    for i in range(3):
        expected = loop_attention(made, x[i].numpy(), tokens[i].numpy(), inside[i].numpy())
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


@torch.no_grad()
def test_tokens_outside_do_not_matter():
    torch.manual_seed(0)
    made = CrossBlock(WIDTH, 2, HEADS, 2, 0.3).eval()
    x, tokens, inside = torch.randn(3, 1, WIDTH), torch.randn(3, 5, WIDTH), torch.ones(3, 5, dtype=torch.bool)
    inside[:, 3] = False
    before = made(x, tokens, inside)
    assert not torch.allclose(before, made(x, tokens))
    tokens[:, 3] = 50.0
    assert torch.equal(before, made(x, tokens, inside))
    torch.testing.assert_close(before, made(x, tokens[:, [0, 1, 2, 4]]))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="found 3 heads for width 8"):
        CrossAttention(8, 3)


def test_masked_mean_agrees_with_loops():
    x, inside = torch.randn(4, 5, WIDTH), torch.rand(4, 5) > 0.5
    inside[0], inside[1], inside[2] = True, False, torch.arange(5) == 3
    found = masked_mean(x, inside)
    for i in range(4):
        rows = [x[i, j].numpy() for j in range(5) if inside[i, j]]
        np.testing.assert_allclose(found[i], np.mean(rows, 0) if rows else np.zeros(WIDTH), atol=1e-6)
