from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gdml.models import get_model
from gdml.models.discrimination import group_loss, instance_loss
from gdml.models.gene_dml import SCALES, GeneDML, _means
from gdml.models.gene_dml_config import PRESETS

#: Small, nothing dropped; what is not named here is off in the paper's model, whatever our defaults are.
PLAIN = replace(
    PRESETS["her2st"],
    width=16,
    features="standardize",
    targets="standardize",
    branch_width=16,
    neighbor_depth=1,
    neighbor_heads=2,
    neighbor_mlp=2,
    neighbor_dropout=0.0,
    slide_depth=2,
    slide_heads=2,
    slide_mlp=2,
    slide_dropout=0.0,
    fusion_heads=2,
    fusion_dropout=0.0,
    fusion_residual=True,
    attention_dropout=False,
    head_dropout=0.0,
    gene_dropout=0.0,
    n_groups=3,
    group_iterations=5,
    normalize_image=True,
    scale_weight=1.0,
    distillation=0.3,
    average_scales=True,
)

SWITCHES = {
    "plain": {},
    **{f"features={v}": {"features": v} for v in ("standardize", "scale", "raw")},
    **{f"targets={v}": {"targets": v} for v in ("standardize", "scale", "raw")},
    "branch_width=0": {"branch_width": 0},
    "projection=shared": {"projection": "shared", "branch_width": 0},
    "fusion_residual=False": {"fusion_residual": False},
    "attention_dropout": {"attention_dropout": True, "neighbor_dropout": 0.2, "slide_dropout": 0.2},
    "head=linear": {"head": "linear"},
    "input_dropout": {"input_dropout": 0.2},
    "token_dropout": {"token_dropout": 0.5},
    "all dropouts": dict.fromkeys(
        ("neighbor_dropout", "slide_dropout", "fusion_dropout", "head_dropout", "gene_dropout"), 0.3
    ),
    "contrast=expression": {"contrast": "expression"},
    "no instances": {"instance_weight": 0.0},
    "no groups": {"group_weight": 0.0},
    "neither": {"instance_weight": 0.0, "group_weight": 0.0},
    "nothing but the head": {"instance_weight": 0.0, "group_weight": 0.0, "scale_weight": 0.0},
    "instance_reduction=sum": {"instance_reduction": "sum"},
    **{f"group_target={v}": {"group_target": v, "instance_weight": 0.0} for v in ("nearest", "paired", "soft")},
    "grouping=separate": {"grouping": "separate"},
    "normalize_image=False": {"normalize_image": False},
    "scale_weight=0": {"scale_weight": 0.0},
    "distillation=0": {"distillation": 0.0},
    "distillation=1": {"distillation": 1.0},
    "average_scales=False": {"average_scales": False},
    "gene_specific": {"gene_specific": 0.3},
    "floor=ridge": {"floor": "ridge"},
    "floor=ridge+kernel": {"floor": "ridge+kernel"},
    "feature_shift": {"feature_shift": 0.5},
    "slide_depth=1": {"slide_depth": 1},
    "neighbor_depth=2": {"neighbor_depth": 2},
}


def make(shape, config=PLAIN, batch=None, *, seed=0, **options):
    torch.manual_seed(seed)
    model = GeneDML(replace(config, **options), shape)
    if batch is not None:
        model.prepare([batch])
    return model


def gradients(model, batch, seed=0):
    """Largest absolute gradient of each parameter, None where it has none."""
    model.train()
    torch.manual_seed(seed)
    losses = model.loss(batch, model(batch), torch.Generator().manual_seed(seed))
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    return {name: None if p.grad is None else float(p.grad.abs().max()) for name, p in model.named_parameters()}


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_parameter_learns(shape, make_batch, switch):
    batch = make_batch()
    found = gradients(make(shape, batch=batch, **SWITCHES[switch]), batch)
    silent = [name for name, g in found.items() if not g or g < 1e-8]
    assert not silent


