import pytest
import torch
from torch.autograd import gradcheck

from gdml.models.attention import plain_attention
from gdml.models.dropout import draw_kept

HEADS, SIZE = 2, 3


def problem(queries=4, keys=5, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    normal = lambda *size: torch.randn(size, generator=g, dtype=torch.float64).to(dtype)
    width = HEADS * SIZE
    x, kv, table = normal(3, queries, width), normal(3, keys, 2 * width), normal(1, HEADS, queries, keys)
    outside = torch.zeros(3, 1, 1, keys, dtype=dtype)
    outside[0, ..., -1] = outside[1, ..., 0] = float("-inf")
    return x.requires_grad_(), kv.requires_grad_(), table.requires_grad_(), outside


def one_by_one(queries, keys_values, biases, kept=None):
    """Head by head and query by query; ``kept`` (B, heads, Q, T) are factors of the weights."""
    b, n, width = queries.shape
    rows = []
    for i in range(b):
        for a in range(n):
            parts = []
            for h in range(HEADS):
                own = slice(h * SIZE, (h + 1) * SIZE)
                keys, values = (part[i, :, own] for part in keys_values.chunk(2, -1))
                logits = keys @ queries[i, a, own] / SIZE**0.5
                for bias in biases:
                    logits = logits + bias.expand(b, HEADS, n, -1)[i, h, a]
                weights = logits.exp() / logits.exp().sum()
                parts.append((weights if kept is None else weights * kept[i, h, a]) @ values)
            rows.append(torch.cat(parts))
    return torch.stack(rows).view(b, n, width)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_values_and_gradients_are_those_of_loops(rate):
    x, kv, table, outside = problem()
    kept = None
    if rate:
        torch.manual_seed(7)
        bits, factor = draw_kept(torch.empty(3 * HEADS, 4, 5), rate)
        kept = (bits * factor).view(3, HEADS, 4, 5)
        assert 0 < (bits == 0).sum() < bits.numel()
    torch.manual_seed(7)
    found, expected = plain_attention(x, kv, HEADS, rate, table, outside), one_by_one(x, kv, (table, outside), kept)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    for ours, theirs in zip(
        *(torch.autograd.grad((y * weights).sum(), (x, kv, table)) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("sizes", [(4, 5), (1, 1), (5, 2)])
def test_gradients_are_those_of_finite_differences(sizes):
    x, kv, table, _ = problem(*sizes)
    assert gradcheck(lambda *parts: plain_attention(*parts[:2], HEADS, 0.0, parts[2]), (x, kv, table))


def test_masked_keys_have_no_gradient():
    x, kv, _, outside = problem()
    (gradient,) = torch.autograd.grad(plain_attention(x, kv, HEADS, 0.0, outside).square().sum(), kv)
    assert not gradient[0, -1].any() and not gradient[1, 0].any() and gradient[2].any()


def test_dropped_weights_keep_the_mean():
    x, kv, table, outside = problem()
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([plain_attention(x, kv, HEADS, 0.3, table, outside) for _ in range(4000)])
        whole = plain_attention(x, kv, HEADS, 0.0, table, outside)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - whole).abs() < 5 * error).all() and (error > 0).all()


def test_bf16_is_near_and_keeps_the_type():
    x, kv, table, outside = problem()
    exact = plain_attention(x, kv, HEADS, 0.0, table, outside)
    rounded = [part.detach().bfloat16().requires_grad_() for part in (x, kv)]
    found = plain_attention(*rounded, HEADS, 0.0, table.float(), outside)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact, atol=0.05, rtol=0.05)
    assert torch.autograd.grad(found.sum(), table)[0].dtype == torch.float64
