"""A model of one platform on another: names and order of genes, genes that lack, another grid."""

import warnings

import numpy as np
import pandas as pd
import pytest

import gdml

LACKING = 5


def ensembl(i):
    return f"ENSG{i:011d}"


@pytest.fixture
def platform(synthetic_adata, fitted):
    """Slide S4 on a hexagonal grid; Ensembl ids with versions, symbols in a column, genes shuffled, some not measured."""
    adata = synthetic_adata[synthetic_adata.obs["library_id"] == "S4"]
    # every second spot of a square grid is a hexagonal one in Visium's coordinates
    adata = adata[(adata.obs["array_row"] + adata.obs["array_col"]) % 2 == 0]
    _, model = fitted
    gone = np.isin(adata.var_names, model.panel[:LACKING])
    genes = np.random.default_rng(0).permutation(np.flatnonzero(~gone))
    adata = adata[:, genes].copy()
    adata.var["gene_symbols"] = adata.var_names.to_numpy()
    adata.var_names = [f"{ensembl(i)}.{i % 7 + 1}" for i in range(adata.n_vars)]
    return adata


def by_symbols(platform):
    """The same slide with symbols in ``var_names``."""
    plain = platform.copy()
    plain.var_names = plain.var.pop("gene_symbols").astype(str)
    return plain


def test_another_platform_gives_the_scores_of_its_own_symbols(platform, fitted):
    _, model = fitted
    plain = by_symbols(platform)
    for adata in (platform, plain):
        gdml.tl.predict(adata, model)
    assert tuple(platform.obsm["gdml"].columns) == model.panel and platform.obsm["gdml"].equals(plain.obsm["gdml"])
    record = platform.uns["gdml"]["predict"]
    assert (record["n_matched"], record["gene_key"]) == (len(model.panel) - LACKING, "gene_symbols")
    np.testing.assert_array_equal(platform.layers["gdml"], plain.layers["gdml"])
    for i, symbol in enumerate(platform.var["gene_symbols"]):  # each prediction at its gene
        expected = platform.obsm["gdml"][symbol] if symbol in model.panel else np.full(platform.n_obs, np.nan)
        np.testing.assert_array_equal(platform.layers["gdml"][:, i], expected)

    scores = gdml.tl.evaluate(platform)
    pd.testing.assert_frame_equal(scores, gdml.tl.evaluate(plain))
    assert (scores["n_genes"] == len(model.panel) - LACKING).all() and (scores["n_absent"] == LACKING).all()
    pd.testing.assert_frame_equal(platform.obsm["gdml_evaluated"], plain.obsm["gdml_evaluated"])
    assert platform.obsm["gdml_evaluated"][list(model.panel[:LACKING])].isna().all(axis=None)
    for name in ("gdml_pcc", "gdml_mse", "gdml_mae"):
        np.testing.assert_array_equal(platform.var[name], plain.var[name])
    # genes of PCC(H) were chosen on the training side
    pcc = platform.uns["gdml"]["evaluate"]
    chosen = [i for i, gene in enumerate(pcc["genes"]) if gene in model.high_genes]
    assert scores.loc["S4", "pcc_h"] == pytest.approx(pcc["pcc"][0][chosen].mean())


def test_a_panel_of_ensembl_ids(platform, fitted):
    adata, _ = fitted
    by_symbol = dict(zip(platform.var["gene_symbols"], platform.var_names, strict=True))
    # another version than the platform's
    adata.var_names = [
        by_symbol.get(name, ensembl(900 + i)).split(".")[0] + ".9" for i, name in enumerate(adata.var_names)
    ]
    adata.obsm["gdml_measured"].columns = adata.var_names[adata.var["gdml_panel"]]
    model = gdml.tl.fit(adata, "ridge")
    gdml.tl.predict(platform, model)
    record = platform.uns["gdml"]["predict"]
    assert (record["n_matched"], record["gene_key"]) == (30 - LACKING, "var_names")
    assert gdml.tl.evaluate(platform).loc["all", "n_genes"] == 30 - LACKING


def test_the_column_can_be_named(platform, fitted):
    _, model = fitted
    platform.var["few"] = [name if i < 20 else f"x{i}" for i, name in enumerate(platform.var["gene_symbols"])]
    gdml.tl.predict(platform, model, gene_key="few")
    n = int(platform.var["few"].isin(model.panel).sum())
    assert platform.uns["gdml"]["predict"]["n_matched"] == n
    assert gdml.tl.evaluate(platform).loc["all", "n_genes"] == n  # the recorded one
    assert gdml.tl.evaluate(platform, gene_key="gene_symbols").loc["all", "n_genes"] == 30 - LACKING
    with pytest.raises(KeyError, match="`gene_key` is 'symbols'"):
        gdml.tl.evaluate(platform, gene_key="symbols")
    with pytest.raises(ValueError, match="No gene can be scored. None of the 30 panel genes .*put the symbols in"):
        gdml.tl.evaluate(platform, gene_key="var_names")
    before = sorted(platform.obsm)
    with pytest.raises(KeyError, match="`gene_key` is 'symbols'"):
        gdml.tl.predict(platform, model, gene_key="symbols")
    assert sorted(platform.obsm) == before