def test_the_layer_before_grouping_learns_unless_detached(shape, make_batch):
    batch = make_batch()
    found = gradients(make(shape, batch=batch, detach_centroids=True), batch)
    # nothing but the centroids leads back to it
    assert {name for name, g in found.items() if not g} == {"group.0.weight", "group.0.bias"}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_of_a_preset_learns(shape, make_batch, preset):
    batch = make_batch(lengths=(25, 25), index=range(40))
    found = gradients(make(shape, PRESETS[preset], batch, n_groups=min(PRESETS[preset].n_groups, 40)), batch)
    assert not [name for name, g in found.items() if not g]


@pytest.mark.parametrize("switch", SWITCHES)
def test_evaluation_is_deterministic(shape, make_batch, switch):
    batch = make_batch()
    model = make(shape, batch=batch, **SWITCHES[switch]).eval()
    with torch.inference_mode():
        first, second = model(batch), model(batch)
    assert torch.equal(first.prediction, second.prediction) and torch.equal(first.embedding, second.embedding)
    assert first.prediction.shape == (24, shape.n_genes)
    torch.testing.assert_close(first.embedding.norm(dim=1), torch.ones(24))


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(shape, make_batch, preset):
    model = make(shape, PRESETS[preset] if preset else PLAIN, make_batch()).eval()
    with torch.inference_mode():
        whole = model(make_batch()).prediction
        for part in ([3], [20, 1, 14, 2], list(range(23, -1, -1))):
            torch.testing.assert_close(model(make_batch(part)).prediction, whole[part], atol=1e-4, rtol=1e-4)


def test_a_prediction_does_not_depend_on_the_other_slides(shape, make_batch):
    model, batch = make(shape, batch=make_batch()).eval(), make_batch()
    alone = make_batch(range(14))
    slides = alone.slides
    alone.slides = replace(slides, features=slides.features[:14], grid=slides.grid[:14], lengths=(14,))
    with torch.inference_mode():
        torch.testing.assert_close(model(alone).prediction, model(batch).prediction[:14], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "rate",
    ["neighbor_dropout", "slide_dropout", "fusion_dropout", "head_dropout", "input_dropout", "token_dropout"]
    + ["feature_shift"],
)
def test_each_dropout_is_on_in_training_alone(shape, make_batch, rate):
    batch = make_batch()
    model = make(shape, batch=batch, **{rate: 0.4})
    with torch.no_grad():
        assert not torch.equal(model(batch).prediction, model(batch).prediction)
        model.eval()
        assert torch.equal(model(batch).prediction, model(batch).prediction)
        # nothing is dropped by the others
        still = make(shape, batch=batch)
        assert torch.equal(still(batch).prediction, still(batch).prediction)


@pytest.mark.parametrize("rate", ["neighbor_dropout", "slide_dropout", "fusion_dropout"])
def test_attention_weights_are_dropped_in_training_alone(shape, make_batch, rate):
    batch = make_batch()
    model = make(shape, batch=batch, attention_dropout=True, **{rate: 0.4})
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0  # leaves the attention weights'
    with torch.no_grad():
        assert not torch.equal(model(batch).prediction, model(batch).prediction)
        model.eval()
        assert torch.equal(model(batch).prediction, model(batch).prediction)


def test_the_gene_encoder_drops_in_training_alone(shape, make_batch):
    model = make(shape, gene_dropout=0.4)
    expression = make_batch().expression
    assert not torch.equal(model.gene(expression), model.gene(expression))
    model.eval()
    assert torch.equal(model.gene(expression), model.gene(expression))


