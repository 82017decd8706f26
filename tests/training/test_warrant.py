import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t

from gdml.training.out_of_fold import OutOfFold
from gdml.training.warrant import CARRIED, NOT_SHOWN, PARTLY, Warrant, expected_pcc, judge


def reference(y, p, slide, unit):
    """Mean PCC over slides, and its jackknife interval, spot by spot."""

    def mean_pcc(keep):
        found = []
        for s in sorted(set(slide[keep])):
            here = keep & (slide == s)
            found.append([np.corrcoef(y[here, g], p[here, g])[0, 1] for g in range(y.shape[1])])
        return np.mean(found, 0)

    units = sorted(set(unit))
    whole = mean_pcc(np.ones(len(y), bool))
    without = np.array([mean_pcc(unit != u) for u in units])
    n = len(units)
    error = np.sqrt((n - 1) / n * np.square(without - without.mean(0)).sum(0))
    reach = t.ppf(0.95, n - 1) * error
    return whole, np.maximum(whole - reach, -1), np.minimum(whole + reach, 1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(2, 4), st.floats(0.1, 100), st.sampled_from([0, 1e6]))
def test_pcc_and_interval_are_those_of_a_loop(seed, n_slides, n_units, scale, level):
    rng = np.random.default_rng(seed)
    n = 12 * n_slides * n_units
    slide = np.arange(n) % n_slides
    unit = np.arange(n) // n_slides % n_units
    y = rng.normal(size=(n, 3)) * scale + 5 * slide[:, None] + level
    p = y + rng.normal(size=y.shape) * scale
    for got, expected in zip(expected_pcc(y, p, slide, unit), reference(y, p, slide, unit), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-7)


def test_the_interval_holds_where_units_are_independent():
    rng = np.random.default_rng(0)
    n, repeats = 200, 400
    inside = 0
    for _ in range(repeats):
        y = rng.normal(size=(n, 1))
        p = y + rng.normal(size=(n, 1)) * np.sqrt(3)  # a PCC of 1/2
        _, low, high = expected_pcc(y, p, np.zeros(n, int), np.arange(n) // 20)
        inside += low[0] <= 0.5 <= high[0]
    # three standard deviations of a share of 0.9
    assert abs(inside / repeats - 0.9) < 3 * np.sqrt(0.9 * 0.1 / repeats)


def test_what_a_part_has_in_common_widens_the_interval():
    rng = np.random.default_rng(1)
    y, p = rng.normal(size=(200, 1)), rng.normal(size=(200, 1))
    unit = np.arange(200) // 20
    shared = rng.normal(size=(10, 2))[unit]
    width = lambda a, b: float(np.ptp(expected_pcc(a, b, np.zeros(200, int), unit)[1:]))
    assert width(y + 2 * shared[:, :1], p + 2 * shared[:, 1:]) > 2 * width(y, p)


def test_nothing_is_known_of_constant_genes_or_by_one_part():
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    y[:, 0], p[:, 1] = 7, 3
    pcc, low, high = expected_pcc(y, p, np.zeros(40, int), np.arange(40) // 10)
    assert np.isnan(pcc).tolist() == [True, True, False]
    assert low[:2].tolist() == [-1, -1]
    assert high[:2].tolist() == [1, 1]
    pcc, low, high = expected_pcc(y, p, np.zeros(40, int), np.zeros(40, int))
    assert np.isfinite(pcc[2])
    assert (low == -1).all()
    assert (high == 1).all()


@pytest.mark.parametrize(
    ("pcc", "low", "attainable", "said"),
    [
        (0.5, 0.2, 0.9, CARRIED),
        (0.5, 0.19, 0.9, PARTLY),
        (0.4, 0.3, 0.81, PARTLY),
        (0.4, 0.3, 0.8, CARRIED),
        (0.4, 0.3, np.nan, CARRIED),
        (0.2, 0.01, 0.9, PARTLY),
        (0.2, 0.0, 0.9, NOT_SHOWN),
        (np.nan, -1.0, 0.5, NOT_SHOWN),
    ],
)
def test_the_rule_of_the_words(pcc, low, attainable, said):
    assert judge(np.array([pcc]), np.array([low]), np.array([attainable])).tolist() == [said]


def make(data, by, part, group_key=None):
    rows = torch.arange(len(data))
    predicted = data.expression + torch.randn(data.expression.shape, generator=torch.Generator().manual_seed(1))
    found = OutOfFold(rows, part, predicted, by)
    return Warrant.make(found, data, pd.Index(list("abcd")), np.array([0.9, 0.8, np.nan, 0.0]), group_key)


def test_a_warrant_says_what_was_unseen(make_data):
    data = make_data((30, 30, 30), groups=["p", "q", "q"])
    of_slide = data.slide
    warrant = make(data, "group", (of_slide > 0).long(), "patient")
    assert (warrant.unseen, warrant.n_units, warrant.n_spots) == ("unseen patient", 2, 90)
    warrant = make(data, "slide", of_slide)
    assert (warrant.unseen, warrant.n_units) == ("unseen slide", 3)
    warrant = make(data, "block", torch.arange(90) % 30 // 6)
    assert (warrant.unseen, warrant.n_units) == ("unseen part of a known slide", 3)


@pytest.mark.parametrize(("n_parts", "units"), [(1, 10), (5, 10)])
def test_parts_are_cut_until_there_are_about_ten(make_data, monkeypatch, n_parts, units):
    from gdml.training import warrant

    data, seen = make_data((60,)), []
    real = warrant.expected_pcc
    monkeypatch.setattr(warrant, "expected_pcc", lambda *a: seen.append(a[3]) or real(*a))
    make(data, "block", torch.arange(60) * n_parts // 60)
    assert len(np.unique(seen[0])) == units


def test_the_share_of_what_is_attainable(make_data):
    genes = make(make_data((60,)), "block", torch.arange(60) // 12).genes
    np.testing.assert_allclose(genes["pcc_reached"][:2], genes["pcc_expected"][:2] / [0.9, 0.8])
    assert genes["pcc_reached"][2:].isna().all()


def test_it_is_the_same_after_json(make_data):
    warrant = make(make_data((60,)), "block", torch.arange(60) // 12)
    warrant.genes.iloc[1, 1] = np.nan
    again = Warrant.from_dict(json.loads(json.dumps(warrant.to_dict(), allow_nan=False)))
    assert (again.unseen, again.n_units, again.n_spots) == (warrant.unseen, warrant.n_units, warrant.n_spots)
    pd.testing.assert_frame_equal(again.genes, warrant.genes)


def test_units_of_a_gene_are_those_with_predictions():
    rng = np.random.default_rng(2)
    slide, unit = np.arange(90) // 30, np.arange(90) // 30
    y = rng.normal(size=(90, 4))
    p = y + rng.normal(size=y.shape)
    p[slide == 1, 1] = np.nan
    p[slide < 2, 2] = np.nan
    p[:, 3] = np.nan
    pcc, low, high = expected_pcc(y, p, slide, unit)
    for gene, keep in ((0, slide >= 0), (1, slide != 1)):
        expected = reference(y[keep][:, [gene]], p[keep][:, [gene]], slide[keep], unit[keep])
        np.testing.assert_allclose([pcc[gene], low[gene], high[gene]], np.ravel(expected), atol=1e-8)
    assert np.isfinite(pcc[2]) and (low[2], high[2]) == (-1, 1)  # one slide
    assert np.isnan(pcc[3]) and (low[3], high[3]) == (-1, 1)
