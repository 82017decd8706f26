import gzip

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gdml.io import read_st
from gdml.io.visium_layout import pitch_px

PX = 60  # px per spot pitch


def positions(n_x=4, n_y=3):
    grid = np.array([(x, y) for x in range(2, 2 + n_x) for y in range(5, 5 + n_y)])
    table = pd.DataFrame(grid, columns=["x", "y"])
    table["new_x"], table["new_y"] = table["x"], table["y"]
    table["pixel_x"], table["pixel_y"] = table["x"] * PX + 7.5, table["y"] * PX + 3.25
    return table.assign(selected=1)


def counts_of(table, n_genes=5, seed=0):
    names = [f"{x}x{y}" for x, y in table[["x", "y"]].to_numpy()]
    values = np.random.default_rng(seed).poisson(2, (len(names), n_genes))
    return pd.DataFrame(values, index=names, columns=[f"G{i}" for i in range(n_genes)])


@pytest.fixture
def section(tmp_path):
    """Writes the three files and returns their paths; tables can be changed before."""

    def write(counts=None, spots=None, suffix=".tsv.gz"):
        spots = positions() if spots is None else spots
        counts = counts_of(spots) if counts is None else counts
        paths = tmp_path / f"Q7{suffix}", tmp_path / "Q7_selection.tsv", tmp_path / "he.jpg"
        counts.to_csv(paths[0], sep="," if ".csv" in suffix else "\t")
        spots.to_csv(paths[1], sep="\t", index=False)
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 255, (900, 3000, 3), dtype=np.uint8)).save(paths[2])
        return paths

    return write


@pytest.mark.parametrize("suffix", [".tsv.gz", ".tsv", ".csv.gz"])
def test_what_is_in_the_files_is_in_the_anndata(section, suffix):
    table = positions()
    counts = counts_of(table).iloc[::-1]
    adata = read_st(*section(counts, table, suffix))
    assert list(adata.obs_names) == list(counts.index)
    np.testing.assert_array_equal(adata.X.toarray(), counts)
    assert adata.X.dtype == np.float32
    for name, row, col, (x, y) in zip(
        adata.obs_names, adata.obs["array_row"], adata.obs["array_col"], adata.obsm["spatial"], strict=True
    ):
        assert name == f"{col}x{row}"
        assert (x, y) == (col * PX + 7.5, row * PX + 3.25)
    assert adata.obs["library_id"].dtype == "category"
    assert set(adata.obs["library_id"]) == {"Q7"}


def test_scale_and_thumbnails(section):
    paths = section()
    entry = read_st(*paths, library_id="mine", spot_pitch_um=150).uns["spatial"]["mine"]
    assert entry["images"]["hires"].shape == (600, 2000, 3)
    assert entry["images"]["lowres"].shape == (180, 600, 3)
    assert entry["images"]["hires"].dtype == np.uint8
    factors = entry["scalefactors"]
    assert factors["tissue_hires_scalef"] == pytest.approx(2000 / 3000)
    assert factors["tissue_lowres_scalef"] == pytest.approx(600 / 3000)
    assert factors["spot_diameter_fullres"] == pytest.approx(100 / 150 * PX)
    assert entry["metadata"] == {"spot_pitch_um": 150.0, "source_image_path": str(paths[2])}


def test_thumbnails_ignore_the_orientation_tag(section):
    paths = section()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(paths[2]).save(paths[2], exif=turned)
    assert read_st(*paths).uns["spatial"]["Q7"]["images"]["hires"].shape == (600, 2000, 3)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_thumbnails_are_rgb(section, tmp_path, mode):
    counts, spots, _ = section()
    Image.new(mode, (300, 200), 0).save(tmp_path / "other.png")
    hires = read_st(counts, spots, tmp_path / "other.png").uns["spatial"]["Q7"]["images"]["hires"]
    assert hires.shape == (200, 300, 3)
    assert (hires == (0 if mode == "L" else 255)).all()  # transparent is glass


def test_without_an_image(section):
    entry = read_st(*section()[:2]).uns["spatial"]["Q7"]
    assert entry["images"] == {}
    assert "source_image_path" not in entry["metadata"]
    assert entry["scalefactors"]["spot_diameter_fullres"] == pytest.approx(PX / 2)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_round_trip_through_h5ad(section, tmp_path, compression):
    adata = read_st(*section())
    adata.write_h5ad(tmp_path / "a.h5ad", compression=compression)
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    entry, entry_again = adata.uns["spatial"]["Q7"], again.uns["spatial"]["Q7"]
    np.testing.assert_array_equal(entry_again["images"]["hires"], entry["images"]["hires"])
    assert entry_again["metadata"] == entry["metadata"]
    assert entry_again["scalefactors"] == entry["scalefactors"]


