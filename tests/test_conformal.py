import math
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gdml.conformal import (
    TARGETS,
    Calibration,
    ErrorSpread,
    calibrate,
    calibrate_within_slide,
    fit_error_spread,
    interval_width,
)

PATIENT, SLIDE, PART = TARGETS
seeds = st.integers(0, 2**32 - 1)
DRAWS = 4000


def _patients(rng, n_patients, n_slides=2, n_spots=6, genes=1, *, effect=2.0, noise=0.0):
    """Errors of spots, with a level and a size of the noise of each patient, and a level of each slide; both of each spot."""
    slide = np.repeat(np.arange(n_patients * n_slides), n_spots)
    patient = slide // n_slides
    size = np.exp(noise * rng.normal(size=(n_patients, genes)))[patient]
    level = effect * rng.normal(size=(n_patients, genes))[patient] + rng.normal(size=(slide[-1] + 1, genes))[slide]
    return size * (level + rng.normal(size=(len(slide), genes))), slide, patient


def _within(found, expected, *, slack=0.0):
    """Whether the mean over independent draws is within four standard errors of what is expected, or above by ``slack``."""
    return expected - _error(found) <= np.mean(found) <= expected + slack + _error(found)


def _error(found):
    return 4 * np.std(found) / math.sqrt(len(found))


@settings(deadline=None)
@given(seed=seeds, n=st.integers(2, 60), level=st.floats(0.01, 0.99))
def test_spots_of_one_slide_have_the_exact_split_conformal_quantile(seed, n, level):
    errors = np.random.default_rng(seed).normal(size=(n, 3))
    found = calibrate(errors, np.zeros(n), held_out=PART)
    rank = math.ceil((n + 1) * level - 1e-6)
    if rank > n:
        with pytest.raises(ValueError, match=rf"{n} / {n + 1}"):
            interval_width(found, level)
        return
    for gene, width in enumerate(interval_width(found, level)):
        exact = sorted(abs(e) for e in errors[:, gene])[rank - 1]
        assert exact <= width <= exact * (1 + 1e-6)  # kept as float32, rounded up


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_patients_weigh_the_same_and_so_do_their_slides(seed):
    rng = np.random.default_rng(seed)
    patient_of_slide = [0, 0, 0, 1, 2, 2]
    slide = np.repeat(np.arange(6), rng.integers(1, 30, 6))
    patient = np.array(patient_of_slide)[slide]
    errors = rng.normal(size=(len(slide), 2))
    found = calibrate(errors, slide, group=patient, held_out=PATIENT)
    for gene in range(2):
        points = []
        for error, s in zip(errors[:, gene], slide, strict=True):
            n_slides = patient_of_slide.count(patient_of_slide[s])
            points.append(
                (abs(error), 1 / (4 * n_slides * np.sum(slide == s)))
            )  # 4: three patients, and the one to come
        points.sort()
        for level in (0.1, 0.3, 0.5, 0.7):
            width = interval_width(found, level)[gene]
            below = list(accumulate(w for _, w in points))
            exact = next(i for i, total in enumerate(below) if total >= level - 1e-9)
            # quantiles are kept at as many levels as there are spots, and rounded up
            later = next((i for i, total in enumerate(below) if total >= level + 0.75 / len(slide)), len(points) - 1)
            assert points[exact][0] * (1 - 1e-6) <= width <= points[later][0] * (1 + 1e-6)


@pytest.mark.parametrize(("n_patients", "level"), [(4, 0.8), (9, 0.9)])
def test_a_new_patient_is_covered_and_ignoring_patients_fails(n_patients, level):
    # genes with levels of their own are independent draws
    errors, slide, patient = _patients(np.random.default_rng(0), n_patients + 1, 1, 30, DRAWS, noise=1.0)
    known, new = patient < n_patients, np.abs(errors[patient == n_patients])
    found = calibrate(errors[known], slide[known], group=patient[known], held_out=PATIENT)
    # a patient is one of K + 1: coverage is above the level by less than the weights of two
    assert _within((new <= interval_width(found, level)).mean(0), level, slack=2 / (n_patients + 1))
    pooled = (new <= interval_width(found, level, target=PART)).mean(0)
    assert np.mean(pooled) < level - _error(pooled)


