from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdml.models import Slides, Visitors
from gdml.models.branches import GridPosition, NeighborTransformer, SlideTransformer
from gdml.models.dropout import Dropout
from gdml.models.gene_dml import ScaleFusion

D = 8


def neighbor_transformer(seed=0, **options):
    torch.manual_seed(seed)
    made = NeighborTransformer(D, side=3, depth=2, heads=2, mlp=2, dropout=0.2, **options).eval()
    torch.nn.init.normal_(made.bias)
    return made


def slide_transformer(depth=2, seed=0):
    torch.manual_seed(seed)
    return SlideTransformer(D, depth, heads=2, mlp=2, dropout=0.2).eval()


def slides_of(*lengths, seed=0):
    g = torch.Generator().manual_seed(seed)
    cells = [torch.randperm(30, generator=g)[:n] for n in lengths]
    grid = torch.cat([torch.stack([c // 5, c % 5], 1) for c in cells])
    return Slides(torch.randn(sum(lengths), D, generator=g), grid, lengths)


def test_offsets_are_those_of_a_loop():
    offsets = neighbor_transformer().offsets
    for a in range(9):
        for b in range(9):
            assert offsets[a, b] == abs(a // 3 - b // 3) * 3 + abs(a % 3 - b % 3)


def test_the_bias_of_an_offset_reaches_the_attention():
    made, x, inside = neighbor_transformer(), torch.randn(2, 9, D), torch.ones(2, 9, dtype=torch.bool)
    with torch.no_grad():
        before = made(x, inside)
        made.bias[0, 0, 0] += 5
        assert not torch.allclose(made(x, inside), before)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.booleans(), min_size=9, max_size=9), st.floats(-1e4, 1e4))
def test_values_of_masked_neighbours_never_matter(inside, value):
    inside[4] = True
    mask = torch.tensor([inside, [True] * 9])
    made, x = neighbor_transformer(), torch.randn(2, 9, D, generator=torch.Generator().manual_seed(0))
    other = torch.where(mask[..., None], x, torch.full_like(x, value))
    with torch.no_grad():
        torch.testing.assert_close(made(x, mask)[mask], made(other, mask)[mask], atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(4)))
def test_regions_do_not_see_each_other(order):
    made, g = neighbor_transformer(), torch.Generator().manual_seed(0)
    x, mask = torch.randn(4, 9, D, generator=g), torch.rand(4, 9, generator=g) > 0.4
    mask[:, 4] = True
    with torch.no_grad():
        torch.testing.assert_close(made(x, mask)[order], made(x[order], mask[order]), atol=1e-5, rtol=1e-4)


def test_a_region_and_its_mirror_image_agree():
    # the bias knows absolute offsets only, so a flipped region gives the flipped answer
    made, x = neighbor_transformer(), torch.randn(1, 9, D)
    inside, flip = torch.ones(1, 9, dtype=torch.bool), torch.arange(9).view(3, 3).flip(1).flatten()
    with torch.no_grad():
        torch.testing.assert_close(made(x[:, flip], inside), made(x, inside)[:, flip], atol=1e-5, rtol=1e-4)


def loop_grid_position(made, x, slide, grid):
    weight, offset = made.conv.weight.detach().numpy(), made.conv.bias.detach().numpy()
    at = {(int(s), int(r), int(c)): i for i, (s, (r, c)) in enumerate(zip(slide, grid, strict=True))}
    y = x.numpy().copy()
    for (s, r, c), i in at.items():
        y[i] += offset
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                j = at.get((s, r + dr, c + dc))
                if j is not None:
                    y[i] += weight[:, 0, dr + 1, dc + 1] * x[j].numpy()
    return y


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 30))
def test_grid_position_agrees_with_loops(seed, a, b):
    torch.manual_seed(seed)
    made, slides = GridPosition(D), slides_of(a, b, seed=seed)
    slide = torch.tensor([0] * a + [1] * b)
    with torch.no_grad():
        found = made(slides.features, slide, slides.grid)
    np.testing.assert_allclose(found, loop_grid_position(made, slides.features, slide, slides.grid), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 30))
def test_a_sparse_grid_is_gathered_with_the_same_numbers(seed, a, b):
    torch.manual_seed(seed)
    made, slides = GridPosition(D), slides_of(a, b, seed=seed)
    stretched = replace(slides, grid=slides.grid + torch.tensor([100_000, 0]))
    made.conv.forward = None  # the dense grid would have a million cells
    with torch.no_grad():
        found = made(slides.features, slides.slide, stretched.grid)
    np.testing.assert_allclose(found, loop_grid_position(made, slides.features, slides.slide, slides.grid), atol=1e-5)


def test_both_ways_to_convolve_agree_and_have_the_same_gradients():
    torch.manual_seed(0)
    made, slides = GridPosition(D), slides_of(14, 20)
    results = []
    for way in (made, lambda x, slide, grid: x + made._gather(x, slide, grid, slide, grid)):
        x = slides.features.clone().requires_grad_()
        y = way(x, slides.slide, slides.grid)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *made.parameters()])])
    for dense, gathered in zip(*results, strict=True):
        torch.testing.assert_close(dense, gathered, atol=1e-4, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.integers(1, 3), st.booleans())
