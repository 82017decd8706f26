"""Bins of Visium HD: read at a size in the folder, or put together."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import gdml
from gdml.io import read_visium
from gdml.io._visium_bins import aggregate_bins


@pytest.mark.parametrize("um", [2, 8, 16])
def test_bins_of_a_size_in_the_folder(hd_folder, um):
    runs = hd_folder()
    adata = read_visium(runs[um].outs.parents[1], bin_um=um)
    inside = runs[um].positions.query("in_tissue == 1")
    assert set(adata.obs_names) == set(inside.index)
    at = inside.loc[adata.obs_names]
    np.testing.assert_array_equal(adata.X.toarray(), runs[um].counts.loc[adata.obs_names])
    np.testing.assert_array_equal(adata.obsm["spatial"], at[["pxl_col_in_fullres", "pxl_row_in_fullres"]])
    factors = adata.uns["spatial"]["HD1"]["scalefactors"]
    assert factors["bin_size_um"] == um and factors["microns_per_pixel"] == 0.4945
    assert "n_bins" not in adata.obs


def test_bins_put_together_are_those_that_space_ranger_wrote(hd_folder):
    """Bins of 16 um from a folder with 2 and 8 um alone, against those of a folder with 16 um."""
    runs = hd_folder()
    outs = runs[2].outs.parents[1]
    written = read_visium(outs, bin_um=16, in_tissue=False)
    runs[16].outs.rename(outs / "elsewhere")
    adata = read_visium(outs, bin_um=16, in_tissue=False)
    assert set(adata.obs_names) == set(written.obs_names)
    written = written[adata.obs_names]
    np.testing.assert_array_equal(adata.X.toarray(), written.X.toarray())
    np.testing.assert_allclose(adata.obsm["spatial"], written.obsm["spatial"], atol=1e-6)
    np.testing.assert_array_equal(adata.obs[["array_row", "array_col"]], written.obs[["array_row", "array_col"]])
    assert (adata.obs["n_bins"] == 4).all()
    assert adata.uns["spatial"]["HD1"]["scalefactors"] == written.uns["spatial"]["HD1"]["scalefactors"]


def test_a_chosen_size_is_made_of_the_largest_bins_that_divide_it(hd_folder, log):
    runs = hd_folder()
    outs = runs[2].outs.parents[1]
    for um, stored in ((24, 8), (32, 16), (6, 2)):
        adata = read_visium(outs, bin_um=um)
        assert f"bins of {um} um, summed from bins of {stored} um" in log.getvalue()
        inside = runs[stored].positions.query("in_tissue == 1").index
        assert adata.X.sum() == runs[stored].counts.loc[inside].to_numpy().sum()
        assert adata.obs["n_bins"].sum() == len(inside)
        assert adata.obs_names.str.startswith(f"s_{um:03d}um_").all()
        factors = adata.uns["spatial"]["HD1"]["scalefactors"]
        assert factors["bin_size_um"] == um
        assert factors["spot_diameter_fullres"] == pytest.approx(um / 0.4945)


def test_the_centre_of_a_bin_at_the_edge_of_the_tissue_is_not_the_mean_of_its_parts(hd_folder):
    runs = hd_folder()
    adata = read_visium(runs[2].outs.parents[1], bin_um=24)
    partial = adata[adata.obs["n_bins"] < 9]
    assert 0 < partial.n_obs < adata.n_obs
    u, v = ((partial.obs[name].to_numpy() + 0.5) * 24 for name in ("array_col", "array_row"))
    truth = np.column_stack([60 + 2.0 * u - 0.3 * v, 20 + 0.3 * u + 2.0 * v])
    np.testing.assert_allclose(partial.obsm["spatial"], truth, atol=1e-6)


@pytest.mark.parametrize("place", ["run", "outs", "binned_outputs"])
def test_every_folder_of_the_run_is_taken(hd_folder, place):
    outs = hd_folder()[8].outs.parents[1]
    folder = {"run": outs.parent, "outs": outs, "binned_outputs": outs / "binned_outputs"}[place]
    assert read_visium(folder, bin_um=8).obs_names.str.startswith("s_008um").all()


def test_the_folder_of_one_bin_size_names_the_size(hd_folder):
    folder = hd_folder()[8].outs
    assert read_visium(folder).uns["spatial"]["HD1"]["scalefactors"]["bin_size_um"] == 8
    assert read_visium(folder, bin_um=16).obs["n_bins"].max() == 4


def test_bin_folders_beside_spatial_are_found(hd_folder):
    runs = hd_folder()
    outs = runs[8].outs.parents[1]
    for um in (2, 8, 16):
        runs[um].outs.rename(outs / f"square_{um:03d}um")
    assert read_visium(outs, bin_um=8).n_obs == runs[8].positions["in_tissue"].sum()


def test_downscaled_images_are_also_searched_beside_the_bins(hd_folder):
    run = hd_folder()[8]
    outs = run.outs.parents[1]
    for name in ("hires", "lowres"):
        (run.spatial / f"tissue_{name}_image.png").rename(outs / "spatial" / f"tissue_{name}_image.png")
    assert set(read_visium(outs, bin_um=8).uns["spatial"]["HD1"]["images"]) == {"hires", "lowres"}


def test_bins_without_an_image_are_read_and_tiling_asks_for_it(hd_folder):
    run = hd_folder()[8]
    for name in ("hires", "lowres"):
        (run.spatial / f"tissue_{name}_image.png").unlink()
    adata = read_visium(run.outs, bin_um=24)
    assert adata.uns["spatial"]["HD1"]["images"] == {}
    with pytest.raises(ValueError, match="No image is known for slide 'HD1'"):
        gdml.pp.tile(adata)


def test_the_scale_of_bins_is_that_of_space_ranger(hd_folder, slide_picture):
    outs = hd_folder()[8].outs.parents[1]
    slide_picture().save(outs.parent / "he.tif")
    adata = read_visium(outs, bin_um=24)
    gdml.pp.tile(adata, tile_um=24)
    assert adata.uns["gdml"]["tiles"]["slides"]["HD1"]["um_per_px"] == pytest.approx(0.4945)


@pytest.mark.parametrize(
    ("bin_um", "message"),
    [
        (None, r"choose its bins with bin_um=. It has bins of 2, 8, 16 um"),
        (7, r"`bin_um` is 7, which is no multiple of a bin size .*\(2, 8, 16 um\)"),
        (8.5, r"`bin_um` is 8\.5, which is no multiple"),
        (0, "`bin_um` must be positive"),
    ],
)
def test_a_size_that_cannot_be_had_is_refused_with_those_that_can(hd_folder, bin_um, message):
    outs = hd_folder()[8].outs.parents[1]
    with pytest.raises(ValueError, match=message):
        read_visium(outs, bin_um=bin_um)


def test_bins_of_a_slide_with_spots_are_refused(run_folder):
    with pytest.raises(ValueError, match="`bin_um` is 8, but .* has spots, not bins"):
        read_visium(run_folder().outs, bin_um=8)
    with pytest.raises(TypeError, match="`bin_um` must be a number"):
        read_visium(run_folder().outs, bin_um="8")


def test_segmented_cells_are_refused_by_name(tmp_path):
    (tmp_path / "outs" / "segmented_outputs").mkdir(parents=True)
    for folder in (tmp_path / "outs", tmp_path / "outs" / "segmented_outputs"):
        with pytest.raises(
            FileNotFoundError, match="segmented cells of Space Ranger 4 and no bins. Cells are not read"
        ):
            read_visium(folder)


def test_scale_factors_of_another_bin_size_are_refused(hd_folder):
    runs = hd_folder()
    name = "scalefactors_json.json"
    (runs[8].spatial / name).write_bytes((runs[2].spatial / name).read_bytes())
    with pytest.raises(ValueError, match=r"has bins of 2\.0 um in a folder of 8 um bins"):
        read_visium(runs[8].outs, bin_um=8)


def bins(rows, cols, counts, steps=((0.0, 8.0), (8.0, 0.0))):
    """AnnData of bins; ``steps`` are those of a row and of a column, (x, y)."""
    obs = pd.DataFrame({"in_tissue": 1, "array_row": rows, "array_col": cols}, index=[str(i) for i in range(len(rows))])
    xy = np.column_stack([rows, cols]) @ np.array(steps) + (100.0, 50.0)
    return ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs, obsm={"spatial": xy})


@settings(max_examples=60, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=3, max_size=60, unique=True),
    factor=st.integers(2, 7),
    angle=st.floats(0, 6.28),
    seed=st.integers(0, 1000),
)
def test_putting_bins_together_conserves_counts_and_places(places, factor, angle, seed):
    rows, cols = np.array(places).T
    if np.linalg.matrix_rank(np.column_stack([rows - rows[0], cols - cols[0]])) < 2:
        return
    counts = np.random.default_rng(seed).poisson(1.0, (len(rows), 3))
    turn = 8 * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    adata = aggregate_bins(bins(rows, cols, counts, turn), factor, 8 * factor)
    np.testing.assert_array_equal(np.asarray(adata.X.sum(0)).ravel(), counts.sum(0))
    assert adata.obs["n_bins"].sum() == len(rows)
    at = dict(zip(zip(adata.obs["array_row"], adata.obs["array_col"], strict=True), adata.X.toarray(), strict=True))
    assert set(at) == {(r // factor, c // factor) for r, c in places}
    for place, total in at.items():
        parts = counts[(rows // factor == place[0]) & (cols // factor == place[1])]
        np.testing.assert_array_equal(total, parts.sum(0))
    centre = (adata.obs[["array_row", "array_col"]].to_numpy() + 0.5) * factor - 0.5
    np.testing.assert_allclose(adata.obsm["spatial"], centre @ turn + (100.0, 50.0), atol=1e-6)


def test_bins_in_one_line_or_off_their_array_are_refused():
    ones = np.ones((12, 1))
    with pytest.raises(ValueError, match="12 bins lie in one line of the array"):
        aggregate_bins(bins(np.zeros(12, int), np.arange(12), ones), 2, 16)
    rows, cols = np.divmod(np.arange(400), 20)
    broken = bins(rows, cols, np.ones((400, 1)))
    broken.obsm["spatial"] = np.random.default_rng(0).permutation(broken.obsm["spatial"])
    with pytest.raises(ValueError, match="don't fit their positions in px"):
        aggregate_bins(broken, 2, 16)