@pytest.mark.parametrize("scale_weight", [0.0, 2.0])
def test_the_loss_is_the_weighted_sum_of_its_parts(shape, make_batch, scale_weight):
    batch = make_batch()
    model = make(shape, batch=batch, instance_weight=0.5, group_weight=0.25, scale_weight=scale_weight).eval()
    output = model(batch)
    losses = model.loss(batch, output, torch.Generator().manual_seed(0))
    parts, gene = output.parts, model.gene(model.target_scale(batch.expression))
    images = [F.normalize(parts[name], dim=1) for name in SCALES]
    fused = F.normalize(parts["fused"], dim=1)
    start = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:3]
    group = lambda x: F.normalize(model.group[0](x), dim=1)
    target = (batch.expression - batch.expression.mean(0)) / batch.expression.std(0, unbiased=False)
    expected = {
        "loss_pred": (parts["prediction"] - target).square().mean(),
        "loss_instance": instance_loss(images, gene, tau=0.07),
        "loss_group": group_loss(fused, gene, group(fused), group(gene), k=3, iterations=5, start=start),
    }
    if scale_weight:
        by_scale = [parts[f"{name}_prediction"] for name in SCALES]
        follow = [(y - parts["prediction"]).square().mean() for y in by_scale]
        measured = [(y - target).square().mean() for y in by_scale]
        expected["loss_scales"] = sum(0.7 * a + 0.3 * b for a, b in zip(measured, follow, strict=True))
    weights = {"loss_pred": 1, "loss_instance": 0.5, "loss_group": 0.25, "loss_scales": scale_weight}
    assert losses.keys() == {"loss", *expected}
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, atol=1e-5, rtol=1e-4)
    total = sum(weights[name] * value for name, value in expected.items())
    torch.testing.assert_close(losses["loss"], total, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("contrast", ["joint", "expression"])
def test_what_learns_from_the_contrast(shape, make_batch, contrast):
    batch = make_batch()

    def gradients(**config):
        model = make(shape, batch=batch, contrast=contrast, **config)
        model.loss(batch, model(batch), torch.Generator().manual_seed(0))["loss"].backward()
        return {name: p.grad for name, p in model.named_parameters()}

    both, neither = gradients(), gradients(instance_weight=0.0, group_weight=0.0)
    assert all(
        g.abs().sum() > 0 for name, g in both.items() if name.startswith(("gene.", "group.")) and "weight" in name
    )
    image = [name for name in neither if neither[name] is not None and not name.startswith(("gene.", "group."))]
    assert len(image) > 20
    same = [torch.allclose(both[name], neither[name], rtol=1e-4, atol=1e-7) for name in image]
    assert all(same) if contrast == "expression" else not all(same)


def test_embeddings_are_means_over_the_tokens_of_a_scale(shape, make_batch):
    batch, kept = make_batch(), {}
    model = make(shape, batch=batch).eval()
    model.fusion.register_forward_hook(lambda _, __, out: kept.update(tokens=out))
    parts = model(batch).parts
    tokens, t = kept["tokens"], shape.n_tokens
    assert tokens.shape == (24, t + 9 + 1, 16)
    ones = torch.ones(24, 1, dtype=torch.bool)
    inside = torch.cat([ones.expand(-1, t), batch.neighbor_mask, ones], 1)
    places = {"local": slice(t), "neighbor": slice(t, t + 9), "global": slice(-1, None), "fused": slice(None)}
    for name, rows in places.items():
        means = [x[keep].mean(0) for x, keep in zip(tokens[:, rows], inside[:, rows], strict=True)]
        torch.testing.assert_close(parts[name], torch.stack(means))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.01)])
def test_means_of_scales_are_those_of_loops_with_their_gradients(dtype, tolerance):
    torch.manual_seed(0)
    sizes, x = [4, 5, 1], torch.randn(3, 10, 6, dtype=dtype, requires_grad=True)
    inside = torch.rand(3, 10) > 0.4
    inside[:, [0, 4, 9]] = True
    found = torch.stack(_means(x, inside, sizes))
    spans = [slice(0, 4), slice(4, 9), slice(9, 10), slice(0, 10)]
    expected = torch.stack(
        [torch.stack([row[span][keep[span]].mean(0) for row, keep in zip(x, inside, strict=True)]) for span in spans]
    )
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, atol=tolerance, rtol=tolerance)