def test_slides_packed_are_slides_alone(lengths, depth, grad):
    made, slides = slide_transformer(depth), slides_of(*lengths)
    with torch.set_grad_enabled(grad):
        together = made(slides, slides.features)
        for x, grid, packed in zip(*(t.split(lengths) for t in (slides.features, slides.grid, together)), strict=True):
            alone = made(Slides(x, grid, (len(x),)), x)
            torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(12)))
def test_the_order_of_a_slides_spots_does_not_matter(order):
    made, slides = slide_transformer(), slides_of(12)
    shuffled = Slides(slides.features[order], slides.grid[order], slides.lengths)
    with torch.no_grad():
        torch.testing.assert_close(
            made(slides, slides.features)[order], made(shuffled, shuffled.features), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("lengths", [(12,), (9, 14), (8, 8), (5, 11, 7)])
def test_rows_that_are_asked_for_are_those_of_all(depth, lengths):
    made, slides = slide_transformer(depth), slides_of(*lengths)
    g = torch.Generator().manual_seed(0)
    # each slide has another number of rows, in any order
    rows = [torch.arange(n)[: 2 + i] + sum(lengths[:i]) for i, n in enumerate(lengths)]
    index = torch.cat(rows)[torch.randperm(sum(map(len, rows)), generator=g)]
    weights = torch.randn(len(index), D, generator=g)
    for module in made.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    results = []
    for alone in (False, True):
        x = slides.features.clone().requires_grad_()
        found = made.train()(slides, x, index=index) if alone else made(slides, x)[index]
        results.append([found, *torch.autograd.grad((found * weights).sum(), [x, *made.parameters()])])
    for whole, part in zip(*results, strict=True):
        torch.testing.assert_close(whole, part, atol=1e-4, rtol=1e-4)


def test_in_training_the_last_layer_computes_the_rows_alone():
    made, slides, seen = slide_transformer(), slides_of(12, 9), []
    made.blocks[-1].mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:2].numel()))
    index = torch.tensor([2, 14, 0])
    made.train()(slides, slides.features, index=index)
    assert seen == [2 * 2]  # two slides, padded to the two rows of the first
    with torch.no_grad():
        assert made.eval()(slides, slides.features, index=index).shape == (3, D)


def test_position_on_the_grid_matters():
    made, slides = slide_transformer(), slides_of(12)
    moved = Slides(slides.features, slides.grid.roll(1, 0), slides.lengths)
    with torch.no_grad():
        assert not torch.allclose(made(slides, slides.features), made(moved, slides.features))


def loop_visit(made, slides, visitors):
    """Pass each visitor alone beside the context of its slide, which must not attend to it."""
    found = []
    for x, grid, slide in zip(visitors.features, visitors.grid, visitors.slide, strict=True):
        own = slides.slide == slide
        rows, cells = torch.cat([slides.features[own], x[None]]), torch.cat([slides.grid[own], grid[None]])
        hidden = torch.zeros(len(rows), len(rows))
        hidden[:-1, -1] = -torch.inf
        for i, block in enumerate(made.blocks):
            if i == 1:
                rows = position_of_the_last(made.position, rows, cells)
            rows = block(rows[None], hidden[None, None])[0]
        if len(made.blocks) == 1:
            rows = position_of_the_last(made.position, rows, cells)
        found.append(made.norm(rows)[-1])
    return torch.stack(found)


def position_of_the_last(position, rows, cells):
    """Convolve the context without the last row, and the last row among the context."""
    zeros = torch.zeros(len(rows), dtype=torch.long)
    context = position(rows[:-1], zeros[:-1], cells[:-1])
    return torch.cat([context, position(rows, zeros, cells)[-1:]])


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("lengths", [(12,), (9, 14), (8, 8)])
def test_visitors_agree_with_a_loop(depth, lengths):
    made, g = slide_transformer(depth), torch.Generator().manual_seed(1)
    slides = slides_of(*lengths)
    # cells beside the context's own
    cells = torch.tensor([[0, 5], [2, 5], [6, 1], [1, 6], [6, 3]])
    visitors = Visitors(torch.randn(5, D, generator=g), cells, torch.tensor([0, len(lengths) - 1, 0, 0, 0]))
    x = torch.cat([slides.features, visitors.features])
    with torch.no_grad():
        found = made(slides, x, visitors)
        assert torch.equal(found[:-5], made(slides, slides.features)), "the context depends on visitors"
        torch.testing.assert_close(found[-5:], loop_visit(made, slides, visitors), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_fusion_residual(residual):
    torch.manual_seed(0)
    made, x = ScaleFusion(D, 2, 2, 0.1, residual=residual).eval(), torch.randn(3, 6, D)
    with torch.no_grad():
        inner = made.block(x)
        expected = made.feed_forward(inner) + (inner if residual else 0)
        assert torch.equal(made(x, torch.ones(3, 6, dtype=torch.bool)), expected)


def test_fusion_does_not_attend_to_masked_tokens():
    torch.manual_seed(0)
    made, x, inside = ScaleFusion(D, 2, 2, 0.1, residual=True).eval(), torch.randn(3, 6, D), torch.rand(3, 6) > 0.4
    inside[:, 0] = True
    with torch.no_grad():
        found = made(x, inside)
        for row, keep, answer in zip(x, inside, found, strict=True):
            alone = made(row[None, keep], torch.ones(1, int(keep.sum()), dtype=torch.bool))
            torch.testing.assert_close(answer[keep], alone[0], atol=1e-5, rtol=1e-5)