def test_spots_are_matched_by_name_and_the_rest_is_counted(section, monkeypatch):
    table = positions()
    table.loc[3, "selected"] = 0
    counts = counts_of(table)
    counts = pd.concat([counts.drop(index=[counts.index[0], counts.index[1]]), counts.tail(1).rename({"5x7": "30x30"})])
    lines = []
    monkeypatch.setattr("gdml.io._st.logg.info", lines.append)
    adata = read_st(*section(counts, table))
    assert list(adata.obs_names) == [n for n in counts.index if n not in ("30x30", "3x5")]
    assert "2 spots of the counts" in lines[0]  # 30x30 and 3x5, which is not selected
    assert "2 positions without counts" in lines[0]
    assert "1 positions were not selected" in lines[0]


def test_header_without_corner_field(section):
    paths = section(suffix=".tsv")
    first, rest = paths[0].read_text().split("\n", 1)
    paths[0].write_text(first.lstrip("\t") + "\n" + rest)
    assert list(read_st(*paths).var_names) == [f"G{i}" for i in range(5)]


def replace(frame, row, column, value):
    frame = frame.astype(object)
    frame.iloc[row, column] = value
    return frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, 2, 1, -1), r"1 value.*negative.*-1.0 at spot '2x7', gene 'G1'.*raw counts"),
        (lambda c: replace(c, 0, 0, 0.5), r"not whole.*0.5 at spot '2x5'"),
        (lambda c: replace(c, 0, 0, "nan"), "missing"),
        (lambda c: replace(c, 1, 1, "many"), "line 3 .* not a number"),
        (lambda c: c.rename(columns={"G1": "G0"}), "1 gene name.*more than once.*G0"),
        (lambda c: c.rename(index={"2x6": "2x5"}), "1 spot name.*more than once.*2x5"),
        (lambda c: c.T, "transpose it"),
        (lambda c: c.set_axis([f"spot{i}" for i in range(12)]), "not by grid position"),
        (lambda c: c.set_axis([f"{i}x99" for i in range(12)]), "no spot in common"),
        (lambda c: c.iloc[:0], "has no spots"),
        (lambda c: c.iloc[:1], "don't span a grid"),
    ],
)
def test_bad_counts(section, change, message):
    paths = section(change(counts_of(positions())))
    with pytest.raises(ValueError, match=message):
        read_st(*paths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.drop(columns="pixel_x"), r"lacks the column\(s\) pixel_x"),
        (lambda s: replace(s, 1, 4, "nan"), "1 row.*not finite.*line 3"),
        (lambda s: replace(s, 1, 5, "inf"), "not finite"),
        (lambda s: replace(s, 0, 0, 2.5), "not on the grid"),
        (lambda s: pd.concat([s, s.head(1)]), "1 spot name.*more than once"),
    ],
)
def test_bad_positions(section, change, message):
    paths = section(counts_of(positions()), change(positions()))
    with pytest.raises(ValueError, match=message):
        read_st(*paths)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_missing_files_are_named(section, which):
    paths = section()
    paths[which].unlink()
    with pytest.raises(FileNotFoundError, match=paths[which].name):
        read_st(*paths)


def test_truncated_files(section):
    paths = section()
    for which, message in ((2, "truncated"), (0, "truncated or corrupt")):
        whole = paths[which].read_bytes()
        paths[which].write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=message):
            read_st(*paths)
        paths[which].write_bytes(whole)


def test_ragged_and_empty_tables(section):
    paths = section()
    with gzip.open(paths[0], "at") as file:
        file.write("2x9\t1\t2\n")
    with pytest.raises(ValueError, match="line 14 .* has 2 values"):
        read_st(*paths)
    paths[1].write_text("")
    with pytest.raises(ValueError, match="not a readable table"):
        read_st(*paths)


@pytest.mark.parametrize("pitch", [0, -200, float("nan")])
def test_bad_pitch(section, pitch):
    with pytest.raises(ValueError, match="spot_pitch_um"):
        read_st(*section(), spot_pitch_um=pitch)


@given(
    scale=st.floats(1, 1e3),
    angle=st.floats(-np.pi, np.pi),
    mirror=st.booleans(),
    keep=st.sets(st.integers(0, 29), min_size=2),
)
def test_pitch_of_any_grid(scale, angle, mirror, keep):
    grid = np.array([(x, y) for x in range(6) for y in range(5)])[sorted(keep)]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    xy = scale * (grid[:, ::-1] if mirror else grid) @ turn + [1e4, -3e3]
    assert pitch_px(xy, grid) == pytest.approx(scale, rel=1e-6)


@pytest.mark.real
def test_real_section(her2st_section):
    adata = her2st_section
    assert adata.shape == (178, 15772)
    entry = adata.uns["spatial"]["C6"]
    assert entry["images"]["hires"].shape == (2000, 1875, 3)
    # a spot on tissue is darker than the glass of the corner
    hires, scale = entry["images"]["hires"], entry["scalefactors"]["tissue_hires_scalef"]
    x, y = (adata.obsm["spatial"] * scale).round().astype(int).T
    assert hires[y, x].mean() < hires[:50, :50].mean() - 20
    assert 100 / entry["scalefactors"]["spot_diameter_fullres"] == pytest.approx(0.688, abs=0.01)  # um per px
