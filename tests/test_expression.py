import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from gdml.expression import (
    NORMALIZATIONS,
    Normalization,
    as_normalization,
    find_bad_count,
    grid_smoother,
    normalize_counts,
    rank_genes,
)

seeds = st.integers(0, 2**32 - 1)


def _counts(seed, n=7, genes=9):
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(1.0, 3.0, genes), (n, genes)).astype(np.float32)


def _by_loops(counts, panel, norm, weights=None):
    """The same, one number at a time."""
    out = np.full((len(counts), len(panel)), np.nan)
    for i, spot in enumerate(counts):
        total = sum(spot) if norm.order == "all" else sum(spot[g] for g in panel if g >= 0)
        for j, g in enumerate(panel):
            if g < 0:
                continue
            x = norm.target_sum * spot[g] / total if total else 0.0
            out[i, j] = {"e": np.log(x + 1), "2": np.log(x + 1) / np.log(2), "10": np.log(x + 1) / np.log(10)}.get(
                norm.log, x
            )
    if norm.smooth:
        out = np.array([[sum(w * v for w, v in zip(row, gene, strict=True)) for gene in out.T] for row in weights])
    return out


@settings(deadline=None)
@given(
    seed=seeds,
    order=st.sampled_from(["all", "panel"]),
    log=st.sampled_from(["e", "2", "10", "none"]),
    target_sum=st.floats(1, 1e6),
    smooth=st.booleans(),
    as_sparse=st.booleans(),
)
def test_normalize_counts_agrees_with_loops(seed, order, log, target_sum, smooth, as_sparse):
    counts, norm = _counts(seed), Normalization(order, target_sum, log, smooth)
    counts[2] = 0  # a spot without counts stays zero
    panel = np.array([4, -1, 0, 8])
    weights = np.random.default_rng(seed).dirichlet(np.ones(7), 7)
    got = normalize_counts(
        sparse.csr_matrix(counts) if as_sparse else counts, panel, norm, sparse.csr_array(weights) if smooth else None
    )
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, _by_loops(counts, panel, norm, weights), rtol=1e-5, atol=1e-6)


def test_default_is_scanpys_recipe():
    import anndata as ad
    import scanpy as sc

    counts = _counts(3, n=20)
    adata = ad.AnnData(counts.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    got = normalize_counts(counts, np.arange(9), NORMALIZATIONS["scanpy"])
    np.testing.assert_allclose(got, adata.X, rtol=1e-5)


def test_paper_preset_is_the_authors_recipe():
    assert NORMALIZATIONS["paper"] == Normalization("panel", 1e4, "10", smooth=True)


def test_hest_is_log1p_of_raw_counts():
    counts = np.array([[0, 1, 7], [3, 0, 0], [0, 0, 0]])
    by_hand = [[0.0, np.log(2), np.log(8)], [np.log(4), 0.0, 0.0], [0.0, 0.0, 0.0]]
    for matrix in (counts, sparse.csr_array(counts)):
        got = normalize_counts(matrix, np.arange(3), as_normalization("hest"))
        np.testing.assert_allclose(got, by_hand, rtol=1e-6)
    # a part of the panel has the same values: no total is taken
    np.testing.assert_allclose(normalize_counts(counts, [2, 0], NORMALIZATIONS["hest"])[:, 0], np.log1p([7, 0, 0]))
    assert as_normalization("hest", target_sum=5e3) == NORMALIZATIONS["hest"] == Normalization("none")


def test_smoothing_without_neighbors_is_refused():
    with pytest.raises(ValueError, match="grid_smoother"):
        normalize_counts(_counts(0), [0, 1], NORMALIZATIONS["paper"])


@pytest.mark.parametrize("wrong", [{"order": "pannel"}, {"log": "ln"}, {"target_sum": 0}, {"target_sum": np.nan}])
def test_normalization_refuses(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        Normalization(**wrong)


@pytest.mark.parametrize("wrong", [{"target_sum": "1e4"}, {"target_sum": True}, {"smooth": "no"}])
def test_normalization_refuses_other_types(wrong):
    with pytest.raises(TypeError, match=f"`{next(iter(wrong))}`"):
        Normalization(**wrong)


def test_as_normalization():
    assert as_normalization("paper", smooth=False, log=None) == Normalization("panel", 1e4, "10", smooth=False)
    norm = Normalization("panel", 5e3, "2", smooth=True)
    read_back = {k: np.asarray(v)[()] for k, v in norm.to_dict().items()} | {"panel": np.array(["a"])}
    assert as_normalization(read_back) == norm == Normalization.from_dict(norm.to_dict())
    with pytest.raises(ValueError, match="Did you mean 'scanpy'"):
        as_normalization("scampy")
    with pytest.raises(TypeError, match="`normalization`"):
        as_normalization(3)


@pytest.mark.parametrize("as_sparse", [False, True])
@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan, np.inf])
def test_find_bad_count(bad, as_sparse):
    counts = _counts(1)
    wrap = sparse.csc_matrix if as_sparse else np.asarray
    assert find_bad_count(wrap(counts)) is None
    counts[3, 5] = bad
    row, col, value = find_bad_count(wrap(counts))
    assert (row, col) == (3, 5)
    np.testing.assert_equal(value, bad)


