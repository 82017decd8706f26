from dataclasses import replace

import numpy as np
import pytest
import torch

from gdml.models import Shape
from gdml.models.m2ost import M2OST, CrossLevel, M2OSTConfig, M2OSTLayer, around_center
from gdml.training.config import TrainingConfig

SMALL = {"width": 16, "depth": 1, "heads": 2, "hidden": 12}


@pytest.fixture
def shape():
    """The shape of the other models' tests, but for the third level's 5 x 5 tiles."""
    return Shape(dim=32, n_tokens=5, n_side=5, n_genes=7)


def make(shape, batch=None, **options):
    torch.manual_seed(0)
    model = M2OST(M2OSTConfig(**(SMALL | options)), shape)
    if batch is not None:
        model.prepare([batch])
    return model.eval()


def test_keeps_the_contract(check_contract):
    check_contract("m2ost", SMALL, {"max_epochs": 2})


def test_learns_64_spots_by_heart(fit_quality):
    config = SMALL | {"width": 32, "hidden": 48}
    assert fit_quality("m2ost", config, {"max_epochs": 50, "learning_rate": 5e-3, "batch_size": 64}) > 0.95


def test_recipe_is_a_training_config():
    assert TrainingConfig(**M2OST.recipe).batch_size == 48


@pytest.mark.parametrize("targets", ["center", "standardize", "raw"])
def test_loss_agrees_with_loops(shape, make_batch, targets):
    batch = make_batch()
    model = make(shape, batch, targets=targets)
    output = model(batch)
    total = 0.0
    measured, predicted = batch.expression.numpy(), output.prediction.detach().numpy()
    spread = measured.std(0) if targets == "standardize" else np.ones(shape.n_genes)
    for i in range(len(measured)):
        for gene in range(shape.n_genes):
            total += ((measured[i, gene] - predicted[i, gene]) / spread[gene]) ** 2
    found = model.loss(batch, output, torch.Generator())["loss"].item()
    assert found == pytest.approx(total / measured.size, rel=1e-4)


