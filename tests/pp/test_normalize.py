import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from gdml import pp
from gdml.expression import Normalization, grid_smoother, normalize_counts


def make(seed=0, n=24, genes=10, slides=("a", "b"), as_sparse=True):
    """Two slides on a square grid; the last two genes are rare."""
    rng = np.random.default_rng(seed)
    mean = np.r_[np.linspace(8, 2, genes - 2), 0.02, 0.02]
    counts = rng.poisson(mean, (n, genes)).astype(np.float32)
    counts[:, 0] += 1  # no empty spot
    per = n // len(slides)
    obs = pd.DataFrame(
        {
            "library_id": pd.Categorical(np.repeat(slides, per)),
            "array_row": np.tile(np.arange(per) // 4, len(slides)),
            "array_col": np.tile(np.arange(per) % 4, len(slides)),
        },
        index=[f"s{i}" for i in range(n)],
    )
    X = sparse.csr_matrix(counts) if as_sparse else counts
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(genes)]))


def snapshot(adata):
    return sorted(adata.var), sorted(adata.obsm), sorted(adata.uns), sorted(adata.obs), sorted(map(str, adata.layers))


def test_select_genes_by_counts():
    adata = make()
    assert pp.select_genes(adata, 4) is None
    total = np.asarray(adata.X.sum(0)).ravel()
    assert set(adata.var_names[adata.var["gdml_panel"]]) == set(adata.var_names[np.argsort(-total)[:4]])
    assert adata.uns["gdml"]["panel"] == {"method": "counts", "n_genes": 4, "min_fraction": 0.1}


def test_a_gene_must_be_found_in_every_slide():
    adata = make(as_sparse=False)
    adata.X[adata.obs["library_id"] == "b", 0] = 0  # the most abundant gene, absent from one slide
    pp.select_genes(adata, 3)
    assert not adata.var["gdml_panel"]["g0"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), method=st.sampled_from(["counts", "hvg", "hest"]))
def test_panel_does_not_depend_on_the_order_of_the_columns(seed, method):
    adata = make(seed)
    shuffled = adata[:, np.random.default_rng(seed).permutation(adata.n_vars)].copy()
    panels = [
        set(pp.select_genes(x, 4, method=method, copy=True).var.query("gdml_panel").index) for x in (adata, shuffled)
    ]
    assert panels[0] == panels[1] and len(panels[0]) == 4


def test_select_genes_by_variability_finds_the_variable_gene():
    adata = make(as_sparse=False, n=80)
    adata.X[:, 5] = np.where(np.arange(80) % 4 == 0, 30, 1)  # varies far more than its mean explains
    pp.select_genes(adata, 2, method="hvg")
    assert adata.var["gdml_panel"]["g5"]
    assert adata.uns["gdml"]["panel"]["method"] == "hvg"


def test_hest_panel_is_by_variability_of_log1p_counts_over_pooled_slides():
    import scanpy as sc

    adata = make(as_sparse=False, n=80, genes=30)
    adata.X[:, 5] = np.where(np.arange(80) < 40, 30, 1)  # differs between the slides alone
    pp.select_genes(adata, 3, method="hest")
    found = (adata.X > 0).reshape(2, 40, -1).mean(1).min(0) >= 0.1
    by_hand = ad.AnnData(np.log1p(adata.X[:, found]), var=adata.var[[]][found])
    sc.pp.highly_variable_genes(by_hand, n_top_genes=3)
    panel = set(adata.var_names[adata.var["gdml_panel"]])
    assert len(panel) == 3 and panel <= set(by_hand.var_names[by_hand.var["highly_variable"]])  # which includes ties
    assert adata.uns["gdml"]["panel"]["method"] == "hest"
    panel = adata.var["gdml_panel"].copy()
    pp.select_genes(adata, 3, method="hvg")
    assert not adata.var["gdml_panel"].equals(panel)


def test_normalize_writes_what_the_kernel_gives():
    adata = make()
    before = adata.X.copy()
    assert pp.normalize(adata, n_genes=4, normalization="paper") is None
    measured = adata.obsm["gdml_measured"]
    panel = adata.var_names[adata.var["gdml_panel"]]
    assert list(measured.columns) == list(panel) and (measured.dtypes == np.float32).all()
    assert list(measured.index) == list(adata.obs_names)
    weights = grid_smoother(adata.obs["array_row"], adata.obs["array_col"], adata.obs["library_id"])
    norm = Normalization("panel", 1e4, "10", smooth=True)
    expected = normalize_counts(adata.X, adata.var_names.get_indexer(panel), norm, weights)
    np.testing.assert_array_equal(measured, expected)
    assert (adata.X != before).nnz == 0
    record = adata.uns["gdml"]["normalization"]
    assert Normalization.from_dict(record) == norm
    assert list(record["panel"]) == list(panel) and record["panel_method"] == "counts"


def test_switches_take_precedence():
    adata = make()
    pp.normalize(adata, n_genes=4, normalization="paper", smooth=False, log="2", target_sum=100)
    assert Normalization.from_dict(adata.uns["gdml"]["normalization"]) == Normalization("panel", 100, "2", smooth=False)