def test_the_prediction_is_the_mean_of_all_heads_where_asked(shape, make_batch):
    batch = make_batch()
    model = make(shape, batch=batch).eval()
    output = model(batch)
    heads = [output.parts["prediction"], *(output.parts[f"{name}_prediction"] for name in SCALES)]
    expected = torch.stack(heads).mean(0) * model.target_scale.scale + model.target_scale.mean
    torch.testing.assert_close(output.prediction, expected)
    alone = make(shape, batch=batch, average_scales=False).eval()(batch)
    torch.testing.assert_close(alone.prediction, model.target_scale.inverse(alone.parts["prediction"]))


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_what_is_each_genes_own_is_shrunk_at_evaluation(shape, make_batch, share):
    batch = make_batch()
    scaled = lambda model: model.target_scale(model(batch).prediction)
    plain, shrunk = make(shape, batch=batch), make(shape, batch=batch, gene_specific=share)
    torch.testing.assert_close(scaled(plain), scaled(shrunk))  # in training it is not
    y, common = scaled(plain.eval()), scaled(plain).mean(1, keepdim=True)
    torch.testing.assert_close(scaled(shrunk.eval()), common + share * (y - common), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("floor", ["ridge", "ridge+kernel"])
def test_the_network_is_blended_with_its_floor_at_evaluation(shape, make_batch, floor):
    batch = make_batch()
    plain, both = make(shape, batch=batch), make(shape, batch=batch, floor=floor)
    torch.testing.assert_close(plain(batch).prediction, both(batch).prediction)  # in training it is not
    alone = {"ridge": get_model("ridge"), "kernel": get_model("kernel")}
    members = []
    for name in floor.split("+"):
        model = alone[name](alone[name].config_class(), shape)
        model.prepare([batch])
        members.append(model(batch).prediction)
    members.append(plain.eval()(batch).prediction)
    assert GeneDML.members(both.config) == (*floor.split("+"), "network")
    shares = torch.tensor([0.5, 0.2, 0.3][-len(members) :])
    both.eval().take_shares(shares)
    found = both(batch)
    torch.testing.assert_close(found.parts["members"], torch.stack(members, 1), atol=1e-4, rtol=1e-4)
    expected = sum(share * member for share, member in zip(shares, members, strict=True))
    torch.testing.assert_close(found.prediction, expected, atol=1e-4, rtol=1e-4)
    # training and the choice of the epoch do not read what is for the floor, and see the network alone
    assert both.network_needs == both.needs - {"summary"}
    torch.testing.assert_close(both(replace(batch, summary=None)).prediction, members[-1])


def test_what_is_each_genes_own_is_shrunk_in_all_members(shape, make_batch):
    batch = make_batch()
    options = {"batch": batch, "floor": "ridge+kernel"}
    plain, shrunk = make(shape, **options).eval(), make(shape, gene_specific=0.4, **options).eval()
    y = plain.target_scale(plain(batch).parts["members"])
    common = y.mean(2, keepdim=True)
    found = plain.target_scale(shrunk(batch).parts["members"])
    torch.testing.assert_close(found, common + 0.4 * (y - common), atol=1e-5, rtol=1e-4)


def test_the_network_alone_has_no_members(shape, make_batch):
    model = make(shape, batch=make_batch()).eval()
    assert GeneDML.members(model.config) == ()
    assert "members" not in model(make_batch()).parts
    assert "summary" not in model.needs


def test_a_shift_is_the_same_for_all_spots_of_a_batch(shape, make_batch):
    batch, seen = make_batch(), []
    model = make(shape, batch=batch, feature_shift=0.5)
    model.drop_input.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    model(batch)
    scaled = model.local_scale(batch.tokens), model.pooled_scale(batch.neighbors)
    shifts = [x - z for x, z in zip(seen, scaled, strict=False)]
    shift = shifts[0][0, 0]
    assert shift.std() == pytest.approx(0.5, rel=0.4)
    for x in shifts:
        torch.testing.assert_close(x, shift.expand_as(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["standardize", "scale", "raw"])
def test_prepare_learns_the_scales_of_the_training_spots(shape, make_batch, kind):
    batch = make_batch()
    model = make(shape, features=kind, targets=kind)
    model.prepare(make_batch(part) for part in (range(10), range(10, 24)))
    inside = batch.neighbors[batch.neighbor_mask]
    for scaler, rows in (
        (model.local_scale, batch.tokens.flatten(0, 1)),
        (model.pooled_scale, inside),
        (model.target_scale, batch.expression),
    ):
        x = rows.double().numpy()
        mean, std = x.mean(0), x.std(0)
        if kind == "raw":
            mean, std = 0 * mean, 1 + 0 * std
        elif kind == "scale":
            std = np.full_like(std, np.sqrt(np.square(std).mean()))
        np.testing.assert_allclose(scaler.mean, mean, atol=1e-6)
        np.testing.assert_allclose(scaler.scale, std, rtol=1e-6)


def test_an_untrained_model_predicts_near_the_mean_expression(shape, make_batch):
    batch = make_batch()
    with torch.no_grad():
        error = make(shape, batch=batch).eval()(batch).prediction - batch.expression.mean(0)
    assert error.abs().mean() < 1  # the expression lies around 3


def test_first_token_stays_when_tokens_are_left_out(shape):
    model = make(shape, token_dropout=0.5)
    local, seen = torch.arange(5.0).expand(2, 5)[..., None], set()
    for seed in range(20):
        torch.manual_seed(seed)
        kept = model._drop_tokens(local)[0, :, 0].tolist()
        assert len(kept) == 3 and kept[0] == 0 and kept == sorted(set(kept))
        seen |= set(kept)
    assert seen == {0, 1, 2, 3, 4}  # each of the others has its turn


def test_scales_are_learnt_without_tiles_outside_the_image(shape, make_batch):
    batch, other = make_batch(), make_batch()
    other.neighbors[~other.neighbor_mask] = 77.0
    model = make(shape, batch=batch)
    again = make(shape, batch=other)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), again.buffers(), strict=True))