@pytest.mark.parametrize(("n_side", "side"), [(5, 3), (5, 5), (7, 3), (7, 5)])
def test_tiles_around_the_centre(n_side, side):
    expected, middle = [], n_side // 2
    for place in range(n_side**2):
        if max(abs(place // n_side - middle), abs(place % n_side - middle)) <= side // 2:
            expected.append(place)
    assert around_center(n_side, side) == expected


def level_inputs(*sizes, seed=0):
    g = torch.Generator().manual_seed(seed)
    levels = [torch.randn(3, n, 16, generator=g) for n in sizes]
    inside = [torch.rand(3, n, generator=g) > 0.4 for n in sizes]
    for part in inside:
        part[:, 0] = True
    return levels, inside, [torch.zeros(part.shape).masked_fill(~part, float("-inf")) for part in inside]


@torch.no_grad()
def test_levels_read_each_other_as_loops_have_it():
    torch.manual_seed(0)
    made, heads, each = CrossLevel(16, 2, 0.0).eval(), 2, 8
    levels, inside, outside = level_inputs(6, 4, 5)
    found = made(levels, outside)
    parts = [layer(made.norm(x)).chunk(3, -1) for layer, x in zip(made.qkv, levels, strict=True)]
    for n in range(3):
        for i, out in enumerate(made.out):
            for t in range(levels[i].shape[1]):
                read = []
                for j in [j for j in range(3) if j != i]:
                    for head in range(heads):
                        cut = slice(head * each, (head + 1) * each)
                        weights, answer = [], np.zeros(each)
                        for s in range(levels[j].shape[1]):
                            q, k, v = parts[i][0][n, t, cut], parts[j][1][n, s, cut], parts[j][2][n, s, cut]
                            weight = np.exp(float(q @ k) / np.sqrt(each)) if inside[j][n, s] else 0.0
                            weights.append(weight)
                            answer += weight * v.numpy()
                        read.append(answer / sum(weights))
                expected = out(torch.tensor(np.concatenate(read)).float())
                np.testing.assert_allclose(found[i][n, t], expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("residual", [True, False])
def test_channels_are_weighed_by_the_means_of_all_levels(residual):
    torch.manual_seed(0)
    made = M2OSTLayer(M2OSTConfig(**SMALL, cross_residual=residual)).eval()
    levels, inside, outside = level_inputs(6, 4, 5)
    found = made(levels, inside, outside)
    after = [x + a(n(x), o[:, None, None]) for n, a, x, o in zip(made.norms, made.within, levels, outside, strict=True)]
    after = [x + made.mlp(x) for x in after]
    read = made.across(after, outside)
    after = [x + y for x, y in zip(after, read, strict=True)] if residual else read
    for n in range(3):
        means = torch.cat([x[n][keep[n]].mean(0) for x, keep in zip(after, inside, strict=True)])
        for i, weight in enumerate(made.weigh(means).chunk(3)):
            torch.testing.assert_close(found[i][n], after[i][n] * (1 + weight), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_masked_tiles_do_not_matter(shape, make_batch):
    batch = make_batch()
    model = make(shape, batch, depth=2)
    before = model(batch).prediction
    batch.neighbors[~batch.neighbor_mask] = 30.0
    torch.testing.assert_close(model(batch).prediction, before)


@torch.no_grad()
def test_the_middle_tiles_are_on_two_levels_and_the_rim_on_one(shape, make_batch):
    batch = make_batch()
    batch.neighbor_mask[:] = True
    model = make(shape, batch)
    seen = []
    model.embed[1].register_forward_pre_hook(lambda _, x: seen.append(x[0].clone()))
    model.embed[2].register_forward_pre_hook(lambda _, x: seen.append(x[0].clone()))
    before = model(batch).prediction
    batch.neighbors[:, 0] += 1.0  # a corner of the 5 x 5
    assert not torch.allclose(model(batch).prediction, before)
    middle, region, middle_after, region_after = seen
    assert middle.shape[1] == 9 and region.shape[1] == 25
    assert torch.equal(middle, middle_after) and not torch.equal(region, region_after)
    torch.testing.assert_close(middle, region[:, around_center(5, 3)])


@torch.no_grad()
def test_every_level_is_read_by_the_head(shape, make_batch):
    batch = make_batch()
    model = make(shape, batch)
    before = model(batch).prediction
    assert not torch.allclose(model(replace(batch, tokens=batch.tokens * 2)).prediction, before)
    for level in range(3):
        weight = model.head.weight.clone()
        model.head.weight[:, level * 16 : (level + 1) * 16] = 0
        assert not torch.allclose(model(batch).prediction, before)
        model.head.weight.copy_(weight)


@torch.no_grad()
def test_a_batch_that_holds_a_slide_twice_predicts_it_twice(shape, make_batch):
    once = make_batch(lengths=(14,))
    model = make(shape, once)
    parts = {k: torch.cat([getattr(once, k)] * 2) for k in ("tokens", "neighbors", "neighbor_mask", "index")}
    alone = model(once).prediction
    torch.testing.assert_close(model(replace(once, **parts)).prediction, torch.cat([alone] * 2))


@torch.no_grad()
def test_a_region_of_more_tiles_is_cut_to_its_middle(make_batch, shape):
    wide = replace(shape, n_side=7)
    batch = make_batch()
    neighbors, mask = torch.randn(24, 49, 32), torch.ones(24, 49, dtype=torch.bool)
    middle = around_center(7, 5)
    neighbors[:, middle], mask[:, middle] = batch.neighbors, batch.neighbor_mask
    narrow, large = make(shape), make(wide)
    expected = narrow(batch).prediction
    torch.testing.assert_close(large(replace(batch, neighbors=neighbors, neighbor_mask=mask)).prediction, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "standardise"}, "`features` is 'standardise'. Did you mean 'standardize'"),
        ({"targets": "mean"}, "`targets` is 'mean'"),
        ({"depth": 0}, "`depth` must be at least 1, found 0"),
        ({"heads": 5}, "`heads` must divide `width`: found 5 heads for width 192"),
        ({"hidden": 2}, "`hidden` must be at least 3, found 2"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\), found 1.0"),
    ],
)
def test_config_says_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        M2OSTConfig(**options)


def test_data_that_do_not_suffice(shape):
    with pytest.raises(ValueError, match=r"there are 3 x 3: call gdml.pp.tile\(adata, n_side=5\)"):
        make(replace(shape, n_side=3))
    with pytest.raises(ValueError, match='tokens="grid7"'):
        make(replace(shape, n_tokens=1))
