"""The frame: units of a slide, targets that come back, and no look at the expression that is predicted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdml.models.base import Shape, get_model, make_config, squared_error
from gdml.models.scaling import Moments
from gdml.training.config import make_training_config
from gdml.training.fabric import make_fabric
from gdml.training.frame import (
    FRAMES,
    LEAST_SCALE,
    LEAST_SPREAD,
    PRIOR_SPOTS,
    Frame,
    FrameConfig,
    depth_weights,
    make_frame_config,
    make_module,
    signal_axes,
)
from gdml.training.loop import predict, train

quick = settings(max_examples=40, deadline=None)
SHAPE = Shape(dim=5, n_tokens=3, n_side=3, n_genes=4)
CPU = make_fabric("cpu", precision="fp32")
SMALL = {
    "width": 16,
    "neighbor_depth": 1,
    "neighbor_heads": 2,
    "global_depth": 1,
    "global_heads": 2,
    "fusion_heads": 2,
}
MODELS = {"ridge": {}, "kernel": {"n_landmarks": 32}, "triplex": SMALL}


def moments(rows):
    found = Moments(rows.shape[1])
    found.add(rows)
    return found


def fitted(frame, data, name, rows=None, **config):
    """Train a model in a frame on some rows."""
    model = get_model(name)
    made = make_config(model, None, MODELS[name] | config)
    loop = make_training_config(model.recipe, {"max_epochs": 1})
    rows = torch.arange(len(data)) if rows is None else rows
    return train(lambda: make_module(model, made, data.shape(), frame), data, rows, loop, CPU, seed=0)[0]


@pytest.fixture
def data(make_data):
    """Three slides with counts; expression, level and spread differ between them."""
    made = make_data((30, 20, 25), n_genes=6)
    level = torch.tensor([0.0, 3.0, -2.0])[made.slide][:, None]
    depth = torch.rand(75, generator=torch.Generator().manual_seed(1)) * 1000 + 1
    return replace(made, expression=made.expression * (1 + made.slide[:, None]) + level, depth=depth)


@quick
@given(n=st.integers(1, 400), shift=st.floats(-50, 50), times=st.floats(1, 20), seed=st.integers(0, 99))
def test_units_take_out_shift_and_scale_up_to_the_prior(n, shift, times, seed):
    g = torch.Generator().manual_seed(seed)
    frame = Frame(FrameConfig(), SHAPE)
    frame.fit_features("pooled", [moments(torch.randn(200, 5, generator=g)) for _ in range(3)])
    rows = torch.randn(n, 5, generator=g)
    own, stained = moments(rows), moments(rows * times + shift)
    one, other = frame.feature_units("pooled", own, n), frame.feature_units("pooled", stained, n)
    share = n / (n + PRIOR_SPOTS)
    prior = frame.pooled_mean, frame.pooled_scale
    for slide, units in ((own, one), (stained, other)):
        mean = share * slide.mean + (1 - share) * prior[0].double()
        variance = share * slide.std.square() + (1 - share) * prior[1].double().square()
        scale = torch.maximum(variance.sqrt(), LEAST_SCALE * prior[1].double())
        torch.testing.assert_close(units.mean, mean.float(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(units.scale, scale.float(), atol=1e-4, rtol=1e-4)
    apart = (other(rows * times + shift) - one(rows)).abs().max()
    # what is left of the shift is the share of the prior, in units that are at least sqrt(share) times the slide's own
    left = (1 - share) * (abs(shift) + 60 * times) / (share * float(own.std.min()) * times + 0.5)
    assert apart <= left + 1e-3


def test_units_of_many_spots_do_not_know_the_stain():
    frame, rows = Frame(FrameConfig(), SHAPE), torch.randn(100_000, 5)
    frame.fit_features("pooled", [moments(rows)])
    other = rows * torch.tensor([2.0, 0.8, 5.0, 1.0, 3.0]) + torch.tensor([5.0, -3.0, 0.0, 20.0, 1.0])
    found = [frame.feature_units("pooled", moments(part), len(part))(part) for part in (rows, other)]
    assert (found[0] - found[1]).abs().max() < 5e-3


@pytest.mark.parametrize("slide", [torch.full((1, 5), 7.0), torch.full((40, 5), 7.0), torch.zeros(0, 5)])
def test_a_slide_of_one_kind_of_spots_is_not_blown_up(slide):
    frame = Frame(FrameConfig(), SHAPE)
    frame.fit_features("pooled", [moments(torch.randn(200, 5)), moments(torch.randn(50, 5))])
    units = frame.feature_units("pooled", moments(slide), len(slide))
    assert (units.scale >= LEAST_SCALE * frame.pooled_scale * 0.999).all()
    near = units(slide + 0.1) - units(slide)
    assert near.isfinite().all() and (near.abs() < 0.3).all() and units(slide).isfinite().all()


def test_a_column_that_never_varies_is_centred_alone():
    frame = Frame(FrameConfig(), SHAPE)
    frame.fit_features("pooled", [moments(torch.full((20, 5), 3.0))])
    assert torch.equal(frame.feature_units("pooled", moments(torch.full((9, 5), 3.0)), 9).scale, torch.ones(5))


def test_targets_are_those_of_a_loop_and_come_back():
    g = torch.Generator().manual_seed(0)
    slides = [torch.randn(n, 4, generator=g) * s + s for n, s in ((40, 1.0), (25, 3.0), (1, 2.0))]
    frame = Frame(FrameConfig(components="all"), SHAPE)
    units = frame.fit_targets(slides, torch.ones(66))
    spread = np.sqrt(np.mean([part.numpy().var(0) for part in slides], 0))
    for part, found in zip(slides, units, strict=True):
        own = len(part) / (len(part) + PRIOR_SPOTS)
        scale = np.sqrt(own * part.numpy().var(0) + (1 - own) * spread**2) + LEAST_SPREAD
        np.testing.assert_allclose(found(part), (part - part.mean(0)) / scale, atol=1e-5)
    np.testing.assert_allclose(frame.level, np.mean([part.numpy().mean(0) for part in slides], 0), atol=1e-5)
    np.testing.assert_allclose(frame.spread, spread + LEAST_SPREAD, atol=1e-5)
    np.testing.assert_allclose(frame.level_sd, np.std([part.numpy().mean(0) for part in slides], 0, ddof=1), atol=1e-5)
    torch.testing.assert_close(frame.inverse(frame.targets(slides[0])), slides[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("n_slides", "known"), [(1, False), (2, True)])
def test_of_one_slide_the_spread_of_the_level_is_unknown(n_slides, known):
    frame = Frame(FrameConfig(), SHAPE)
    frame.fit_targets([torch.randn(20, 4) + i for i in range(n_slides)], torch.ones(20 * n_slides))
    assert (frame.level_sd.isfinite() == known).all()


@pytest.mark.parametrize(("n", "m"), [(400, 60), (60, 90)])
@pytest.mark.parametrize("rank", [1, 4])
def test_planted_components_are_found_in_noise(monkeypatch, n, m, rank):
    g = torch.Generator().manual_seed(0)
    rule = torch.linalg.qr(torch.randn(m, rank, generator=g))[0].T
    targets = 8 * torch.randn(n, rank, generator=g) @ rule + 0.5 * torch.randn(n, m, generator=g) + 3
    weights = torch.rand(n, generator=g) + 0.5
    monkeypatch.setattr("gdml.training.frame._PIECE", 33)  # sums over pieces
    center, axes = signal_axes(targets, weights, 64)
    assert len(axes) == rank
    torch.testing.assert_close(axes @ axes.T, torch.eye(rank, dtype=torch.float64), atol=1e-6, rtol=0)
    x, w = targets.double().numpy(), weights.double().numpy()
    np.testing.assert_allclose(center, w @ x / w.sum(), atol=1e-8)
    expected = np.linalg.svd((x - w @ x / w.sum()) * np.sqrt(w)[:, None])[2][:rank]
    np.testing.assert_allclose(axes.T @ axes, expected.T @ expected, atol=1e-6)
    assert len(signal_axes(targets, weights, rank)[1]) == rank
    assert len(signal_axes(targets, weights, 1)[1]) == 1


def optimal_threshold(beta):
    """Factor of the median singular value for unknown noise (Gavish, Donoho 2014), by integration."""
    low, high = (1 - beta**0.5) ** 2, (1 + beta**0.5) ** 2
    x = np.linspace(low, high, 2_000_001)[1:-1]
    density = np.sqrt((high - x) * (x - low)) / (2 * np.pi * beta * x)  # of Marchenko and Pastur
    median = x[np.searchsorted(density.cumsum() / density.sum(), 0.5)]
    of_known = 2 * (beta + 1) + 8 * beta / (beta + 1 + np.sqrt(beta**2 + 14 * beta + 1))
    return np.sqrt(of_known / median)


@pytest.mark.parametrize(("n", "m"), [(300, 30), (90, 30), (61, 61), (30, 120)])
def test_components_are_kept_above_the_optimal_threshold(n, m):
    g = torch.Generator().manual_seed(0)
    factor, k = optimal_threshold(min(n, m) / max(n, m)), min(n, m)
    values = torch.ones(k, dtype=torch.float64)
    values[:4] = factor * torch.tensor([1.5, 1.03, 0.97, 0.9])
    values[-1] = 0 if n <= m else 1
    left = torch.randn(n, k, generator=g, dtype=torch.float64)
    left = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=torch.float64), left], 1))[0][:, 1:]  # centred columns
    right = torch.linalg.qr(torch.randn(m, k, generator=g, dtype=torch.float64))[0]
    values, right = values[: left.shape[1]], right[:, : left.shape[1]]
    assert len(signal_axes((left * values) @ right.T, torch.ones(n), 64)[1]) == 2


def test_spots_without_weight_have_no_say():
    g = torch.Generator().manual_seed(0)
    targets, weights = torch.randn(200, 20, generator=g), torch.ones(200)
    targets[150:, 3] = 500
    weights[150:] = 0
    assert signal_axes(targets, weights, 64)[1][0, 3].abs() < 0.9
    assert signal_axes(targets, torch.ones(200), 64)[1][0, 3].abs() > 0.99


def test_a_frame_projects_on_its_components(data):
    fit = data.fit_frame(Frame(FrameConfig(), data.shape()))
    frame = fit.units.frame
    axes = frame.components().numpy()
    assert 0 < len(axes) < 6
    found = fit.batch(torch.arange(30)).expression
    units = fit.units.targets[data.slides[0]](data.expression[:30]).numpy()
    np.testing.assert_allclose(found, (units - frame.center.numpy()) @ axes.T @ axes + frame.center.numpy(), atol=1e-4)


def test_a_gene_without_variance_costs_no_component(data):
    constant = replace(data, expression=data.expression.index_fill(1, torch.tensor([2]), 1.5))
    frame = constant.fit_frame(Frame(FrameConfig(), data.shape())).units.frame
    others = replace(data, expression=data.expression[:, [0, 1, 3, 4, 5]])
    expected = others.fit_frame(Frame(FrameConfig(), others.shape())).units.frame.components()
    axes = frame.components()
    assert axes[:, 2].abs().max() < 1e-9 and len(axes) == len(expected) > 0
    kept = axes[:, [0, 1, 3, 4, 5]]
    torch.testing.assert_close(kept.T @ kept, expected.T @ expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("n_genes", "most"), [(4, 4), (200, 64)])
def test_a_frame_has_room_for_64_components(n_genes, most):
    frame = Frame(FrameConfig(), replace(SHAPE, n_genes=n_genes))
    assert frame.axes.shape == (most, n_genes) and len(frame.components()) == 0
    frame.axes[0, 1] = 1
    assert frame.components().tolist() == [[0.0, 1.0] + [0.0] * (n_genes - 2)]


def test_weights_are_those_of_the_depth(data):
    seen = torch.arange(0, 75, 2)
    fit = data.learning_from(seen).fit_frame(Frame(FrameConfig(), data.shape()))
    found = fit.batch(torch.arange(75)).weight
    for i in range(3):
        rows = data.rows_of(i)
        t = data.depth[rows] / data.depth[seen[data.slide[seen] == i]].median()
        torch.testing.assert_close(found[rows], 2 * t / (t + 1))
    assert float(depth_weights(torch.tensor([5.0]), 5.0)) == 1
    equal = data.fit_frame(Frame(FrameConfig(weights="equal"), data.shape()))
    assert equal.batch(torch.arange(75)).weight is None
    with pytest.raises(ValueError, match="frame={'weights': 'equal'}"):
        replace(data, depth=None).fit_frame(Frame(FrameConfig(), data.shape()))


NEEDS = ("tokens", "neighbors", "summary", "slides", "nearest")


def test_a_raw_frame_changes_nothing(data):
    module = make_module(get_model("ridge"), make_config(get_model("ridge")), data.shape(), FRAMES["raw"])
    assert module.frame is None
    plain, framed = data, data.fit_frame(Frame(FRAMES["raw"], data.shape()), NEEDS)
    for rows in (torch.arange(75), torch.tensor([70, 3, 40])):
        one, other = plain.batch(rows, NEEDS), framed.batch(rows, NEEDS)
        for name in ("tokens", "pooled", "neighbors", "summary", "expression"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert torch.equal(one.slides.features, other.slides.features) and other.weight is None
        assert torch.equal(one.nearest.tokens, other.nearest.tokens)


def test_every_part_of_a_batch_is_in_units_of_its_slide(data):
    frame = Frame(FrameConfig(), data.shape())
    fit, rows = data.fit_frame(frame, NEEDS), torch.tensor([70, 3, 40])
    one, other = data.batch(rows, NEEDS), fit.batch(rows, NEEDS)
    for i, slide in enumerate(data.slide[rows].tolist()):
        units = {
            part: frame.feature_units(part, data.slides[slide].moments(part), len(data.slides[slide]))
            for part in ("tokens", "pooled", "summary")
        }
        for part, using in units.items():
            torch.testing.assert_close(getattr(other, part)[i], using(getattr(one, part)[i]))
        inside = one.neighbor_mask[i]
        torch.testing.assert_close(other.neighbors[i, inside], units["pooled"](one.neighbors[i, inside]))
        assert not other.neighbors[i, ~inside].any()  # outside the image, zeros stay
        torch.testing.assert_close(other.slides.features[other.index[i]], other.pooled[i])


@pytest.mark.parametrize("name", MODELS)
def test_a_frame_never_reads_what_is_predicted(data, name):
    train_rows = torch.arange(50)[::2]  # of two slides; the others, and the third slide, are held out
    first = fitted(FRAMES["slide"], data, name, train_rows)
    expected = predict(first, data, CPU)[0]
    scrambled = replace(data, expression=data.expression.clone(), depth=data.depth.clone())
    held_out = torch.ones(75, dtype=torch.bool).index_fill_(0, train_rows, False)
    scrambled.expression[held_out] = 1e4 * torch.randn(int(held_out.sum()), 6)
    scrambled.depth[held_out] = 1e6
    again = fitted(FRAMES["slide"], scrambled, name, train_rows)
    for key, value in first.state_dict().items():
        assert torch.equal(again.state_dict()[key].nan_to_num(), value.nan_to_num()), key
    for blind in (scrambled, replace(data, expression=None, depth=None)):
        assert torch.equal(predict(again, blind, CPU)[0], expected)
    assert expected.isfinite().all()


@pytest.mark.parametrize(
    "frame", [{}, {"features": "raw"}, {"targets": "raw"}, {"components": "all"}, {"weights": "equal"}]
)
def test_every_switch_alone_can_be_learnt_in(data, frame):
    found = predict(fitted(make_frame_config(frame, "slide"), data, "ridge"), data, CPU)[0]
    assert found.isfinite().all()
    if frame.get("targets") != "raw":  # no level of a slide of its own, but the mean over the slides
        assert (found[:30].mean(0) - found[50:].mean(0)).abs().max() < 3


def test_names_fields_and_kinds_of_frames_are_checked():
    assert make_frame_config(None, "raw") == FRAMES["raw"] and make_frame_config("slide", "raw") == FRAMES["slide"]
    assert make_frame_config({"weights": "depth"}, "raw") == replace(FRAMES["raw"], weights="depth")
    for given_, error, match in (
        ("slides", ValueError, "`frame` is 'slides'. Did you mean 'slide'"),
        ({"feature": "raw"}, ValueError, "`frame` has no field 'feature'. Did you mean 'features'"),
        ({"features": "row"}, ValueError, "`features` is 'row'. Did you mean 'raw'"),
        (3, TypeError, r"`frame` must be a name \(slide, raw\) or a dict of fields, found 3"),
    ):
        with pytest.raises(error, match=match):
            make_frame_config(given_, "slide")


def test_a_weight_of_two_counts_twice():
    g = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 8, 5, generator=g)
    weight = torch.ones(8)
    assert squared_error(prediction, target, weight) == pytest.approx(float(squared_error(prediction, target)))
    weight[3] = 2
    each = np.square((prediction - target).numpy()).mean(1)
    assert float(squared_error(prediction, target, weight)) == pytest.approx((each.sum() + each[3]) / 8, rel=1e-5)


@pytest.mark.parametrize("name", ["stnet", "triplex", "ridge"])
def test_the_loss_of_a_model_weighs_the_spots(data, name):
    model = get_model(name)
    torch.manual_seed(0)
    module = model(make_config(model, None, MODELS.get(name, {})), data.shape())
    module.eval()
    batch = data.batch(torch.arange(12), (*module.needs, "slides"))
    loss = lambda weight: module.loss(replace(batch, weight=weight), module(batch), torch.Generator())[
        "loss_pred"
    ].item()
    each = [loss(torch.zeros(12).index_fill_(0, torch.tensor([i]), 12.0)) for i in range(12)]  # that of one spot
    weight = torch.rand(12) + 0.5
    assert loss(weight) == pytest.approx(float((torch.tensor(each) * weight).mean()), rel=1e-4)
    assert loss(None) == pytest.approx(np.mean(each), rel=1e-4) and np.ptp(each) > 0.1
