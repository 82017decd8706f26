import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression

from gdml.models import GeneDML, GeneDMLConfig
from gdml.training import fitting
from gdml.training import loop as training_loop
from gdml.training.config import TrainingConfig
from gdml.training.fabric import make_fabric
from gdml.training.fitting import fit_model
from gdml.training.frame import FRAMES, Frame
from gdml.training.out_of_fold import predict_members
from gdml.training.shares import (
    LEAST_GAIN,
    LEAST_GAIN_WITHIN_GROUPS,
    Products,
    certain_gain,
    choose_shares,
    held_out_products,
    is_hopeless,
    least_gain,
)
from gdml.training.split import cut_across, make_splits

SMALL = {"width": 8, "branch_width": 8, "neighbor_depth": 1, "slide_depth": 1, "n_groups": 2}


def products(targets, *members):
    """Of parts (B, n): what the members predict for what is to be predicted."""
    y, p = np.stack(targets), np.stack(members, 1)
    return Products(
        torch.tensor(np.einsum("bin,bjn->bij", p, p) / y.shape[1]),
        torch.tensor(np.einsum("bin,bn->bi", p, y) / y.shape[1]),
    )


@pytest.fixture
def noise():
    return np.random.default_rng(0)


def test_gains_are_differences_of_squared_errors_at_the_best_scale_of_each(noise):
    y = noise.normal(size=(5, 40))
    floor, member = 3 * y + noise.normal(size=y.shape), y + noise.normal(size=y.shape)

    def error(blend):
        scale = LinearRegression(fit_intercept=False).fit(blend.reshape(-1, 1), y.ravel()).coef_[0]
        return ((scale * blend - y) ** 2).mean(1)

    shares = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.7]], dtype=torch.float64)
    expected = [error(floor) - error(s * floor + t * member) for s, t in shares.tolist()]
    np.testing.assert_allclose(products(y, floor, member).gains(shares), expected, atol=1e-12)


@given(st.floats(0.1, 10))
def test_a_gain_is_none_of_scale(factor):
    rng = np.random.default_rng(0)
    y = rng.normal(size=(6, 200))
    floor, member = y + rng.normal(size=y.shape), y + 0.9 * rng.normal(size=y.shape)
    # the same prediction at another scale is no better
    assert choose_shares(products(y, floor, factor * floor)).tolist() == [1, 0]
    # nor does the scale of what is predicted matter
    found = products(y, floor, member), products(factor * y, floor, member)
    assert choose_shares(found[0]).tolist() == choose_shares(found[1]).tolist() != [1, 0]


def test_opposites_and_constants_explain_nothing(noise):
    y = noise.normal(size=(4, 30))
    shares = torch.eye(3, dtype=torch.float64)
    assert products(y, -y, 0 * y, y).explained(shares).tolist()[:2] == [[0] * 4] * 2


def test_where_the_network_does_not_help_the_floor_is_all(noise):
    y = noise.normal(size=(6, 200))
    floor = y + 0.5 * noise.normal(size=y.shape)
    assert choose_shares(products(y, floor, floor + noise.normal(size=y.shape))).tolist() == [1, 0]


def test_a_member_that_is_worse_alone_takes_part_where_the_blend_gains(noise):
    y = noise.normal(size=(6, 400))
    floor, member = y + noise.normal(size=y.shape), y + 1.2 * noise.normal(size=y.shape)
    found = products(y, floor, member)
    assert found.gains(torch.tensor([[0.0, 1.0]], dtype=torch.float64)).mean() < 0
    assert 0.2 < choose_shares(found)[1] < 0.6


@pytest.mark.parametrize("least", [0.05, 0.2])
@pytest.mark.parametrize(("factor", "floor_alone"), [(0.5, True), (2.0, False)])
def test_the_floor_is_left_for_a_gain_that_matters(least, factor, floor_alone):
    # exact parts: the floor explains 1, the member a part more
    gain = least * factor
    members = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64).expand(6, 2, 2)
    targets = torch.tensor([1.0, (1 + gain) ** 0.5], dtype=torch.float64).expand(6, 2)
    found = Products(members, targets)
    assert found.gains(torch.tensor([[0.0, 1.0]], dtype=torch.float64)).tolist() == [pytest.approx([gain] * 6)]
    assert choose_shares(found, least).tolist() == ([1, 0] if floor_alone else [0, 1])
    assert is_hopeless(found, least) is floor_alone
    assert certain_gain(found) == pytest.approx(gain)


def test_of_a_floor_that_gains_nothing_no_share_is_told(noise):
    y = noise.normal(size=(6, 100))
    found = products(y, -y, y)
    assert np.isnan(certain_gain(found))
    assert choose_shares(found)[1] > 0.5


