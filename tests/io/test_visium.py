"""Every layout of Space Ranger 1 to 4, read as it was written."""

import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gdml
from gdml.io import read_visium


def assert_is_run(adata, run, names=None):
    """What is in the AnnData is what is in the files, by barcode."""
    names = run.counts.index if names is None else names
    assert list(adata.obs_names) == list(names)
    assert adata.X.dtype == np.float32 and adata.X.format == "csr"
    np.testing.assert_array_equal(adata.X.toarray(), run.counts.loc[names])
    at = run.positions.loc[names]
    np.testing.assert_array_equal(adata.obsm["spatial"], at[["pxl_col_in_fullres", "pxl_row_in_fullres"]])
    assert adata.obsm["spatial"].dtype == np.float64
    for column in ("in_tissue", "array_row", "array_col"):
        assert adata.obs[column].dtype == np.int64
        np.testing.assert_array_equal(adata.obs[column], at[column])


@pytest.mark.parametrize("kind", ["v1", "v2", "parquet"])
@pytest.mark.parametrize("matrix", ["h5", "mtx"])
def test_what_is_in_the_files_is_in_the_anndata(run_folder, kind, matrix):
    run = run_folder(kind, matrix=matrix)
    adata = read_visium(run.outs)
    assert_is_run(adata, run)
    assert list(adata.var_names) == list(run.counts.columns)
    assert list(adata.var["gene_ids"]) == [f"ENSG{i:05d}" for i in range(5)]
    assert set(adata.var["feature_types"]) == {"Gene Expression"}
    library = "S1" if matrix == "h5" else "sample"  # the folder around outs, where the matrix has no name
    assert list(adata.obs["library_id"].cat.categories) == [library]
    entry = adata.uns["spatial"][library]
    assert entry["images"]["hires"].shape == (125, 165, 3) and entry["images"]["lowres"].shape == (50, 66, 3)
    assert entry["scalefactors"] == {
        "tissue_hires_scalef": 0.5,
        "tissue_lowres_scalef": 0.2,
        "spot_diameter_fullres": 19.5,
        "fiducial_diameter_fullres": 31.5,
    }
    known = {"software_version": "spaceranger-2.1.0", "chemistry_description": "Visium V4 Slide"}
    assert entry["metadata"] == (known if matrix == "h5" else {})
    if matrix == "h5":
        assert set(adata.var["genome"]) == {"GRCh38"}


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_squidpy_reads_the_same(run_folder, kind):
    run = run_folder(kind)
    read = pytest.importorskip("squidpy").read.visium(run.outs)
    adata = read_visium(run.outs)
    assert list(read.obs_names) == list(adata.obs_names)
    np.testing.assert_array_equal(read.X.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(read.obsm["spatial"], adata.obsm["spatial"])
    ours, theirs = adata.uns["spatial"]["S1"], read.uns["spatial"]["S1"]
    assert ours["scalefactors"] == theirs["scalefactors"] and ours["metadata"] == theirs["metadata"]
    for name in ("hires", "lowres"):
        np.testing.assert_array_equal(ours["images"][name], theirs["images"][name])


def test_columns_of_a_table_with_a_header_are_taken_by_name(run_folder):
    run = run_folder("v2")
    path = run.spatial / "tissue_positions.csv"
    pd.read_csv(path)[
        ["pxl_col_in_fullres", "array_col", "barcode", "in_tissue", "pxl_row_in_fullres", "array_row"]
    ].to_csv(path, index=False)
    assert_is_run(read_visium(run.outs), run)


def test_a_header_under_the_name_of_version_1_is_seen(run_folder):
    run = run_folder("v2")
    (run.spatial / "tissue_positions.csv").rename(run.spatial / "tissue_positions_list.csv")
    assert_is_run(read_visium(run.outs), run)


def test_a_gzipped_table_is_read(run_folder):
    run = run_folder("v1")
    plain = run.spatial / "tissue_positions_list.csv"
    pd.read_csv(plain, header=None).to_csv(f"{plain}.gz", header=False, index=False)
    plain.unlink()
    assert_is_run(read_visium(run.outs), run)


def test_outs_is_found_in_the_folder_around_it(run_folder):
    run = run_folder()
    assert_is_run(read_visium(run.outs.parent), run)


def test_a_matrix_with_the_prefix_of_public_data_is_read(run_folder):
    run = run_folder(name="V1_Heart_filtered_feature_bc_matrix")
    assert_is_run(read_visium(run.outs), run)


@pytest.mark.parametrize("in_tissue", [True, False])
def test_the_raw_matrix_and_spots_off_the_tissue(run_folder, array_positions, random_counts, log, in_tissue):
    run = run_folder(counts=random_counts(list(array_positions().index)), name="raw_feature_bc_matrix")
    adata = read_visium(run.outs, matrix="raw", in_tissue=in_tissue)
    under = run.positions.index[run.positions["in_tissue"] == 1]
    assert_is_run(adata, run, under if in_tissue else run.positions.index)
    assert ("8 spots off the tissue" in log.getvalue()) == in_tissue


@pytest.mark.parametrize("matrix", ["h5", "mtx"])
def test_repeated_symbols_get_the_suffix_of_scanpy(run_folder, array_positions, random_counts, log, matrix):
    positions = array_positions()
    counts = random_counts(list(positions.index[positions["in_tissue"] == 1]), n_genes=4)
    counts.columns = ["A", "TBCE", "TBCE", "TBCE"]
    run = run_folder(counts=counts, matrix=matrix)
    adata = read_visium(run.outs)
    if matrix == "h5":
        expected = sc.read_10x_h5(run.outs / "filtered_feature_bc_matrix.h5")
        expected.var_names_make_unique()
    else:
        expected = sc.read_10x_mtx(run.outs / "filtered_feature_bc_matrix")
    assert list(adata.var_names) == list(expected.var_names) == ["A", "TBCE", "TBCE-1", "TBCE-2"]
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    assert "2 repeated gene symbols got a suffix" in log.getvalue()


@pytest.mark.parametrize("matrix", ["h5", "mtx"])
def test_antibodies_are_left_out_unless_asked_for(run_folder, log, matrix):
    run = run_folder(matrix=matrix, types=["Gene Expression"] * 3 + ["Antibody Capture"] * 2)
    adata = read_visium(run.outs)
    np.testing.assert_array_equal(adata.X.toarray(), run.counts.iloc[:, :3])
    assert "2 features that are not genes" in log.getvalue()
    assert read_visium(run.outs, gex_only=False).n_vars == 5


def test_rows_follow_the_matrix_and_what_is_left_out_is_told(run_folder, array_positions, random_counts, log):
    positions = array_positions()
    inside = list(positions.index[positions["in_tissue"] == 1])
    # two barcodes without a position, three positions under tissue without counts
    run = run_folder(counts=random_counts(["AAAA-1", *inside[:2:-1], "CCCC-1"]), positions=positions)
    assert_is_run(read_visium(run.outs), run, inside[:2:-1])
    told = log.getvalue()
    assert "2 barcodes without a position" in told and "3 positions under tissue without counts" in told


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), matrix=st.sampled_from(["h5", "mtx"]), kind=st.sampled_from(["v1", "v2", "parquet"]))
def test_counts_and_positions_are_aligned_by_name_in_any_order(
    run_folder, array_positions, random_counts, seed, matrix, kind
):
    rng = np.random.default_rng(seed)
    positions = array_positions(4, 5)
    inside = positions.index[positions["in_tissue"] == 1]
    counts = random_counts(list(rng.permutation(inside)), seed=seed)
    shuffled = positions.iloc[rng.permutation(len(positions))]
    run = run_folder(kind, matrix=matrix, positions=shuffled, counts=counts)
    try:
        assert_is_run(read_visium(run.outs), run)
    finally:
        shutil.rmtree(run.outs)


