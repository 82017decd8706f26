"""What every model must hold: it reads what it names, no tile outside the image, and no other visitor."""

from dataclasses import replace

import pytest
import torch

from gdml.models import Batch, Shape, Slides, SpotModel, Visitors, get_model, list_models
from gdml.models.base import make_config

SMALL = {
    "bleep": {"width": 16, "n_neighbors": 3},
    "egn": {"width": 16, "depth": 2, "heads": 2, "bridge_heads": 2, "bridge_width": 8, "n_exemplars": 3},
    "gene-dml": {
        "width": 16,
        "branch_width": 16,
        "neighbor_depth": 1,
        "neighbor_heads": 2,
        "slide_depth": 3,
        "slide_heads": 2,
        "fusion_heads": 2,
        "n_groups": 4,
    },
    "hist2st": {"width": 16, "depth": 2, "heads": 2, "graph_depth": 2, "n_views": 2},
    "histogene": {"width": 16, "depth": 2, "heads": 2},
    "kernel": {"n_landmarks": 8},
    "m2ost": {"width": 12, "depth": 1, "heads": 3, "hidden": 24},
    "nh2st": {"width": 16, "graph_width": 16, "heads": 2, "depth": 1, "decoder_width": 16},
    "ridge": {},
    "stnet": {},
    "triplex": {
        "width": 16,
        "neighbor_depth": 1,
        "neighbor_heads": 2,
        "global_depth": 3,
        "global_heads": 2,
        "fusion_heads": 2,
    },
}
VARIANTS = {
    **{name: (name, options) for name, options in SMALL.items()},
    "gene-dml, paper's": ("gene-dml", SMALL["gene-dml"] | {"floor": "none", "scale_weight": 0.0, "head": "linear"}),
    "ridge, local": ("ridge", {"inputs": "local"}),
    "ridge, pooled": ("ridge", {"inputs": "local+neighbors", "penalty": "one"}),
    "ridge, hest": ("ridge", {"selection": "hest", "inputs": "local", "n_components": 4}),
    "hist2st, no counts": ("hist2st", SMALL["hist2st"] | {"zinb_weight": 0.0}),
}
OF_SLIDES = [name for name, (model, _) in VARIANTS.items() if "slides" in get_model(model).needs]
READ = {
    "bleep": set(),
    "egn": {"tokens"},
    "gene-dml": {"tokens", "neighbors", "slides", "summary"},
    "hist2st": {"slides", "counts"},
    "histogene": {"slides"},
    "kernel": {"summary"},
    "m2ost": {"tokens", "neighbors"},
    "nh2st": {"tokens", "nearest"},
    "ridge": {"summary"},
    "stnet": set(),
    "triplex": {"tokens", "neighbors", "slides"},
}


@pytest.fixture
def shape():
    return Shape(dim=32, n_tokens=5, n_side=5, n_genes=7, n_rows=5, n_cols=5)


def model_of(variant, shape, batch, **options):
    name, config = VARIANTS[variant]
    torch.manual_seed(0)
    model = get_model(name)(make_config(get_model(name), None, config | options), shape)
    model.prepare([batch])
    return model.eval()


def answers(model, batch):
    """Prediction in evaluation, and the losses of a training step."""
    with torch.no_grad():
        found = {"prediction": model.eval()(batch).prediction}
    torch.manual_seed(0)
    found |= model.loss(batch, model.train()(batch), torch.Generator().manual_seed(0))
    model.eval()
    return found


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def only(batch, needs):
    """Leave out of a batch what is not read."""
    if "tokens" not in needs:
        batch = replace(batch, tokens=batch.tokens[:, :0])
    if "neighbors" not in needs:
        batch = replace(batch, neighbors=batch.neighbors[:, :0], neighbor_mask=batch.neighbor_mask[:, :0])
    if "slides" not in needs:
        batch = replace(batch, slides=None, index=None)
    return replace(batch, **{name: None for name in ("summary", "counts", "nearest") if name not in needs})


def test_each_model_names_what_it_reads():
    assert {name: set(get_model(name).needs) for name in list_models()} == READ


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_that_are_not_named_are_not_read(variant, shape, make_batch):
    full = make_batch()
    model = model_of(variant, shape, full)
    bare = only(full, model.needs)
    assert_equal(answers(model, bare), answers(model, full))
    again = model_of(variant, shape, bare)  # nor when the model is prepared
    for name, value in model.state_dict().items():
        if not name.startswith("scalers."):  # a scale of what is never read may differ
            assert torch.equal(again.state_dict()[name], value), name
    assert_equal(answers(again, bare), answers(model, full))