def test_shares_of_independent_errors_follow_their_precision(noise):
    y = noise.normal(size=(12, 3000))
    floor, member = y + 1.0 * noise.normal(size=y.shape), y + 0.5 * noise.normal(size=y.shape)
    # the least squares shares of errors with variances 1 and 1/4 are 1/5 and 4/5
    np.testing.assert_allclose(choose_shares(products(y, floor, member)), [0.2, 0.8], atol=1e-6)


def test_of_blends_that_are_as_good_the_most_even_is_taken():
    # the second and the third member predict the same, twice as close to the targets as the floor
    targets = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    found = Products(torch.ones(8, 3, 3, dtype=torch.float64), targets.expand(8, 3))
    assert choose_shares(found).tolist() == [0, 0.5, 0.5]
    assert choose_shares(found, without_last=True).tolist() == [0, 1, 0]


def test_what_parts_agree_on_outweighs_evenness(noise):
    y = noise.normal(size=(8, 50))
    floor, good, bad = (y + sd * noise.normal(size=y.shape) for sd in (1.5, 0.7, 3.0))
    certain = choose_shares(products(y, floor, good, bad))
    assert certain[1] > 0.6 and certain[2] <= 0.1
    # of two parts hardly anything is known
    unsure = choose_shares(products(y[:2], floor[:2], good[:2], y[:2] + 0.9 * noise.normal(size=(2, 50))))
    assert unsure[2] >= 0.2


def test_an_uncertain_gain_is_no_gain():
    members = torch.ones(4, 2, 2, dtype=torch.float64)
    gained = lambda *more: Products(members, torch.tensor([[1.0, 1.0 + m] for m in more], dtype=torch.float64))
    assert choose_shares(gained(0.5, 0.5, 0.5, -0.9)).tolist() == [1, 0]
    assert certain_gain(gained(0.5, 0.5, 0.5, -0.9)) == 0  # that of the floor itself
    assert choose_shares(gained(0.2, 0.1, 0.2, 0.1)).tolist() == [0, 1]  # the same mean


def test_of_one_part_nothing_is_certain(noise):
    y = noise.normal(size=(1, 50))
    found = products(y, y + noise.normal(size=y.shape), y)
    assert choose_shares(found).tolist() == [1, 0]
    assert certain_gain(found) == 0


def test_the_last_member_can_be_left_out(noise):
    y = noise.normal(size=(6, 100))
    found = products(y, y + noise.normal(size=y.shape), y + 0.5 * noise.normal(size=y.shape), y)
    assert choose_shares(found)[2] == 1
    without = choose_shares(found, without_last=True)
    assert without[2] == 0
    assert without[1] > 0


def test_hopeless_is_what_adds_nothing_to_the_others(noise):
    y = noise.normal(size=(6, 200))
    error = noise.normal(size=(3, *y.shape))
    floor = y + error[0]
    assert is_hopeless(products(y, floor, floor + 2 * error[1]))
    assert not is_hopeless(products(y, floor, y + 0.9 * error[1]))
    # what the second member does already, the third need not do
    second = y + 0.5 * error[1]
    assert is_hopeless(products(y, floor, second, second + 0.5 * error[2]))
    assert not is_hopeless(products(y, floor, second, y + 0.5 * error[2]))


@pytest.mark.parametrize(("errors", "hopeless"), [(1.5, False), (2.5, True)])
def test_a_member_has_the_benefit_of_two_standard_errors(errors, hopeless):
    # the last member explains as much as the floor on average, here more and there less
    more = 0.2 * torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)
    targets = torch.stack([torch.ones_like(more), 1 + more], 1)
    found = Products(torch.ones(8, 2, 2, dtype=torch.float64), targets)
    gain = found.gains(torch.tensor([[0.0, 1.0]], dtype=torch.float64))[0]
    assert gain.mean() == pytest.approx(0)
    assert is_hopeless(found, float(errors * gain.std() / 8**0.5)) is hopeless


def test_of_few_parts_nothing_is_hopeless(noise):
    y = noise.normal(size=(6, 200))
    floor = y + noise.normal(size=y.shape)
    worse = floor + 2 * noise.normal(size=y.shape)
    assert [is_hopeless(products(y[:n], floor[:n], worse[:n])) for n in (2, 4, 5, 6)] == [False, False, False, True]


@given(st.integers(1, 4), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_shares_sum_to_one_and_never_lose_on_the_parts_they_were_chosen_on(k, n_parts, seed):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n_parts, 20))
    found = products(y, *(y * rng.uniform() + rng.normal(size=y.shape) * rng.uniform(0, 2) for _ in range(k)))
    shares = choose_shares(found)
    assert torch.isclose(shares.sum(), torch.tensor(1.0))
    assert (shares >= 0).all()
    assert found.gains(shares[None].double()).mean() >= -1e-9


