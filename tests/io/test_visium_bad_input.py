"""Folders of which a part is missing, broken, or of another slide."""

import gzip

import h5py
import numpy as np
import pandas as pd
import pytest

from gdml.io import read_visium


def cut(path, keep=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def test_a_folder_that_does_not_exist_or_is_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist; give the folder that Space Ranger wrote"):
        read_visium(tmp_path / "nowhere")
    (tmp_path / "a.h5").touch()
    with pytest.raises(FileNotFoundError, match="is a file, not a folder"):
        read_visium(tmp_path / "a.h5")


def test_another_folder_is_refused_with_what_was_looked_for_and_found(tmp_path):
    (tmp_path / "fastq").mkdir()
    with pytest.raises(FileNotFoundError, match="is not a Space Ranger folder") as caught:
        read_visium(tmp_path)
    for name in ("tissue_positions.parquet", "tissue_positions_list.csv", "binned_outputs/square_*um", "found: fastq."):
        assert name in str(caught.value)


def test_a_matrix_that_is_missing_is_named_and_the_other_offered(run_folder):
    run = run_folder(name="raw_feature_bc_matrix")
    with pytest.raises(
        FileNotFoundError, match=r'no filtered_feature_bc_matrix\.h5 .* There is the raw one: matrix="raw"'
    ):
        read_visium(run.outs)
    assert read_visium(run.outs, matrix="raw").n_obs == 64
    (run.outs / "raw_feature_bc_matrix.h5").unlink()
    with pytest.raises(FileNotFoundError, match="no filtered_feature_bc_matrix.h5 .* Copy it there"):
        read_visium(run.outs)
    with pytest.raises(ValueError, match=r"`matrix` is 'raww'\. Did you mean 'raw'\?"):
        read_visium(run.outs, matrix="raww")


def test_two_samples_in_one_folder_are_refused(run_folder):
    run = run_folder(name="A_filtered_feature_bc_matrix")
    run_folder(name="B_filtered_feature_bc_matrix")
    with pytest.raises(ValueError, match=r"several matrices \(A_filtered_feature_bc_matrix\.h5, B_"):
        read_visium(run.outs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tissue_positions.csv", r"has no positions; looked for tissue_positions\.parquet"),
        ("scalefactors_json.json", r"has no scalefactors_json\.json"),
    ],
)
def test_a_table_that_is_missing_is_named(run_folder, name, message):
    run = run_folder()
    (run.spatial / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        read_visium(run.outs)


def test_a_part_of_a_matrix_market_folder_that_is_missing_is_named(run_folder):
    run = run_folder(matrix="mtx")
    (run.outs / "filtered_feature_bc_matrix" / "features.tsv.gz").unlink()
    with pytest.raises(FileNotFoundError, match="needs matrix.mtx.gz, features.tsv.gz and barcodes.tsv.gz"):
        read_visium(run.outs)


def test_a_truncated_hdf5_file_is_refused(run_folder):
    run = run_folder()
    cut(run.outs / "filtered_feature_bc_matrix.h5")
    with pytest.raises(ValueError, match=r"filtered_feature_bc_matrix\.h5' is truncated"):
        read_visium(run.outs)


def test_another_hdf5_file_is_refused(run_folder):
    run = run_folder()
    with h5py.File(run.outs / "filtered_feature_bc_matrix.h5", "a") as file:
        del file["matrix/features/name"]
    with pytest.raises(ValueError, match="is no matrix of Space Ranger; it lacks matrix/features/name"):
        read_visium(run.outs)


@pytest.mark.parametrize("part", ["matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"])
def test_a_truncated_matrix_market_file_is_refused(run_folder, part):
    run = run_folder(matrix="mtx")
    cut(run.outs / "filtered_feature_bc_matrix" / part)
    with pytest.raises(ValueError, match="is truncated or no matrix of Space Ranger"):
        read_visium(run.outs)


def test_a_matrix_market_folder_whose_parts_differ_in_length_is_refused(run_folder):
    run = run_folder(matrix="mtx")
    with gzip.open(run.outs / "filtered_feature_bc_matrix" / "barcodes.tsv.gz", "wt") as file:
        file.writelines(f"{name}\n" for name in run.counts.index[:-5])
    with pytest.raises(ValueError, match="is truncated or no matrix of Space Ranger"):
        read_visium(run.outs)


def test_a_truncated_parquet_file_is_refused(run_folder):
    run = run_folder("parquet")
    cut(run.spatial / "tissue_positions.parquet")
    with pytest.raises(ValueError, match=r"tissue_positions\.parquet' is truncated or not parquet"):
        read_visium(run.outs)


def test_a_truncated_gzipped_table_is_refused(run_folder):
    run = run_folder("v1")
    plain = run.spatial / "tissue_positions_list.csv"
    with gzip.open(f"{plain}.gz", "wb") as file:
        file.write(plain.read_bytes())
    plain.unlink()
    cut(run.spatial / "tissue_positions_list.csv.gz")
    with pytest.raises(ValueError, match=r"tissue_positions_list\.csv\.gz' is not a readable table"):
        read_visium(run.outs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"tissue_positions\.csv' is not a readable table"),
        ("barcode,in_tissue,row,col\nA,1,2,3\n", r"lacks the column\(s\) array_row, array_col, pxl_row_in_fullres"),
        ("A-1,1,2\n", "has 3 columns and no header; 6 are needed"),
    ],
)
def test_a_table_that_is_none_of_positions_is_refused(run_folder, text, message):
    run = run_folder()
    (run.spatial / "tissue_positions.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_visium(run.outs)


def test_a_table_cut_within_a_row_is_refused(run_folder):
    """The last row has no position; without the check its spot would lie at NaN."""
    run = run_folder("v1")
    path = run.spatial / "tissue_positions_list.csv"
    text = path.read_text().rstrip()
    path.write_text(text[: text.rindex(",")] + "\n")
    with pytest.raises(ValueError, match="1 barcode.s. of .* have a position that is no finite number"):
        read_visium(run.outs)


@pytest.mark.parametrize("value", [np.nan, np.inf, "left"])
def test_a_position_that_is_no_number_is_refused(run_folder, value):
    run = run_folder()
    path = run.spatial / "tissue_positions.csv"
    table = pd.read_csv(path).astype({"pxl_col_in_fullres": object})
    table.loc[table.index[-2:], "pxl_col_in_fullres"] = value
    table.to_csv(path, index=False)
    with pytest.raises(ValueError, match=rf"2 barcode.s. of .* no finite number \({table['barcode'].iloc[-2]}, "):
        read_visium(run.outs)


@pytest.mark.parametrize(("column", "value"), [("in_tissue", 2), ("array_row", 1.5)])
def test_columns_in_another_order_are_seen(run_folder, column, value):
    run = run_folder()
    path = run.spatial / "tissue_positions.csv"
    table = pd.read_csv(path).astype({column: float})
    table.loc[table.index[-1], column] = value
    table.to_csv(path, index=False)
    with pytest.raises(ValueError, match="needs 0 or 1 in in_tissue and whole numbers in array_row and array_col"):
        read_visium(run.outs)


def test_barcodes_of_another_slide_are_refused_with_examples_of_both(run_folder, random_counts):
    run = run_folder(counts=random_counts(["AC-2", "GT-2"]))
    with pytest.raises(
        ValueError, match=r"no barcode in common: the counts have AC-2, GT-2, .*tissue_positions\.csv' has "
    ):
        read_visium(run.outs)


def test_repeated_barcodes_are_refused(run_folder, array_positions, random_counts):
    run = run_folder()
    path = run.spatial / "tissue_positions.csv"
    table = pd.read_csv(path)
    pd.concat([table, table.tail(1)]).to_csv(path, index=False)
    with pytest.raises(
        ValueError, match=rf"1 barcode\(s\) occur more than once in .*csv': {table['barcode'].iloc[-1]}"
    ):
        read_visium(run.outs)
    inside = list(array_positions().query("in_tissue == 1").index)
    run = run_folder(counts=random_counts([*inside, inside[0]]))
    with pytest.raises(ValueError, match=rf"1 barcode\(s\) occur more than once in .*h5': {inside[0]}"):
        read_visium(run.outs)


def test_a_slide_without_tissue_is_refused_and_can_be_read_whole(run_folder, array_positions, random_counts):
    positions = array_positions().assign(in_tissue=0)
    run = run_folder(positions=positions, counts=random_counts(list(positions.index)))
    with pytest.raises(ValueError, match=r"none of the 72 spots lies under tissue .* in_tissue=False"):
        read_visium(run.outs)
    assert read_visium(run.outs, in_tissue=False).n_obs == 72


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"tissue_hires_scalef": 0.5,', "is not JSON"),
        ("[1, 2]", "holds a list, not names and numbers"),
        ('{"tissue_hires_scalef": 0}', "tissue_hires_scalef in .* is 0, but must be positive"),
        ('{"spot_diameter_fullres": NaN}', "spot_diameter_fullres in .* is nan, but must be positive"),
    ],
)
def test_broken_scale_factors_are_refused(run_folder, text, message):
    run = run_folder()
    (run.spatial / "scalefactors_json.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_visium(run.outs)


def test_a_matrix_without_genes_is_refused(run_folder):
    run = run_folder(types=["Antibody Capture"] * 5)
    with pytest.raises(
        ValueError, match="no features of type 'Gene Expression', only Antibody Capture; .* gex_only=False"
    ):
        read_visium(run.outs)
    assert read_visium(run.outs, gex_only=False).n_vars == 5


def test_a_matrix_of_several_libraries_is_refused(run_folder):
    run = run_folder()
    with h5py.File(run.outs / "filtered_feature_bc_matrix.h5", "a") as file:
        file.attrs["library_ids"] = np.array(["A", "B"], "S")
    with pytest.raises(ValueError, match=r"holds 2 libraries \(spaceranger aggr: A, B\)"):
        read_visium(run.outs)


def test_a_downscaled_image_that_is_broken_is_refused(run_folder):
    run = run_folder()
    cut(run.spatial / "tissue_hires_image.png", keep=0.3)
    with pytest.raises(ValueError, match=r"tissue_hires_image\.png' cannot be read"):
        read_visium(run.outs)