@pytest.mark.parametrize("n_slides", [1, 3])
def test_a_new_slide_of_known_patients_is_covered(n_slides):
    errors, slide, patient = _patients(np.random.default_rng(1), 4, n_slides + 1, 4, DRAWS)
    known = slide % (n_slides + 1) < n_slides
    found = calibrate(errors[known], slide[known], group=patient[known], held_out=SLIDE)
    assert found.units[SLIDE] == (4 * n_slides, 4)
    # the share is raised by the weight of one slide, which moves the quantile by that of another at most
    covered = (np.abs(errors[~known]) <= interval_width(found, 0.75)).mean(0)
    assert _within(covered, 0.75, slack=2 / (4 * n_slides))


def test_blocks_are_covered_where_pooled_spots_are_not():
    # six blocks of one slide, alike within
    errors, block, _ = _patients(np.random.default_rng(2), 6, 1, 20, DRAWS, noise=1.0)
    known, slide, level, covered = block < 5, np.zeros(100), 0.8, {}
    for name, units in (("blocks", block[known]), ("spots", None)):
        found = calibrate(errors[known], slide, block=units, held_out=PART)
        covered[name] = (np.abs(errors[~known]) <= interval_width(found, level)).mean(0)
    assert _within(covered["blocks"], level, slack=2 / 6)
    assert np.mean(covered["spots"]) < level - _error(covered["spots"])


def test_blocks_of_two_slides_are_not_one():
    errors, slide = np.arange(12.0)[:, None], np.repeat([0, 1], 6)
    block = np.tile(np.repeat([0, 1, 2], 2), 2)
    assert calibrate(errors, slide, block=block, held_out=PART).units[PART] == (6, 2)


@pytest.mark.parametrize("n_spots", [8, 30])
def test_measured_spots_of_a_slide_correct_its_level_and_cover_the_others(n_spots):
    errors = np.random.default_rng(3).normal(size=(n_spots + 20, DRAWS)) + 3.0
    known, new = errors[:n_spots], errors[n_spots:]
    found, shift = calibrate_within_slide(known)
    assert _within((np.abs(new - shift) <= interval_width(found, 0.8)).mean(0), 0.8, slack=1 / n_spots)
    plain, nothing = calibrate_within_slide(known, correct_level=False)
    assert not nothing.any()
    assert _within((np.abs(new) <= interval_width(plain, 0.8)).mean(0), 0.8, slack=1 / n_spots)
    assert np.mean(interval_width(found, 0.8)) < 0.6 * np.mean(interval_width(plain, 0.8))


@settings(deadline=None)
@given(seed=seeds)
def test_the_level_of_a_slide_is_that_of_the_other_blocks(seed):
    rng = np.random.default_rng(seed)
    block, errors = rng.permutation([0, 0, 1, 1, 1, 2]), rng.normal(size=(6, 2))
    spread = rng.uniform(0.5, 2, size=(6, 2))
    found, shift = calibrate_within_slide(errors, block=block, spread=spread)
    left = np.array([errors[i] - errors[block != block[i]].mean(0) for i in range(6)])
    expected = calibrate(left, np.zeros(6), block=block, spread=spread, held_out=PART)
    np.testing.assert_allclose(shift, errors.mean(0))
    np.testing.assert_allclose(found.quantiles[PART], expected.quantiles[PART], rtol=1e-6)
    assert found.units == expected.units == {PART: (3, 1)}


def test_two_measured_parts_of_a_slide_are_enough():
    errors = np.random.default_rng(0).normal(size=(2, 3))
    assert calibrate_within_slide(errors)[0].units == {PART: (2, 1)}
    with pytest.raises(ValueError, match="two are needed at least"):
        calibrate_within_slide(errors[:1])