@pytest.mark.parametrize("option", ["neighbor_heads", "slide_heads", "fusion_heads"])
def test_heads_that_do_not_divide_the_width(shape, option):
    with pytest.raises(ValueError, match="`heads` must divide the token width: found 3 heads for width 16"):
        make(shape, **{option: 3})


def test_no_expression_no_loss(shape, make_batch):
    model, batch = make(shape), make_batch(expression=False)
    with pytest.raises(ValueError, match="no expression"):
        model.loss(batch, model(batch), torch.Generator())


def test_fewer_spots_than_groups(shape, make_batch):
    batch = make_batch([0, 1])
    model = make(shape)
    with pytest.raises(ValueError, match="`k` is 3 groups, but there are 2 rows"):
        model.loss(batch, model(batch), torch.Generator())


def test_overfits_64_spots(shape, make_batch):
    batch = make_batch(lengths=(25, 25, 14))
    model = make(shape, batch=batch, width=32, branch_width=32)
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)

    def correlation():
        with torch.no_grad():
            a, b = model.eval()(batch).prediction, batch.expression
        model.train()
        return float(F.cosine_similarity(a - a.mean(0), b - b.mean(0), dim=0).mean())

    assert correlation() < 0.5
    for step in range(300):
        loss = model.loss(batch, model(batch), generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19 and correlation() > 0.9:
            return
    pytest.fail(f"The correlation on the training spots is {correlation():.2f} after 300 steps.")