def test_images_and_scale_factors_that_are_missing_are_left_out(run_folder):
    run = run_folder(images=("lowres",), factors={"spot_diameter_fullres": None, "tissue_hires_scalef": None})
    entry = read_visium(run.outs).uns["spatial"]["S1"]
    assert set(entry["images"]) == {"lowres"}
    assert set(entry["scalefactors"]) == {"tissue_lowres_scalef", "fiducial_diameter_fullres"}


def test_the_name_of_the_slide_can_be_given(run_folder):
    adata = read_visium(run_folder().outs, library_id="mine")
    assert set(adata.obs["library_id"]) == set(adata.uns["spatial"]) == {"mine"}


def test_what_was_read_is_written_and_joined(run_folder, tmp_path):
    adata = read_visium(run_folder().outs)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(again.X.toarray(), adata.X.toarray())
    assert again.uns["spatial"]["S1"]["scalefactors"] == adata.uns["spatial"]["S1"]["scalefactors"]
    both = ad.concat(
        {"1": adata, "2": read_visium(run_folder().outs, library_id="b")}, uns_merge="unique", index_unique="-"
    )
    assert set(both.uns["spatial"]) == {"S1", "b"}


def test_tiles_and_scale_come_from_what_was_read(run_folder, slide_picture):
    run = run_folder()
    slide_picture().save(run.outs / "he.tif")
    adata = read_visium(run.outs)
    gdml.pp.tile(adata, tile_um=50)
    # two columns of the array are 30 px, a pitch of 100 um
    assert adata.uns["gdml"]["tiles"]["slides"]["S1"]["um_per_px"] == pytest.approx(100 / 30, rel=0.01)


@pytest.mark.real
def test_a_real_slide_is_read_whole(data_dir):
    adata = read_visium(data_dir / "visium_colon")
    assert adata.shape == (2604, 4338)
    assert adata.X.sum() / adata.n_obs == pytest.approx(4285, abs=1)
    assert set(adata.uns["spatial"]) == {"colon_d0"}
    # two images of one size lie in the folder; only one shows this section
    assert adata.uns["spatial"]["colon_d0"]["metadata"]["source_image_path"].endswith("colon_d0_HE.jpg")
    with pytest.raises(
        ValueError, match=r"shows something else: its correlation with the hires image of the run is 0\.4"
    ):
        read_visium(data_dir / "visium_colon", data_dir / "visium_colon" / "colon_d14_HE.jpg")
    gdml.pp.tile(adata)
    assert adata.uns["gdml"]["tiles"]["slides"]["colon_d0"]["um_per_px"] == pytest.approx(0.967, abs=0.005)


@pytest.mark.real
def test_a_real_folder_of_version_1_is_read(data_dir):
    adata = read_visium(data_dir / "visium_mini")
    raw = sc.read_10x_h5(data_dir / "visium_mini" / "filtered_feature_bc_matrix.h5")
    table = pd.read_csv(data_dir / "visium_mini" / "spatial" / "tissue_positions_list.csv", header=None, index_col=0)
    np.testing.assert_array_equal(adata.X.toarray(), raw[adata.obs_names].X.toarray())
    np.testing.assert_array_equal(adata.obsm["spatial"], table.loc[adata.obs_names, [5, 4]])
    assert adata.uns["spatial"]["custom"]["metadata"]["software_version"] == "spaceranger-1.0.0"