def _neighbors_by_loops(row, col, library):
    weights = np.zeros((len(row), len(row)))
    for i in range(len(row)):
        same = [j for j in range(len(row)) if library[j] == library[i]]
        hexagonal = len({(row[j] + col[j]) % 2 for j in same}) == 1
        for j in same:
            dr, dc = abs(row[i] - row[j]), abs(col[i] - col[j])
            weights[i, j] = (dr, dc) in {(0, 0), (0, 2), (1, 1)} if hexagonal else max(dr, dc) <= 1
    return weights / weights.sum(1, keepdims=True)


@settings(deadline=None)
@given(seed=seeds, hexagonal=st.booleans())
def test_grid_smoother_agrees_with_loops(seed, hexagonal):
    rng = np.random.default_rng(seed)
    cells = np.array([(lib, r, c) for lib in "ab" for r in range(-2, 4) for c in range(3, 8)], dtype=object)
    if hexagonal:
        cells = np.array([cell for cell in cells if (cell[1] + cell[2]) % 2 == 0], dtype=object)
    library, row, col = rng.permutation(cells)[: rng.integers(1, len(cells))].T
    got = grid_smoother(row.astype(int), col.astype(int), library.astype(str))
    np.testing.assert_allclose(got.toarray(), _neighbors_by_loops(row, col, library), atol=1e-12)
    np.testing.assert_allclose(got.sum(1), 1)


def test_grid_smoother_refuses():
    with pytest.raises(ValueError, match="same grid position"):
        grid_smoother([0, 0], [1, 1], ["a", "a"])
    with pytest.raises(ValueError, match="whole numbers"):
        grid_smoother([0.0, 0.5], [1, 1], ["a", "a"])
    with pytest.raises(ValueError, match="whole numbers"):
        grid_smoother([0.0, np.nan], [1, 1], ["a", "a"])
    assert grid_smoother([], [], []).shape == (0, 0)


@settings(deadline=None)
@given(seed=seeds, as_sparse=st.booleans())
def test_rank_genes_agrees_with_loops_and_ignores_column_order(seed, as_sparse):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.choice([0.05, 0.3, 1.0], 12), (20, 12))
    counts[:, 3] = 2  # abundant but constant
    names = np.array([f"g{i:02d}" for i in rng.permutation(12)])
    library = np.repeat(["a", "b"], [8, 12])
    expected = []
    for g in range(12):
        enough = all((counts[library == lib, g] > 0).mean() >= 0.25 for lib in "ab")
        if enough and len(set(counts[:, g])) > 1:
            expected.append((-counts[:, g].sum(), names[g], g))
    wrap = sparse.csr_matrix if as_sparse else np.asarray
    got = rank_genes(wrap(counts), library, names, min_fraction=0.25)
    assert list(got) == [g for *_, g in sorted(expected)]

    shuffled = rng.permutation(12)
    again = rank_genes(wrap(counts[:, shuffled]), library, names[shuffled], min_fraction=0.25)
    assert list(names[shuffled][again]) == list(names[got])
