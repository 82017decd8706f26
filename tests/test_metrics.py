import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gdml.metrics import (
    gene_ranks,
    mae_per_gene,
    mse_parts_per_gene,
    mse_per_gene,
    nan_mean,
    pcc_a,
    pcc_h,
    pearson_per_gene,
    spearman_per_gene,
    spread_per_gene,
    top_genes,
)

seeds = st.integers(0, 2**32 - 1)


def _two(seed, n=30, genes=6):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(n, genes))
    return y, 0.5 * y + rng.normal(size=(n, genes))


@settings(deadline=None)
@given(seed=seeds)
def test_per_gene_scores_agree_with_loops(seed):
    y, p = _two(seed)
    for g in range(y.shape[1]):
        a, b = y[:, g], p[:, g]
        mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
        cov = sum((i - mean_a) * (j - mean_b) for i, j in zip(a, b, strict=True))
        var_a, var_b = sum((i - mean_a) ** 2 for i in a), sum((j - mean_b) ** 2 for j in b)
        assert pearson_per_gene(y, p)[g] == pytest.approx(cov / np.sqrt(var_a * var_b))
        assert mse_per_gene(y, p)[g] == pytest.approx(sum((i - j) ** 2 for i, j in zip(a, b, strict=True)) / len(a))
        assert mae_per_gene(y, p)[g] == pytest.approx(sum(abs(i - j) for i, j in zip(a, b, strict=True)) / len(a))


@settings(deadline=None)
@given(seed=seeds, scale=st.floats(1e-150, 1e150), shift=st.floats(-100, 100))
def test_pearson_ignores_scale_and_shift(seed, scale, shift):
    y, p = _two(seed)
    expected = pearson_per_gene(y, p)
    np.testing.assert_allclose(pearson_per_gene((y + shift) * scale, p), expected, atol=1e-9)
    np.testing.assert_allclose(pearson_per_gene(y, -p), -expected, atol=1e-12)
    np.testing.assert_allclose(pearson_per_gene(p, y), expected, atol=1e-12)


def test_constant_genes_have_no_correlation():
    y, p = _two(0)
    y[:, 0] = 0.0
    y[:, 1] = np.float32(0.1) + np.float32(1e-9) * np.arange(30)  # rounding, not expression
    p[:, 2] = 3.0
    y[4, 3] = np.nan
    got = pearson_per_gene(y, p)
    assert np.isnan(got[:4]).all() and np.isfinite(got[4:]).all()
    assert np.isnan(pearson_per_gene(y[:1], p[:1])).all()


@settings(deadline=None)
@given(seed=seeds)
def test_spearman_agrees_with_scipy_with_ties_and_outliers(seed):
    y, p = _two(seed)
    y, p = np.round(y), np.round(p, 1)
    y[3] = 1e6
    expected = [stats.spearmanr(y[:, g], p[:, g]).statistic for g in range(y.shape[1])]
    np.testing.assert_allclose(spearman_per_gene(y, p), expected, atol=1e-12)
    y[:, 0], p[:, 1], y[5, 2] = 2.0, 3.0, np.nan
    got = spearman_per_gene(y, p)
    assert np.isnan(got[:3]).all() and np.isfinite(got[3:]).all()


@settings(deadline=None)
@given(seed=seeds, shift=st.floats(-50, 50), stretch=st.floats(0.1, 10))
def test_the_error_is_its_level_and_its_pattern(seed, shift, stretch):
    y, p = _two(seed)
    level, pattern = mse_parts_per_gene(y, p)
    np.testing.assert_allclose(level, [(y[:, g].mean() - p[:, g].mean()) ** 2 for g in range(6)], rtol=1e-9)
    np.testing.assert_allclose(level + pattern, mse_per_gene(y, p), rtol=1e-9)
    moved_level, same_pattern = mse_parts_per_gene(y, p + shift)
    np.testing.assert_allclose(same_pattern, pattern, rtol=1e-9)
    np.testing.assert_allclose(moved_level, ((y - p).mean(0) - shift) ** 2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(spread_per_gene(y, stretch * y + shift), stretch)


def test_spread_of_constant_genes():
    y, p = _two(1)
    p[:, 0], y[:, 1], p[3, 2], y[4, 3] = 2.0, 0.0, np.nan, np.inf
    got = spread_per_gene(y, p)
    assert got[0] == 0 and np.isnan(got[1:4]).all() and np.isfinite(got[4:]).all()


@pytest.mark.parametrize(
    "score", [pearson_per_gene, spearman_per_gene, mse_per_gene, mse_parts_per_gene, mae_per_gene, spread_per_gene]
)
def test_shapes_are_checked(score):
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(2, 3\)"):
        score(np.zeros((3, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="no spot"):
        score(np.zeros((0, 2)), np.zeros((0, 2)))


@settings(deadline=None)
@given(seed=seeds)
def test_gene_ranks_agree_with_loops(seed):
    rng = np.random.default_rng(seed)
    pcc = rng.integers(-3, 4, (3, 8)) / 4  # many ties
    pcc[rng.random(pcc.shape) < 0.2] = np.nan
    expected = np.zeros(8)
    for fold in pcc:
        value = [-2 if np.isnan(v) else v for v in fold]
        for g, v in enumerate(value):
            better, equal = sum(w > v for w in value), sum(w == v for w in value)
            expected[g] += (better + (equal + 1) / 2) / 3
    np.testing.assert_allclose(gene_ranks(pcc), expected)


def test_the_mean_of_nothing_is_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(nan_mean([np.nan, np.nan]))
        np.testing.assert_array_equal(nan_mean([[np.nan, 1], [np.nan, 3]], 0), [np.nan, 2])


def test_top_genes_and_means():
    nan = np.nan
    pcc = np.array([[0.9, 0.1, nan, 0.5, nan], [0.7, 0.6, 0.8, nan, nan]])
    # mean ranks: gene 0 (1 + 2) / 2, gene 1 (3 + 3) / 2, gene 2 (4.5 + 1) / 2, gene 3 (2 + 4.5) / 2
    assert list(top_genes(pcc, 3)) == [0, 2, 1]
    assert list(top_genes(pcc, 50)) == [0, 2, 1, 3]  # never the gene that is NaN everywhere
    assert list(top_genes(pcc[0], 2)) == [0, 3]
    assert pcc_a(pcc) == pytest.approx((0.5 + 0.7) / 2)
    assert pcc_h(pcc, [0, 2]) == pytest.approx((0.9 + 0.75) / 2)
    assert pcc_a([[nan, nan], [0.2, 0.4]]) == pytest.approx(0.3)
    assert np.isnan(pcc_a([[nan, nan]])) and np.isnan(pcc_h(pcc, []))