def test_no_level_above_that_of_the_patients():
    rng = np.random.default_rng(0)
    errors, slide, patient = _patients(rng, 4, genes=3)
    found = calibrate(errors, slide, group=patient, held_out=PATIENT)
    assert found.held_out == PATIENT and found.n_genes == 3
    assert [found.highest_level(t) for t in TARGETS] == [4 / 5, 7 / 8, 47 / 48]
    np.testing.assert_allclose(interval_width(found, 0.8), np.abs(errors).max(0), rtol=1e-6)
    with pytest.raises(ValueError, match=r"0.81, but 4 patients .* above 0.8 \(4 / 5\).*target='unseen slide'"):
        interval_width(found, 0.81)
    with pytest.raises(ValueError, match="target='unseen slide'"):
        interval_width(found, 7 / 8)  # the highest of slides
    with pytest.raises(ValueError, match=r"4 patients.*target='unseen part of a known slide'"):
        interval_width(found, 0.9)
    assert np.isfinite(interval_width(found, 0.9, target=PART)).all()  # as the message says
    with pytest.raises(ValueError, match=r"8 slides of 4 patients .* above 0.875 \(7 / 8\)"):
        interval_width(found, 0.9, target=SLIDE)
    with pytest.raises(ValueError, match=r"48 parts of 8 slides .* above 0.979 \(47 / 48\).*on more parts"):
        interval_width(found, 0.98, target=PART)
    assert (interval_width(found, 0.979, target=PART) > 0).all()  # the level named is allowed


@pytest.mark.parametrize("n", [9, 19, 99])
def test_levels_that_fall_on_a_quantile_are_not_rounded_up(n):
    found = calibrate(np.arange(1.0, n + 1)[:, None], np.zeros(n), held_out=PART)
    assert [interval_width(found, rank / (n + 1)).item() for rank in range(1, n + 1)] == list(range(1, n + 1))


@pytest.mark.parametrize("k", [4, 9, 19])
def test_the_highest_level_is_allowed_in_spite_of_rounding(k):
    found = calibrate(np.arange(k, dtype=float)[:, None], np.arange(k), group=np.arange(k), held_out=PATIENT)
    assert interval_width(found, 1 - 1 / (k + 1)) == k - 1


def test_easier_targets_do_not_speak_for_harder_ones():
    errors, slide, patient = _patients(np.random.default_rng(0), 9)
    of_slides = calibrate(errors, slide, group=patient, held_out=SLIDE)
    assert set(of_slides.units) == {SLIDE, PART}
    with pytest.raises(ValueError, match="errors are of an unseen slide: they say nothing about an unseen patient"):
        interval_width(of_slides, 0.5, target=PATIENT)
    with pytest.raises(ValueError, match="'unseen patients'. Did you mean 'unseen patient'"):
        interval_width(of_slides, 0.5, target="unseen patients")
    one = calibrate(errors, slide, held_out=SLIDE)  # no patients: slides of one population
    assert one.units[SLIDE] == (18, 1) and one.highest_level() == 18 / 19


@settings(deadline=None)
@given(seed=seeds, levels=st.lists(st.floats(0.01, 0.79), min_size=2, max_size=6))
def test_widths_grow_with_the_level(seed, levels):
    rng = np.random.default_rng(seed)
    errors, slide, patient = _patients(rng, 4, genes=3)
    found = calibrate(errors, slide, group=patient, held_out=PATIENT, spread=rng.uniform(0.1, 2, errors.shape))
    for target in TARGETS:
        widths = [interval_width(found, level, target=target) for level in sorted(levels)]
        assert (np.diff(widths, axis=0) >= 0).all()


def test_many_spots_are_kept_as_few_quantiles_that_are_never_too_low():
    errors = np.random.default_rng(0).normal(size=(5000, 2))
    found = calibrate(errors, np.zeros(5000), held_out=PART)
    assert sum(a.nbytes for a in found.to_arrays().values()) < 2 * 2048 + 100
    for level in (0.5, 0.8, 0.901, 0.99):
        covered = (np.abs(errors) <= interval_width(found, level)).mean(0)
        assert ((level <= covered) & (covered <= level + 1 / 500 + 1e-3)).all()


@settings(deadline=None)
@given(seed=seeds)
def test_a_spread_scales_errors_and_widths(seed):
    rng = np.random.default_rng(seed)
    errors, slide, patient = _patients(rng, 3, genes=2)
    spread = rng.uniform(0.1, 2, errors.shape)
    scaled = calibrate(errors * spread, slide, group=patient, held_out=PATIENT, spread=spread)
    plain = calibrate(errors, slide, group=patient, held_out=PATIENT)
    for target in TARGETS:
        np.testing.assert_allclose(scaled.quantiles[target], plain.quantiles[target], rtol=1e-5)


