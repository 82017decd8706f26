"""What a model says of slides and spots that it has not seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdml.training.data import SpotData
from gdml.training.distance import Known, Sample
from gdml.training.familiarity import LEAST_SPOTS, MARGIN, MAX_SLIDES, Familiarity

DIM = 6
MIX = np.random.default_rng(99).normal(size=(DIM, DIM))


def features(n=120, *, seed=0, stain=0.0):
    """Spots of one tissue; slides of other seeds differ a little in their mean."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, DIM)) @ MIX + rng.normal(0, 0.1, DIM) @ MIX + stain


def spot_data(*slides, groups=None):
    pooled = torch.from_numpy(np.concatenate(slides)).half()
    lengths = torch.tensor([len(slide) for slide in slides])
    cells = torch.cat([torch.stack([torch.arange(n) // 10, torch.arange(n) % 10], 1) for n in lengths.tolist()])
    names = [f"S{i}" for i in range(len(slides))]
    return SpotData.in_memory(
        tokens=pooled[:, None],
        pooled=pooled,
        neighbors=pooled[:, None],
        neighbor_mask=torch.ones(len(pooled), 1, dtype=torch.bool),
        grid=cells,
        xy=cells.float(),
        slide=torch.repeat_interleave(torch.arange(len(slides)), lengths),
        names=names,
        groups=groups or names,
    )


@pytest.fixture(scope="module")
def known():
    return Familiarity.fit(spot_data(*(features(seed=seed) for seed in range(4))))


def judged(familiarity, *slides):
    return list(familiarity.score(spot_data(*slides)))


def test_slides_of_the_same_tissue_are_familiar(known):
    (new,) = judged(known, features(400, seed=10))
    assert not new.unlike and new.shift < 0.5 * new.limit
    # the score is a share of held-out spots: uniform on new spots of the same kind
    np.testing.assert_allclose(np.quantile(new.spots, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.12)
    assert new.unusual == pytest.approx(0.05, abs=0.05)


def test_training_slides_are_familiar(known):
    for slide in judged(known, *(features(seed=seed) for seed in range(4))):
        assert slide.shift == pytest.approx(0, abs=1e-3) and not slide.unlike and slide.unusual < 0.1


def test_another_stain_is_unlike_and_named(known):
    stain = np.zeros(DIM)
    stain[3] = -8 * features().std(0)[3]
    (new,) = judged(known, features(seed=10, stain=stain))
    assert new.unlike and new.shift > new.limit
    assert np.abs(new.deviation).argmax() == 3 and new.deviation[3] == pytest.approx(-8, abs=1)


def test_another_tissue_at_the_same_mean_is_unlike(known):
    """The frame takes mean and scale away: what is left is how features go together."""
    rng = np.random.default_rng(5)
    tissue = rng.normal(size=(150, DIM)) @ np.diag(4 * features().std(0)) + features(seed=1).mean(0)
    (new,) = judged(known, tissue)
    assert new.shift < new.limit and new.unusual > 0.5 and new.unlike


def test_spots_of_another_kind_stand_out_on_a_familiar_slide(known):
    slide = features(200, seed=10)
    slide[:10] += 12 * features().std(0) * np.array([1, -1, 1, -1, 1, -1])
    (new,) = judged(known, slide)
    assert (new.spots[:10] > 0.95).all() and (new.spots[10:] > 0.95).mean() < 0.1 and not new.unlike


def test_slides_that_vary_more_raise_the_limit():
    rng = np.random.default_rng(1)
    slides = [features(seed=seed, stain=3 * rng.normal(size=DIM) @ MIX) for seed in range(4)]
    varied = Familiarity.fit(spot_data(*slides))
    assert varied.limit == pytest.approx(MARGIN * float(varied.shifts.max())) and varied.limit > 1
    (new,) = judged(varied, features(seed=10, stain=2 * rng.normal(size=DIM) @ MIX))
    assert not new.unlike


def test_groups_are_held_out_together():
    """Two slides of each stain: held out alone, a slide would be known by its twin."""
    rng = np.random.default_rng(2)
    stains = [3 * rng.normal(size=DIM) @ MIX for _ in range(3)]
    slides = [features(seed=i, stain=stains[i // 2]) for i in range(6)]
    by_group = Familiarity.fit(spot_data(*slides, groups=["a", "a", "b", "b", "c", "c"]))
    by_slide = Familiarity.fit(spot_data(*slides))
    assert (by_group.held_out, by_slide.held_out) == ("group", "slide")
    assert by_group.shifts.min() > 2 * by_slide.shifts.max()


@pytest.mark.parametrize(
    ("groups", "held_out"), [("aaa", "slide"), ("aabb", "group"), ("ab", "slide"), ("aaaaaa", "slide")]
)
def test_what_is_held_out_follows_the_groups(groups, held_out):
    found = Familiarity.fit(spot_data(*(features(seed=i) for i in range(len(groups))), groups=list(groups)))
    assert (found.held_out, len(found.shifts)) == (held_out, len(groups))


def test_one_slide_is_judged_by_its_blocks():
    one = Familiarity.fit(spot_data(features(seed=0)))
    assert one.held_out == "block" and len(one.shifts) == 3 and one.limit >= 1
    (new,) = judged(one, features(seed=10))
    assert not new.unlike


def test_too_few_spots_are_not_described():
    assert Familiarity.fit(spot_data(features(LEAST_SPOTS - 1))) is None
    assert Familiarity.fit(spot_data(features(LEAST_SPOTS))) is not None


def test_few_spots_say_little_of_their_slide(known):
    stain = 4 * features().std(0)
    many, few = (judged(known, features(n, seed=10, stain=stain))[0] for n in (200, 2))
    assert few.shift < 0.3 * many.shift


def test_constant_features_do_no_harm():
    slides = [np.c_[features(seed=seed)[:, :-1], np.full(120, 2.0)] for seed in range(3)]
    constant = Familiarity.fit(spot_data(*slides))
    (new,) = judged(constant, np.c_[features(seed=10)[:, :-1], np.full(120, 2.0)])
    assert np.isfinite(new.spots).all() and not new.unlike


def test_means_of_many_slides_are_thinned():
    slides = [features(4, seed=seed) for seed in range(MAX_SLIDES + 20)]
    assert len(Familiarity.fit(spot_data(*slides)).known.means) == MAX_SLIDES


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(20, 90))
def test_the_order_of_spots_does_not_matter(seed, n):
    known = Familiarity.fit(spot_data(*(features(60, seed=s) for s in range(3))))
    slide, order = features(n, seed=seed + 7), np.random.default_rng(seed).permutation(n)
    (one,), (other,) = judged(known, slide), judged(known, slide[order])
    np.testing.assert_allclose(one.spots[order], other.spots, atol=0.002)
    assert one.shift == pytest.approx(other.shift, rel=1e-4)


def test_a_slide_is_judged_the_same_among_others(known):
    a, b = features(seed=10), features(seed=11, stain=5.0)
    (alone,), among = judged(known, a), judged(known, b, a)
    np.testing.assert_array_equal(alone.spots, among[1].spots)


def test_known_distances_are_of_mahalanobis():
    """Against the formula, with the covariance that is estimated; many spots, so that shrinkage is small."""
    rows = torch.from_numpy(features(5000)).float()
    sample = Sample.of(rows)
    known = Known.of([sample])
    new = torch.from_numpy(features(3, seed=3)).float()
    inverse = np.linalg.inv(np.cov(rows.T.numpy()))
    off = (new - rows.mean(0)).numpy()
    expected = np.sqrt(np.einsum("ij,jk,ik->i", off, inverse, off) / DIM)
    np.testing.assert_allclose(known.spots(new, sample.moments, 5000)[:, 1], expected, rtol=0.02)


def test_round_trip_and_damage(known):
    raw, about = known.save()
    again = Familiarity.load(raw, about, DIM)
    new = features(seed=10)
    np.testing.assert_array_equal(judged(known, new)[0].spots, judged(again, new)[0].spots)
    assert again.limit == known.limit and again.held_out == "slide"
    with pytest.raises(ValueError, match="checksum"):
        Familiarity.load(raw[:-1] + b"x", about, DIM)
    with pytest.raises(ValueError, match="7 columns"):
        Familiarity.load(raw, about, DIM + 1)


def test_what_is_kept_is_small(known):
    raw, _ = replace(known).save()
    assert len(raw) < 10_000
