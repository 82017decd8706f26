"""The attainable PCC against simulated truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import gdml
from gdml.expression import NORMALIZATIONS, Normalization, grid_smoother, normalize_counts
from gdml.metrics import attainable_pcc, pearson_per_gene

GENES = 40
MEANS = np.repeat([0.3, 2.0, 20.0], GENES)
PANEL = np.arange(len(MEANS))


def simulate(rng, n=600, pattern=0.7, rest=3000.0, means=MEANS, depth=0.0):
    """Rates of the panel genes, and of all others as one more column."""
    normal = rng.normal(size=(n, len(means)))
    rate = np.column_stack([means * np.exp(pattern * normal - pattern**2 / 2), np.full(n, rest)])
    return rate * np.exp(depth * rng.normal(size=(n, 1)) - depth**2 / 2)


def noise_free(rate, norm=NORMALIZATIONS["scanpy"]):
    """Normalise rates as if they were counts."""
    return normalize_counts(rate, PANEL, norm)


def by_mean(values):
    return np.nanmean(values.reshape(3, -1), 1)


@pytest.mark.parametrize("order", ["all", "panel", "none"])
@pytest.mark.parametrize("pattern", [0.3, 0.8])
def test_it_is_the_pcc_of_the_noise_free_values(order, pattern):
    rng, norm = np.random.default_rng(0), Normalization(order=order)
    rate = simulate(rng, pattern=pattern)
    counts = rng.poisson(rate)
    truth = by_mean(pearson_per_gene(normalize_counts(counts, PANEL, norm), noise_free(rate, norm)))
    found = by_mean(attainable_pcc(counts, PANEL, norm))
    np.testing.assert_allclose(found, truth, atol=0.05)
    assert (np.diff(found) > 0.1).all()  # more counts, less noise


def test_half_the_depth_is_less_attainable_and_the_estimate_follows():
    rng = np.random.default_rng(1)
    rate = simulate(rng, n=1000)
    for depth in (0.25, 0.5, 1.0, 4.0):
        counts = rng.poisson(rate * depth)
        measured = normalize_counts(counts, PANEL, NORMALIZATIONS["scanpy"])
        truth = by_mean(pearson_per_gene(measured, noise_free(rate)))
        np.testing.assert_allclose(by_mean(attainable_pcc(counts, PANEL)), truth, atol=0.05)


def test_variation_beyond_poisson_counts_as_signal():
    rng = np.random.default_rng(2)
    mean = simulate(rng, n=1000)
    realised = mean * rng.gamma(4.0, 1 / 4.0, mean.shape)  # negative binomial counts of dispersion 1 / 4
    realised[:, -1] = mean[:, -1]
    counts = rng.poisson(realised)
    measured = normalize_counts(counts, PANEL, NORMALIZATIONS["scanpy"])
    found = by_mean(attainable_pcc(counts, PANEL))
    np.testing.assert_allclose(found, by_mean(pearson_per_gene(measured, noise_free(realised))), atol=0.05)
    assert (found > by_mean(pearson_per_gene(measured, noise_free(mean))) + 0.03)[1:].all()


def test_smoothed_values_are_compared_with_smoothed_halves():
    rng, norm = np.random.default_rng(3), Normalization(smooth=True)
    row, col = (x.ravel() for x in np.mgrid[:24, :24])
    neighbors = grid_smoother(row, col, np.zeros(len(row)))
    wave = np.sin(row / 3)[:, None] + np.cos(col / 4)[:, None]
    rate = np.column_stack([MEANS * np.exp(0.3 * wave), np.full(len(row), 3000.0)])
    counts = rng.poisson(rate)
    measured, clean = (normalize_counts(x, PANEL, norm, neighbors) for x in (counts, rate))
    found = attainable_pcc(counts, PANEL, norm, neighbors=neighbors)
    np.testing.assert_allclose(by_mean(found), by_mean(pearson_per_gene(measured, clean)), atol=0.07)
    assert (by_mean(found) > by_mean(attainable_pcc(counts, PANEL)) + 0.02).all()
    with pytest.raises(ValueError, match="grid_smoother"):
        attainable_pcc(counts, PANEL, norm)


@pytest.mark.parametrize("depth", [0.0, 0.5])
def test_a_gene_without_a_pattern_gets_about_zero(depth):
    rng = np.random.default_rng(4)
    n = 2000
    found = attainable_pcc(rng.poisson(simulate(rng, n=n, pattern=0, depth=depth)), PANEL)
    if not depth:
        assert (found == 0).mean() > 0.3  # negative correlations of halves become 0
        assert np.quantile(found, 0.95) < (8 / n) ** 0.25
    assert found.mean() < 0.1 + 0.2 * depth  # totals that vary look like a pattern


def test_unequal_totals_overestimate_by_no_more_than_stated():
    rng = np.random.default_rng(5)
    rate = simulate(rng, n=2000, pattern=0.5, depth=0.5)
    counts = rng.poisson(rate)
    measured = normalize_counts(counts, PANEL, NORMALIZATIONS["scanpy"])
    excess = by_mean(attainable_pcc(counts, PANEL)) - by_mean(pearson_per_gene(measured, noise_free(rate)))
    assert (excess > -0.03).all() and (excess < 0.08).all()


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), order=st.sampled_from(["all", "panel", "none"]))
def test_the_same_seed_gives_the_same_numbers_whatever_the_container(seed, order):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 4, (60, 90)))
    panel = rng.permutation(90)[:70]  # more than are made dense at once
    found = attainable_pcc(counts, panel, Normalization(order=order), n_splits=2, seed=seed)
    assert ((found >= 0) & (found <= 1) | np.isnan(found)).all()
    for same in (counts.astype(np.float32), sparse.csr_matrix(counts), sparse.csc_array(counts.astype(np.uint16))):
        again = attainable_pcc(same, panel, {"order": order}, n_splits=2, seed=seed)
        np.testing.assert_array_equal(again, found)
    other = attainable_pcc(counts, panel, Normalization(order=order), n_splits=2, seed=seed + 1)
    assert not np.array_equal(other, found, equal_nan=True)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_spots_and_genes_matters_no_more_than_the_seed(seed):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(simulate(rng, n=300, means=np.array([1.0, 3.0, 10.0, 30.0])))
    found = attainable_pcc(counts, [0, 1, 2, 3], n_splits=40)
    again = attainable_pcc(counts[rng.permutation(300)], [3, 1, 0, 2], n_splits=40)
    np.testing.assert_allclose(again[[2, 1, 3, 0]], found, atol=0.06)


def test_absent_constant_and_rare_genes():
    rng = np.random.default_rng(6)
    counts = rng.poisson(3.0, (50, 6))
    counts[:, 1] = 0
    counts[:, 2] = 0
    counts[7, 2] = 1  # one half of it is always constant
    found = attainable_pcc(counts, [0, 1, 2, -1])
    assert np.isnan(found[[1, 3]]).all() and found[2] == 0 and np.isfinite(found[0])
    assert len(attainable_pcc(counts, [])) == 0
    assert np.isnan(attainable_pcc(counts[:1], normalization="hest")).all()


def test_large_counts_are_split_too():
    rng = np.random.default_rng(7)
    rate = np.exp(rng.normal(size=(300, 2))) * [50, 1e5]
    found = attainable_pcc(rng.poisson(rate), normalization="hest")
    assert (found > 0.97).all() and found[1] > 0.9999


@pytest.mark.parametrize("bad", [0.5, -1.0, np.nan, np.inf])
def test_what_is_no_whole_count_cannot_be_split(bad):
    counts = np.ones((3, 2))
    counts[2, 1] = bad
    for container in (counts, sparse.csr_matrix(counts)):
        with pytest.raises(ValueError, match=rf"holds {bad:g} \(spot 2, gene 1\).*layers\['counts'\]"):
            attainable_pcc(container)


def test_other_bad_input():
    counts = np.ones((3, 2), int)
    with pytest.raises(ValueError, match="twice"):
        attainable_pcc(counts, [0, 0])
    with pytest.raises(ValueError, match="spots x genes"):
        attainable_pcc(counts[0])
    with pytest.raises(ValueError, match="n_splits"):
        attainable_pcc(counts, n_splits=0)
    with pytest.raises(ValueError, match="normalization"):
        attainable_pcc(counts, normalization="scampy")


@pytest.mark.real
def test_a_real_section(data_dir):
    adata = gdml.datasets.her2st(["C2"])
    counts = adata.X.toarray()
    total = counts.sum(0)
    panel = np.argsort(-total)[:250]
    found = attainable_pcc(adata.X, panel)
    assert (found < 1).all() and (found > 0).mean() > 0.95 and 0.5 < found.mean() < 0.8
    assert found[total[panel] > np.quantile(total[panel], 0.8)].mean() > found.mean() + 0.05  # more counts, less noise
    assert dict(zip(adata.var_names[panel], found, strict=True))["FASN"] > 0.7
    rng = np.random.default_rng(0)
    assert attainable_pcc(rng.binomial(counts.astype(int), 0.25), panel).mean() < found.mean() - 0.08
    # the same totals without any pattern: what is left is due to the totals, and less than what the section shows
    alike = rng.poisson(counts.sum(1)[:, None] * (total / total.sum()))
    assert attainable_pcc(alike, panel).mean() < found.mean() - 0.1