def test_genes_without_errors_have_no_width():
    errors, slide, patient = _patients(np.random.default_rng(0), 4, genes=2)
    errors[:, 1] = 0
    spread = fit_error_spread(np.ones_like(errors), errors)(np.ones_like(errors))
    assert (spread > 0).all()
    found = calibrate(errors, slide, group=patient, held_out=PATIENT, spread=spread)
    width = interval_width(found, 0.8)
    assert width[0] > 0 and width[1] == 0


def test_calibrations_go_through_arrays():
    errors, slide, patient = _patients(np.random.default_rng(0), 4, genes=3)
    found = calibrate(errors, slide, group=patient, held_out=PATIENT)
    arrays = found.to_arrays()
    assert all(isinstance(a, np.ndarray) and a.dtype.kind in "fi" for a in arrays.values())
    back = Calibration.from_arrays(arrays)
    assert back.units == found.units and back.held_out == PATIENT
    for target in TARGETS:
        np.testing.assert_array_equal(
            interval_width(back, 0.7, target=target), interval_width(found, 0.7, target=target)
        )
    only = Calibration.from_arrays(calibrate(errors, slide, held_out=PART).to_arrays())
    assert only.held_out == PART

    name = "unseen_patient_quantiles"
    for bad, message in (
        ({}, "no calibration"),
        ({k: v for k, v in arrays.items() if k != name}, "needs the other"),
        (arrays | {name: -arrays[name]}, "never below 0"),
        (arrays | {name: arrays[name][::-1]}, "never decrease"),
        (arrays | {name: np.full_like(arrays[name], np.nan)}, "finite"),
        (arrays | {name: arrays[name][:, :2]}, "different genes"),
        (arrays | {name: arrays[name][:, 0]}, "quantiles x genes"),
        (arrays | {"unseen_patient_units": np.array([0, 1])}, "two counts"),
    ):
        with pytest.raises(ValueError, match=message):
            Calibration.from_arrays(bad)