def test_members_are_compared_on_halves_of_each_held_out_slide(make_data):
    data = make_data((40, 36), dim=8)
    (split, *_) = make_splits(data, "block", 0.2, None, 0, several=True, smooth=False)
    module = GeneDML(GeneDMLConfig(**SMALL), data.shape()).eval()
    module.prepare(list(data.in_order(split.train, 16, module.needs)))
    fabric = make_fabric("cpu", precision="fp32")
    predicted = predict_members(module, data, split.validation, fabric)
    found = held_out_products(predicted, data, data.expression, split)
    assert found.members.shape == (4, 3, 3)
    rows = split.validation[data.slide[split.validation] == 1]
    half = cut_across(data.slides[1].xy[rows - 40], 2, axis=1)
    with torch.no_grad():
        members = module(data.batch(rows, module.needs)).parts["members"].double()[half == 0]
    mean = data.expression[split.train].double().mean(0)
    y, members = data.expression[rows[half == 0]].double() - mean, members - mean
    expected = torch.einsum("nim,nm->i", members, y) / len(y)
    torch.testing.assert_close(found.targets[2], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frame", ["slide", "raw"])
def test_fit_records_and_sets_the_shares(make_data, frame):
    data = make_data((60, 60), dim=8)
    data.depth = torch.ones(120)
    splits = make_splits(data, "block", 0.2, None, 0, several=True, smooth=False)
    loop = TrainingConfig(max_epochs=2, batch_size=32)
    fabric = make_fabric("cpu", precision="fp32")
    config = GeneDMLConfig(**SMALL)
    module, run, _ = fit_model(GeneDML, config, data, splits, loop, fabric, 0, frame=FRAMES[frame])
    assert run.shares == tuple(round(s, 6) for s in module.floor.shares.tolist())
    # two epochs teach the network nothing
    ridge, kernel, network = run.shares
    assert network == 0
    batch = data.in_frame(module.frame).batch(torch.arange(120), module.needs)
    with torch.no_grad():
        by_ridge, by_kernel = module.floor(batch.summary)
        torch.testing.assert_close(module(batch).prediction, ridge * by_ridge + kernel * by_kernel)


@pytest.mark.parametrize("within_groups", [True, False])
def test_fit_asks_of_a_blend_what_its_splits_ask(make_data, monkeypatch, within_groups):
    asked = []

    def spy(name, real):
        monkeypatch.setattr(fitting, name, lambda found, least, **k: asked.append(least) or real(found, least, **k))

    spy("choose_shares", choose_shares)
    spy("is_hopeless", is_hopeless)
    data = make_data((60, 60), dim=8)
    splits = make_splits(data, "block", 0.2, "patient" if within_groups else None, 0, several=True, smooth=False)
    loop = TrainingConfig(max_epochs=1, batch_size=32)
    fit_model(GeneDML, GeneDMLConfig(**SMALL), data, splits, loop, make_fabric("cpu", precision="fp32"), 0)
    assert len(asked) >= 2 and set(asked) == {LEAST_GAIN_WITHIN_GROUPS if within_groups else LEAST_GAIN}


def test_without_a_refit_the_model_of_the_first_split_is_kept(make_data):
    data = make_data((60, 60), dim=8)
    data.depth = torch.ones(120)
    splits = make_splits(data, "block", 0.2, None, 0, several=True, smooth=False)
    fabric = make_fabric("cpu", precision="fp32")
    loop = TrainingConfig(max_epochs=2, batch_size=32, refit=False)
    module, run, n_epochs = fit_model(
        GeneDML, GeneDMLConfig(**SMALL), data, splits, loop, fabric, 0, frame=FRAMES["slide"]
    )
    expected = Frame(FRAMES["slide"], data.shape())
    data.learning_from(splits[0].train).fit_frame(expected)
    torch.testing.assert_close(module.frame.level, expected.level)
    assert n_epochs == run.best_epoch
    assert run.shares == tuple(round(s, 6) for s in module.floor.shares.tolist())


def test_interrupted_before_shares_are_chosen_half_is_the_networks(make_data, monkeypatch):
    def epoch(self, real=training_loop.Trainer.epoch, count=[]):  # noqa: B006
        count.append(1)
        if len(count) > 1:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(training_loop.Trainer, "epoch", epoch)
    data = make_data((60, 60), dim=8)
    splits = make_splits(data, "block", 0.2, None, 0, several=True, smooth=False)
    loop = TrainingConfig(max_epochs=3, batch_size=32)
    module, run, _ = fit_model(
        GeneDML, GeneDMLConfig(**SMALL), data, splits, loop, make_fabric("cpu", precision="fp32"), 0
    )
    assert run.interrupted
    assert run.shares == ()
    assert module.floor.shares.tolist() == [0.25, 0.25, 0.5]


class TestSplits:
    def test_every_spot_is_held_out_once(self, make_data):
        data = make_data((50, 41))
        splits = make_splits(data, "auto", 0.2, None, 0, several=True, smooth=False)
        assert len(splits) == 5
        held = torch.cat([split.validation for split in splits])
        assert held.sort().values.tolist() == list(range(91))
        for split in splits:
            assert not set(split.train.tolist()) & set(split.validation.tolist())

    def test_a_margin_lies_between_both_sides(self, make_data):
        data = make_data((60,))
        for split in make_splits(data, "block", 0.2, None, 0, several=True, smooth=False):
            xy = torch.from_numpy(data.slides[0].xy)
            apart = torch.cdist(xy[split.train], xy[split.validation], p=float("inf"))
            assert apart.min() >= 2  # half a region of 3 tiles, and half a tile

    def test_named_groups_are_held_out_whole(self, make_data):
        data = make_data((20, 20, 20, 20), groups=["a", "a", "b", "c"])
        splits = make_splits(data, "auto", 0.2, "patient", 0, several=True, smooth=False)
        assert sorted(name for split in splits for name in split.held_out) == ["a", "b", "c"]
        of = np.array(data.groups)
        for split in splits:
            assert set(of[data.slide[split.validation]]) == set(split.held_out)
            assert not set(of[data.slide[split.train]]) & set(split.held_out)

    def test_slides_that_are_not_named_as_groups_are_cut(self, make_data):
        splits = make_splits(make_data((60, 60)), "auto", 0.2, None, 0, several=True, smooth=False)
        assert {split.by for split in splits} == {"block"}

    def test_more_groups_than_splits_share_them(self, make_data):
        data = make_data((10,) * 7)
        splits = make_splits(data, "group", 0.2, None, 0, several=True, smooth=False)
        assert len(splits) == 5
        assert sorted(len(split.held_out) for split in splits) == [1, 1, 1, 2, 2]

    @pytest.mark.parametrize(
        ("groups", "column", "validation", "least"),
        [
            ("aabc", "patient", "auto", LEAST_GAIN),  # patients are held out
            ("aabb", "patient", "auto", LEAST_GAIN_WITHIN_GROUPS),  # slides of both patients
            ("aa", "patient", "auto", LEAST_GAIN_WITHIN_GROUPS),  # parts of both slides
            ("aabc", "patient", "block", LEAST_GAIN_WITHIN_GROUPS),
            ("aabb", "patient", "group", LEAST_GAIN),
            ("abcd", None, "auto", LEAST_GAIN),  # nothing says that slides belong together
            ("ab", None, "auto", LEAST_GAIN),
        ],
    )
    def test_more_is_asked_of_a_blend_where_no_named_group_is_held_out(
        self, make_data, groups, column, validation, least
    ):
        data = make_data((60,) * len(groups), groups=list(groups))
        splits = make_splits(data, validation, 0.2, column, 0, several=True, smooth=False)
        assert len(splits) > 1 and {least_gain(split) for split in splits} == {least}

    @pytest.mark.parametrize(("column", "least"), [("patient", LEAST_GAIN_WITHIN_GROUPS), (None, LEAST_GAIN)])
    def test_the_same_for_a_slide_that_is_split_once(self, make_data, column, least):
        (split,) = make_splits(make_data((13,)), "block", 0.3, column, 0, several=True, smooth=False)
        assert least_gain(split) == least

    def test_one_group_cannot_be_held_out(self, make_data):
        with pytest.raises(ValueError, match=r'`validation="group"` needs two groups.*validation="block"'):
            make_splits(make_data((30,)), "group", 0.2, None, 0, several=True, smooth=False)

    def test_without_a_blend_there_is_one_split(self, make_data):
        assert len(make_splits(make_data(), "auto", 0.2, None, 0, several=False, smooth=False)) == 1
        assert make_splits(make_data(), None, 0.2, None, 0, several=True, smooth=False) == []

    def test_small_slides_are_split_once(self, make_data):
        (split,) = make_splits(make_data((13,)), "block", 0.3, None, 0, several=True, smooth=False)
        assert len(split.validation) == 4
        with pytest.raises(ValueError, match=r"Holding out 20% of 6 spots leaves.*`max_epochs`"):
            make_splits(make_data((6,), width=3), "block", 0.2, None, 0, several=True, smooth=False)