def test_symbols_that_come_after_the_prediction(platform, fitted):
    _, model = fitted
    symbols = platform.var.pop("gene_symbols")
    gdml.tl.predict(platform, model)
    with pytest.raises(ValueError, match="put the symbols in a column of `adata.var`"):
        gdml.tl.evaluate(platform)
    platform.var["symbol"] = symbols
    assert gdml.tl.evaluate(platform).loc["all", "n_genes"] == 30 - LACKING


def test_ambiguous_symbols_count_as_not_measured(platform, fitted):
    _, model = fitted
    platform.var["gene_symbols"] = platform.var["gene_symbols"].replace({model.panel[9]: model.panel[8]})
    gdml.tl.predict(platform, model)
    scores = gdml.tl.evaluate(platform)
    assert (scores["n_absent"] == LACKING + 2).all() and scores.loc["all", "n_genes"] == 30 - LACKING - 2
    at = (platform.var["gene_symbols"] == model.panel[8]).to_numpy()
    assert at.sum() == 2 and np.isnan(platform.layers["gdml"][:, at]).all()
    assert platform.var["gdml_pcc"][at].isna().all()


def test_totals_over_a_part_of_the_panel_are_told(platform, ready):
    gdml.pp.normalize(ready, normalization="paper", smooth=True)
    model = gdml.tl.fit(ready, "ridge")
    gdml.tl.predict(platform, model)
    with pytest.warns(UserWarning, match=r'5 of 30 panel genes were not measured.*order="panel".*total of 25 genes'):
        gdml.tl.evaluate(platform)
    whole = ready.copy()
    gdml.tl.predict(whole, model)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*panel genes were not measured", UserWarning)
        gdml.tl.evaluate(whole)


#: Symbols of genes of chromosome 1 that both platforms measured, as Ensembl and HGNC name them.
SYMBOLS = {
    "ENSG00000188976": "NOC2L",
    "ENSG00000188290": "HES4",
    "ENSG00000187608": "ISG15",
    "ENSG00000188157": "AGRN",
    "ENSG00000078808": "SDF4",
    "ENSG00000160087": "UBE2J2",
    "ENSG00000107404": "DVL1",
    "ENSG00000162576": "MXRA8",
    "ENSG00000175756": "AURKAIP1",
    "ENSG00000221978": "CCNL2",
    "ENSG00000242485": "MRPL20",
    "ENSG00000160075": "SSU72",
    "ENSG00000078369": "GNB1",
    "ENSG00000162585": "FAAP20",
    "ENSG00000157933": "SKI",
    "ENSG00000157916": "RER1",
}


@pytest.mark.real
def test_a_real_visium_sample(data_dir, her2st_section):
    """Legacy Spatial Transcriptomics of a breast cancer to Visium of a human heart: symbols to Ensembl ids."""
    import squidpy as sq

    heart = sq.read.visium(data_dir / "visium_mini")
    slide = heart.uns["spatial"]["custom"]  # its hires image is black, its lowres one a picture
    slide["images"]["hires"] = slide["images"]["lowres"]
    slide["scalefactors"]["tissue_hires_scalef"] = slide["scalefactors"]["tissue_lowres_scalef"]
    train = her2st_section
    gdml.pp.tile(train, n_side=1)
    gdml.pp.normalize(train, genes=[gene for gene in SYMBOLS.values() if gene in train.var_names])
    model = gdml.tl.fit(train, "ridge")
    gdml.tl.predict(heart, model, image="hires")
    assert np.isfinite(heart.obsm["gdml"]).all(axis=None) and "gdml" not in heart.layers
    with pytest.raises(ValueError, match=r"symbols: NOC2L.*human Ensembl ids: ENSG.*put the symbols in a column"):
        gdml.tl.evaluate(heart)
    heart.var["symbol"] = heart.var_names.map(SYMBOLS)
    gdml.tl.predict(heart, model)
    assert heart.uns["gdml"]["predict"]["n_matched"] == len(model.panel) > 10
    assert heart.uns["gdml"]["predict"]["gene_key"] == "symbol"
    scores = gdml.tl.evaluate(heart)
    assert scores.loc["all", "n_genes"] == len(model.panel) and scores.loc["all", "n_spots"] == heart.n_obs == 100
    assert abs(scores.loc["all", "pcc_a"]) < 0.5
    # mouse genes are written in another case
    heart.var["symbol"] = heart.var["symbol"].str.capitalize()
    with pytest.raises(ValueError, match="match when case is ignored.*human and mouse"):
        gdml.tl.evaluate(heart)