def test_bad_input_is_refused():
    errors, slide, patient = _patients(np.random.default_rng(0), 3, genes=2)
    found = calibrate(errors, slide, held_out=PART)
    for level in (0, 1, -0.1, 1.5, 90):
        with pytest.raises(ValueError, match="`level` must be between 0 and 1"):
            interval_width(found, level)
    with pytest.raises(ValueError, match="`level` must be finite"):
        interval_width(found, np.nan)
    for level in ("0.9", True, None):
        with pytest.raises(TypeError, match="`level` must be a number"):
            interval_width(found, level)
    broken = errors.copy()
    broken[3:5, 1] = np.nan
    good = {"slide": slide, "held_out": PART}
    for bad, message in (
        ({"residuals": broken}, "NaN or infinite values in 1 gene at 2 spots"),
        ({"residuals": errors[:, 0]}, "spots x genes"),
        ({"residuals": errors[:0], "slide": slide[:0]}, "spots x genes"),
        ({"slide": slide[1:]}, "`slide` has shape"),
        ({"group": patient[:, None]}, "`group` has shape"),
        ({"block": slide[1:]}, "`block` has shape"),
        ({"group": np.arange(len(slide))}, "two values on one slide"),
        ({"held_out": PATIENT}, "`group` is needed"),
        ({"held_out": "patient"}, "`held_out` is 'patient'. Did you mean"),
        ({"spread": np.ones(3)}, "`spread` has shape"),
        ({"spread": np.zeros_like(errors)}, "`spread` must be positive"),
        ({"spread": np.full_like(errors, np.nan)}, "`spread` must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            calibrate(**{"residuals": errors, **good, **bad})
    with pytest.raises(ValueError, match="of 1 spot: two"):
        calibrate_within_slide(errors[:1])
    with pytest.raises(ValueError, match="of 1 block: two"):
        calibrate_within_slide(errors, block=np.zeros(len(errors)))


@settings(deadline=None)
@given(seed=seeds, n=st.integers(1, 300))
def test_the_spread_agrees_with_loops(seed, n):
    rng = np.random.default_rng(seed)
    predicted, errors = rng.normal(size=(n, 2)), rng.normal(size=(n, 2))
    found = fit_error_spread(predicted, errors)
    for gene in range(2):
        rows = sorted(range(n), key=lambda i: predicted[i, gene])
        size = [abs(errors[i, gene]) for i in rows]
        mean = sum(size) / n
        parts = np.array_split(np.arange(n), min(10, max(1, n // 20)))
        for part, knot, value in zip(parts, found.knots[:, gene], found.values[:, gene], strict=True):
            shrunk = (sum(size[i] for i in part) + 10 * mean) / (len(part) + 10)
            assert value == pytest.approx(min(max(shrunk, mean / 5), 5 * mean), rel=1e-5)
            assert knot == pytest.approx(sum(predicted[rows[i], gene] for i in part) / len(part), rel=1e-4, abs=1e-6)


def test_the_spread_is_bounded_and_positive():
    predicted = np.linspace(0, 1, 400)[:, None]
    errors = np.where(predicted < 0.9, 0.0, 10.0)
    spread = fit_error_spread(predicted, errors)
    at = spread([[-50.0], [0.3], [0.99], [50.0]])[:, 0]
    assert at[0] == at[1] == pytest.approx(np.mean(errors) / 5)
    assert at[2:] == pytest.approx([5 * np.mean(errors)] * 2)


def test_spots_with_one_prediction_have_one_spread():
    rng = np.random.default_rng(0)
    predicted = np.r_[np.zeros(300), rng.uniform(1, 2, 100)][:, None]  # predictions of log counts are cut at 0
    errors = np.r_[np.full(150, 0.1), np.full(150, 0.5), np.full(100, 1.0)][:, None]
    at_zero = fit_error_spread(predicted, errors)([[0.0]])[0, 0]
    other_order = np.r_[np.arange(150, 300), np.arange(150), np.arange(300, 400)]
    assert at_zero == pytest.approx(fit_error_spread(predicted, errors[other_order])([[0.0]])[0, 0])
    assert 0.3 < at_zero < 0.4  # the mean of both, shrunk a little towards that of all (0.475)


def test_a_spread_makes_intervals_narrower_at_the_same_coverage():
    rng, level, known, new = np.random.default_rng(4), 0.9, slice(0, 500), slice(500, 600)
    predicted = rng.uniform(0, 3, size=(600, 300))
    errors = (0.1 + predicted / 2) * rng.normal(size=predicted.shape)
    fitted, width = fit_error_spread(predicted[known], errors[known]), {}
    # the spread is fitted on the calibration spots themselves: half a percent is allowed for that
    for name, spread, short in (("with", fitted, 0.005), ("without", np.ones_like, 0)):
        found = calibrate(errors[known], np.zeros(500), held_out=PART, spread=spread(predicted[known]))
        half = interval_width(found, level) * spread(predicted[new])
        assert _within((np.abs(errors[new]) <= half).mean(0) + short, level, slack=0.01)
        width[name] = half.mean()
    assert width["with"] < 0.92 * width["without"]


def test_spreads_go_through_arrays_and_refuse_bad_ones():
    rng = np.random.default_rng(0)
    found = fit_error_spread(rng.normal(size=(100, 2)), rng.normal(size=(100, 2)))
    back, at = ErrorSpread.from_arrays(found.to_arrays()), rng.normal(size=(7, 2))
    np.testing.assert_array_equal(back(at), found(at))
    for bad, message in (
        ({"knots": found.knots}, "'knots' and 'values'"),
        ({"knots": found.knots, "values": found.values[:-1]}, "bins x genes"),
        ({"knots": found.knots, "values": -found.values}, "positive"),
        ({"knots": -found.knots, "values": found.values}, "never decrease"),
    ):
        with pytest.raises(ValueError, match=message):
            ErrorSpread.from_arrays(bad)
    for bad, message in ((at[:, :1], "spots x 2 genes"), (np.full((1, 2), np.nan), "NaN")):
        with pytest.raises(ValueError, match=message):
            found(bad)
    for p, r, message in (
        (at, at[:3], "same"),
        (at[:0], at[:0], "at least one"),
        (at, np.full_like(at, np.nan), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_error_spread(p, r)