def test_settings_narrow_what_is_read(shape, make_batch):
    assert model_of("ridge, local", shape, make_batch()).needs == {"tokens"}
    assert model_of("ridge, pooled", shape, make_batch()).needs == {"tokens", "neighbors"}
    assert model_of("hist2st, no counts", shape, make_batch()).needs == {"slides"}


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="Own.needs has 'neighbours'. Did you mean 'neighbors'"):
        type("Own", (SpotModel,), {"needs": frozenset({"tokens", "neighbours"})})


@pytest.mark.parametrize("model", ["gene-dml", "triplex", "histogene", "hist2st"])
def test_a_batch_without_slides_is_refused(model, shape, make_batch):
    batch = make_batch()
    made = model_of(model, shape, batch)
    with pytest.raises(ValueError, match='no slides: name "slides" in the `needs`'):
        made(replace(batch, slides=None))


@pytest.mark.parametrize("variant", VARIANTS)
def test_tiles_outside_the_image_never_matter(variant, shape, make_batch):
    batch = make_batch()
    assert not batch.neighbor_mask.all()
    other = replace(batch, neighbors=batch.neighbors.clone())
    other.neighbors[~batch.neighbor_mask] = 1e6
    model = model_of(variant, shape, batch)
    assert_equal(answers(model, other), answers(model, batch))
    again = model_of(variant, shape, other)
    assert_equal(answers(again, batch), answers(model, batch))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loss_needs_expression(variant, shape, make_batch):
    batch = make_batch()
    model = model_of(variant, shape, batch)
    with pytest.raises(ValueError, match="The batch has no expression to learn from"):
        model.loss(replace(batch, expression=None), model(batch), torch.Generator())


N_CONTEXT = (9, 6)  # of the 14 and 10 spots of the two slides


def visiting(batch: Batch, rows: list[int]) -> Batch:
    """Cut ``rows`` from a batch of two whole slides, of which the first 9 and 6 spots alone are context."""
    starts, whole = (0, 14), batch.slides
    context = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, N_CONTEXT, strict=True)])
    place = torch.full((24,), -1)
    place[context] = torch.arange(len(context))
    visitors = torch.tensor([row for row in rows if place[row] < 0], dtype=torch.long)
    place[visitors] = len(context) + torch.arange(len(visitors))

    def nearest(row: int) -> list[int]:
        among = [i for i in whole.nearest[row].tolist() if i != row and i in context.tolist()]
        found = list(dict.fromkeys([row, *among]))
        return [int(place[i]) for i in (found + [row] * 9)[:9]]

    slides = Slides(
        whole.features[context],
        whole.grid[context],
        N_CONTEXT,
        torch.tensor([nearest(row) for row in context.tolist()]),
        extent=torch.tensor([[5, 5], [5, 5]]),
    )
    others = None
    if len(visitors):
        others = Visitors(
            whole.features[visitors],
            whole.grid[visitors],
            (visitors >= 14).long(),
            torch.tensor([nearest(row) for row in visitors.tolist()]),
        )
    at = torch.tensor(rows)
    parts = (
        "tokens",
        "pooled",
        "neighbors",
        "neighbor_mask",
        "summary",
        "slide",
        "spot",
        "stripe",
        "expression",
        "counts",
    )
    cut = {name: getattr(batch, name)[at] for name in parts}
    return Batch(**cut, slides=slides, visitors=others, index=place[at])


EVERY = list(range(24))


@pytest.mark.parametrize("variant", OF_SLIDES)
def test_a_prediction_does_not_depend_on_the_other_visitors(variant, shape, make_batch):
    batch = make_batch()
    model = model_of(variant, shape, batch)
    with torch.no_grad():
        together = model(visiting(batch, EVERY)).prediction
        for rows in ([row] for row in EVERY):  # visitors and context, each alone
            torch.testing.assert_close(model(visiting(batch, rows)).prediction, together[rows], atol=1e-5, rtol=1e-5)
        rows = [23, 12, 3, 10, 17]
        torch.testing.assert_close(model(visiting(batch, rows)).prediction, together[rows], atol=1e-5, rtol=1e-5)
        changed = replace(batch, slides=replace(batch.slides, features=batch.slides.features.clone()))
        changed.slides.features[[13, 22]] += 1  # two visitors
        found = model(visiting(changed, EVERY)).prediction
    same = [row for row in EVERY if row not in (13, 22)]
    torch.testing.assert_close(found[same], together[same], atol=1e-5, rtol=1e-5)
    if not variant.startswith("hist2st"):  # whose graph leaves the spot itself out
        assert (found - together).abs().amax(1)[[13, 22]].min() > 1e-4


