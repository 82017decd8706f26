"""HEST-1k samples, written as HEST-1k writes them."""

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import gdml
from gdml.io import read_hest

ABOUT = {
    "id": "TENX1",
    "patient": "Patient 2",
    "organ": "Breast",
    "species": "Homo sapiens",
    "pixel_size_um_estimated": 0.5,
    "inter_spot_dist": 100.0,
    "spot_diameter": 55.0,
    "subseries": None,
}
PITCH = 200  # px, 100 um


def hex_spots(n_rows=6, n_cols=7):
    rows, cols = np.meshgrid(np.arange(n_rows), np.arange(n_cols), indexing="ij")
    cols = 2 * cols + rows % 2
    xy = np.stack([(1 + cols / 2) * PITCH, (1 + rows * 3**0.5 / 2) * PITCH], -1).reshape(-1, 2)
    return rows.ravel(), cols.ravel(), xy


@pytest.fixture
def hest(tmp_path):
    """A function that writes a sample, with changes, and returns the folder."""

    def write(sample="TENX1", about=ABOUT, table=None, image=True, change=lambda adata: None):
        for sub in ("st", "wsis", "metadata"):
            (tmp_path / sub).mkdir(exist_ok=True)
        row, col, xy = hex_spots()
        rng = np.random.default_rng(0)
        obs = pd.DataFrame(
            {"in_tissue": 1, "array_row": row, "array_col": col}, index=[f"B{i}-1" for i in range(len(xy))]
        )
        adata = ad.AnnData(rng.poisson(2, (len(xy), 4)).astype("f4"), obs=obs, var=pd.DataFrame(index=list("ABCD")))
        adata.obsm["spatial"] = np.rint(xy).astype(int)
        factors = {"spot_diameter_fullres": 110.0, "tissue_downscaled_fullres_scalef": 0.25}
        small = rng.integers(0, 255, (300, 400, 3), dtype=np.uint8)
        adata.uns["spatial"] = {"ST": {"images": {"downscaled_fullres": small}, "scalefactors": factors}}
        change(adata)
        adata.write_h5ad(tmp_path / "st" / f"{sample}.h5ad")
        if about is not None:
            (tmp_path / "metadata" / f"{sample}.json").write_text(json.dumps(about))
        if table is not None:
            pd.DataFrame([table]).to_csv(tmp_path / "HEST_v1_1_0.csv", index=False)
        if image:
            noise = rng.integers(60, 255, (1200, 1600, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "wsis" / f"{sample}.tif")
        return tmp_path

    return write


def test_the_layout_becomes_that_of_gdml(hest):
    folder = hest()
    adata = read_hest(folder, "TENX1")
    entry = adata.uns["spatial"]["TENX1"]
    assert list(adata.uns["spatial"]) == ["TENX1"] and list(entry["images"]) == ["hires"]
    assert entry["images"]["hires"].shape == (300, 400, 3)
    assert entry["scalefactors"] == {
        "tissue_hires_scalef": 0.25,
        "spot_diameter_fullres": 110.0,
        "microns_per_pixel": 0.5,
    }
    assert entry["metadata"] == {"spot_pitch_um": 100.0, "source_image_path": str(folder / "wsis" / "TENX1.tif")}
    columns = {"library_id": "TENX1", "patient": "Patient 2", "organ": "Breast", "species": "Homo sapiens"}
    for column, value in columns.items():
        assert adata.obs[column].dtype == "category" and set(adata.obs[column]) == {value}
    assert list(adata.obs_names[:2]) == ["B0-1", "B1-1"] and adata.n_vars == 4
    assert adata.obsm["spatial"].dtype == np.float64
    np.testing.assert_array_equal(adata.obsm["spatial"], np.rint(hex_spots()[2]))


def test_tiles_have_the_scale_of_the_metadata(hest, tmp_path):
    adata = read_hest(hest(), "TENX1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pitch and diameter agree with it
        gdml.pp.tile(adata, check=True)
    slide = adata.uns["gdml"]["tiles"]["slides"]["TENX1"]
    assert (slide["um_per_px"], slide["um_per_px_source"], slide["side_px"]) == (0.5, "scalefactors", 224.0)
    adata.write_h5ad(tmp_path / "again.h5ad")
    assert ad.read_h5ad(tmp_path / "again.h5ad").uns["spatial"]["TENX1"]["scalefactors"]["microns_per_pixel"] == 0.5


def test_a_scale_that_the_spots_contradict_is_not_used_in_silence(hest):
    adata = read_hest(hest(about={**ABOUT, "pixel_size_um_estimated": 0.6, "spot_diameter": None}), "TENX1")
    with pytest.warns(
        UserWarning, match="disagree by more than 10 %: slide 'TENX1' .*scalefactors 0.6; spot pitch 0.4999"
    ):
        gdml.pp.tile(adata)


def test_swapped_pitch_and_diameter(hest):
    swapped = {**ABOUT, "inter_spot_dist": 55.0, "spot_diameter": 100.0}
    entry = read_hest(hest(about=swapped), "TENX1").uns["spatial"]["TENX1"]
    assert entry["metadata"]["spot_pitch_um"] == 100.0
    assert entry["scalefactors"]["spot_diameter_fullres"] == 110.0


def test_metadata_of_the_table_where_there_is_no_json(hest):
    row = {**ABOUT, "patient": None}
    adata = read_hest(hest(about=None, table=row), "TENX1")
    assert "patient" not in adata.obs and set(adata.obs["organ"]) == {"Breast"}
    assert adata.uns["spatial"]["TENX1"]["scalefactors"]["microns_per_pixel"] == 0.5
    # another sample's row says nothing of this one
    adata = read_hest(hest(about=None, table={**ABOUT, "id": "TENX2"}), "TENX1")
    assert "organ" not in adata.obs and "microns_per_pixel" not in adata.uns["spatial"]["TENX1"]["scalefactors"]


def test_without_metadata_and_slide(hest):
    adata = read_hest(hest(about=None, image=False), "TENX1")
    entry = adata.uns["spatial"]["TENX1"]
    assert entry["metadata"] == {}
    assert entry["scalefactors"] == {"tissue_hires_scalef": 0.25, "spot_diameter_fullres": 110.0}
    with pytest.raises(ValueError, match="only downscaled images .* Pass its path: image="):
        gdml.pp.tile(adata)


def test_another_image(hest, tmp_path):
    folder = hest()
    other = tmp_path / "other.tif"
    (folder / "wsis" / "TENX1.tif").rename(other)
    adata = read_hest(folder, "TENX1", image=other)
    assert adata.uns["spatial"]["TENX1"]["metadata"]["source_image_path"] == str(other)
    with pytest.raises(FileNotFoundError, match="image: there is no file .*gone.tif"):
        read_hest(folder, "TENX1", image=tmp_path / "gone.tif")


def test_spots_beside_the_tissue_are_left_out_and_counted(hest, monkeypatch):
    def beside(adata):
        adata.obs.loc[["B3-1", "B5-1"], "in_tissue"] = 0

    lines = []
    monkeypatch.setattr("gdml.io._hest.logg.info", lines.append)
    adata = read_hest(hest(change=beside), "TENX1")
    assert adata.n_obs == 40 and not {"B3-1", "B5-1"} & set(adata.obs_names)
    assert any("left out 2 spots" in line for line in lines)


def test_repeated_genes_are_made_unique(hest):
    def repeat(adata):
        adata.var_names = ["A", "A", "C", "D"]

    assert list(read_hest(hest(change=repeat), "TENX1").var_names) == ["A", "A-1", "C", "D"]


def test_several_samples_are_one_below_the_other(hest):
    folder = hest()
    hest("TENX2")
    adata = ad.concat(
        {name: read_hest(folder, name) for name in ("TENX1", "TENX2")}, index_unique="-", uns_merge="unique"
    )
    gdml.pp.tile(adata, check=False)
    assert list(adata.uns["gdml"]["tiles"]["slides"]) == ["TENX1", "TENX2"]


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def test_bad_input(hest, tmp_path):
    folder = hest()
    with pytest.raises(FileNotFoundError, match="st/TENX2.h5ad'. Did you mean 'TENX1'"):
        read_hest(folder, "TENX2")
    with pytest.raises(FileNotFoundError, match="no subfolder 'st'"):
        read_hest(tmp_path / "st", "TENX1")
    for name in ("../TENX1", "a/b", "", 3):
        with pytest.raises(ValueError, match="`sample_id` must be the name of a sample"):
            read_hest(folder, name)

    (folder / "metadata" / "TENX1.json").write_text('{"id": ')
    with pytest.raises(ValueError, match="TENX1.json' is not readable JSON"):
        read_hest(folder, "TENX1")
    (folder / "metadata" / "TENX1.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no metadata"):
        read_hest(folder, "TENX1")

    hest(change=lambda adata: adata.obsm.pop("spatial"))
    with pytest.raises(ValueError, match="is no sample of HEST-1k: .* spot centres"):
        read_hest(folder, "TENX1")
    cut(folder / "st" / "TENX1.h5ad")
    with pytest.raises(ValueError, match="TENX1.h5ad' is truncated or not an h5ad file"):
        read_hest(folder, "TENX1")