def test_panel_at_hand_is_kept_unless_another_is_asked_for():
    adata = make()
    adata.var["gdml_panel"] = adata.var_names.isin(["g7", "g2", "g5"])
    pp.normalize(adata)
    assert list(adata.obsm["gdml_measured"].columns) == ["g2", "g5", "g7"]
    assert adata.uns["gdml"]["normalization"]["panel_method"] == "given"
    pp.normalize(adata, n_genes=5)
    assert adata.obsm["gdml_measured"].shape[1] == adata.var["gdml_panel"].sum() == 5
    pp.normalize(adata, genes=["g4", "g1"])
    assert list(adata.obsm["gdml_measured"].columns) == ["g1", "g4"]


def test_layer_key_and_copy():
    adata = make()
    adata.layers["raw"], adata.X = adata.X.copy(), adata.X * 0.5
    before = snapshot(adata)
    got = pp.normalize(adata, n_genes=3, layer="raw", key_added="mine", copy=True)
    assert snapshot(adata) == before
    assert {"mine_panel"} <= set(got.var) and "mine_measured" in got.obsm and "gdml" not in got.uns
    assert got.uns["mine"]["normalization"]["layer"] == "raw"


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_everything_is_written_and_read_back(tmp_path, suffix):
    adata = make()
    pp.normalize(adata, n_genes=4, normalization="paper")
    path = tmp_path / f"x.{suffix}"
    getattr(adata, f"write_{suffix}")(path)
    back = getattr(ad, f"read_{suffix}")(path)
    pd.testing.assert_frame_equal(back.obsm["gdml_measured"], adata.obsm["gdml_measured"], check_names=False)
    record = back.uns["gdml"]["normalization"]
    assert Normalization.from_dict(record) == Normalization("panel", 1e4, "10", smooth=True)
    pp.normalize(back)  # and goes on from there
    assert list(back.obsm["gdml_measured"].columns) == list(record["panel"])


def _negative(adata):
    adata.X[2, 3] = -1


def _fractional(adata):
    adata.X[2, 3] = 0.5
    adata.layers["counts"] = np.rint(adata.X)


def _empty_spot(adata):
    adata.X[4] = 0


def _twins(adata):
    adata.var_names = ["g0", *adata.var_names[:-1]]


def _no_slide(adata):
    adata.obs["library_id"] = adata.obs["library_id"].cat.remove_categories("b")


@pytest.mark.parametrize(
    ("spoil", "kwargs", "error", "says"),
    [
        (_negative, {}, ValueError, r"`adata.X` holds -1 \(spot 's2', gene 'g3'\).*layer="),
        (_fractional, {}, ValueError, r"holds 0.5 .*layer='counts' \(there are: counts\)"),
        (_empty_spot, {}, ValueError, r"1 of 24 spots .*s4.*filter_cells"),
        (_twins, {}, ValueError, "var_names_make_unique"),
        (_no_slide, {}, ValueError, "library_id"),
        (None, {"n_genes": 9}, ValueError, "only 8 of 10 genes .*n_genes=8"),
        (None, {"n_genes": 0}, ValueError, "`n_genes`"),
        (None, {"genes": ["g1", "BRCA9"]}, KeyError, "1 of the 2 `genes`.*BRCA9"),
        (None, {"genes": []}, ValueError, "`genes` is empty"),
        (None, {"genes": "g1"}, TypeError, "`genes`"),
        (None, {"layer": "count"}, KeyError, "`layer` is 'count'"),
        (None, {"normalization": "papr"}, ValueError, "Did you mean 'paper'"),
        (None, {"log": "3"}, ValueError, "`log`"),
        (lambda adata: adata.obs.pop("array_row"), {"smooth": True}, KeyError, "array_row.*smooth=False"),
    ],
)
def test_bad_input_is_refused_and_nothing_written(spoil, kwargs, error, says):
    adata = make(as_sparse=False)
    if spoil:
        spoil(adata)
    before = snapshot(adata)
    with pytest.raises(error, match=says):
        pp.normalize(adata, **{"n_genes": 4} | kwargs)
    assert snapshot(adata) == before


def test_views_backed_and_bare_objects_are_refused(tmp_path):
    adata = make()
    with pytest.raises(ValueError, match="view"):
        pp.normalize(adata[:10], n_genes=4)
    with pytest.raises(ValueError, match="no counts"):
        pp.select_genes(ad.AnnData(obs=adata.obs), 4)
    adata.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(ValueError, match="to_memory"):
        pp.select_genes(ad.read_h5ad(tmp_path / "x.h5ad", backed="r"), 4)


@pytest.mark.parametrize("kwargs", [{"method": "count"}, {"min_fraction": 10}, {"n_genes": 2.5}])
def test_select_genes_refuses(kwargs):
    with pytest.raises(ValueError, match=f"`{next(iter(kwargs))}`"):
        pp.select_genes(make(), **{"n_genes": 4} | kwargs)


def test_constant_genes_of_a_given_panel_are_named():
    adata = make(as_sparse=False)
    adata.X[:, 6] = 0
    with pytest.warns(UserWarning, match=r"1 of 2 panel genes .*g6"):
        pp.normalize(adata, genes=["g0", "g6"])


@pytest.mark.real
def test_real_section(her2st_section):
    pp.normalize(her2st_section, n_genes=250)
    measured = her2st_section.obsm["gdml_measured"]
    assert measured.shape == (178, 250) and {"ERBB2", "GNAS", "FASN"} <= set(measured.columns)
    assert np.isfinite(measured.to_numpy()).all() and 0.5 < measured.to_numpy().mean() < 4