@pytest.mark.parametrize("variant", OF_SLIDES)
def test_visitors_see_their_slide(variant, shape, make_batch):
    batch = make_batch()
    model = model_of(variant, shape, batch)
    changed = replace(batch, slides=replace(batch.slides, features=batch.slides.features.clone()))
    changed.slides.features[:9] *= -1  # the context of the first slide
    with torch.no_grad():
        before, after = (model(visiting(b, EVERY)).prediction for b in (batch, changed))
    assert (after - before).abs().amax(1)[:14].min() > 1e-5
    torch.testing.assert_close(after[14:], before[14:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", OF_SLIDES)
def test_a_memo_changes_nothing(variant, shape, make_batch):
    batch = make_batch()
    model = model_of(variant, shape, batch)
    cuts = ([0, 3, 16], [4, 20, 11], [12, 13, 23], [1, 2])
    shared = replace(visiting(batch, EVERY).slides, memo={})
    with torch.no_grad():
        for rows in cuts:
            cut = visiting(batch, rows)
            expected = model(cut).prediction
            assert torch.equal(model(replace(cut, slides=shared)).prediction, expected)
    # what is kept is used: the context is not computed again
    shared.features.zero_()
    with torch.no_grad():
        assert torch.equal(model(replace(cut, slides=shared)).prediction, expected)
    assert replace(cut, slides=shared).to("cpu").slides.memo is shared.memo
    model.train()
    kept = len(shared.memo)
    model(replace(cut, slides=shared))
    assert len(shared.memo) == kept
    fresh = replace(shared, memo={})
    model(replace(cut, slides=fresh))
    assert not fresh.memo  # in training the weights change


@pytest.mark.parametrize("variant", OF_SLIDES)
def test_visitors_are_learnt_from(variant, shape, make_batch):
    batch = make_batch()
    model = model_of(variant, shape, batch, targets="standardize").train()
    cut = visiting(batch, [9, 10, 11, 12, 13, 20, 21, 22, 23])  # no context
    torch.manual_seed(0)
    loss = model.loss(cut, model(cut), torch.Generator().manual_seed(0))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for n, p in model.named_parameters() if "blocks" in n)


def test_without_attention_a_visitor_is_a_spot_of_the_graph(shape, make_batch):
    """Nothing leads from visitors to the context in the graph, so that they can join it."""
    batch = make_batch()
    for self_loop in (False, True):
        model = model_of("hist2st", shape, batch, depth=0, self_loop=self_loop)
        cut = visiting(batch, list(range(9)) + list(range(14, 20)) + [9, 12, 21])
        nearest = torch.cat([cut.slides.nearest, cut.visitors.nearest])
        features = torch.cat([cut.slides.features, cut.visitors.features])
        grid = torch.cat([cut.slides.grid, cut.visitors.grid])
        whole = replace(cut, slides=Slides(features, grid, (len(grid),), nearest), visitors=None)
        with torch.no_grad():
            torch.testing.assert_close(model(cut).prediction, model(whole).prediction)
        for copies in (1, 3):
            x = [model.scalers.pooled(features)] * copies
            with torch.no_grad():
                found = model._encode(x, cut)
                torch.testing.assert_close(found, model._encode(x, whole))
                assert torch.equal(found[0], found[-1])


@pytest.mark.parametrize("variant", OF_SLIDES)
def test_visitors_in_mixed_precision(variant, shape, make_batch):
    batch = make_batch()
    model = model_of(variant, shape, batch)
    cut = visiting(batch, EVERY)
    with torch.no_grad():
        expected = model(cut).prediction
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(cut).prediction
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_a_batch_moves_with_all_its_parts(make_batch):
    moved = visiting(make_batch(), EVERY).to("meta")
    parts = [moved, moved.slides, moved.visitors]
    found = [value for part in parts for value in vars(part).values() if isinstance(value, torch.Tensor)]
    assert len(found) == 19 and all(value.device.type == "meta" for value in found)
