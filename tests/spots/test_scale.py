"""Micrometres per pixel: what each source states, and what happens where they differ."""

import io
import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import gdml
from gdml.slides import open_slide
from gdml.spots.resolve import Spots
from gdml.spots.scale import slide_scale

HD = {"microns_per_pixel": 0.27, "bin_size_um": 16.0, "spot_diameter_fullres": 16 / 0.27}


@pytest.fixture
def log():
    """What gdml and scanpy tell the user."""
    before, sc.settings.logfile = sc.settings.logfile, io.StringIO()
    yield sc.settings.logfile
    sc.settings.logfile = before


def spots(pitch_px: float, *, side: int = 10, hexagonal: bool = False, **scalefactors: float) -> Spots:
    row, col = (a.ravel() for a in np.mgrid[:side, :side])
    xy = np.column_stack([col, row]) * pitch_px
    if hexagonal:
        xy = np.column_stack([pitch_px * (col + row % 2 / 2), pitch_px * row * np.sqrt(3) / 2])
        col = 2 * col + row % 2
    adata = ad.AnnData(np.ones((side**2, 1), np.float32), obs=pd.DataFrame({"array_row": row, "array_col": col}))
    adata.obs_names = [f"s{i}" for i in range(adata.n_obs)]
    adata.obsm["spatial"] = xy + 100.0
    adata.uns["spatial"] = {"S1": {"images": {}, "scalefactors": scalefactors, "metadata": {}}}
    return Spots.resolve(adata)


def scale(where: Spots, *, given=None, metadata=None, pitch_um=None, **kwargs):
    return slide_scale(where, "S1", given=given, metadata=metadata, pitch_um=pitch_um, **kwargs)


def test_bins_of_visium_hd_are_not_legacy_st():
    found = scale(spots(16 / 0.27, **HD))
    assert (found.um_per_px, found.source, found.conflict) == (0.27, "scalefactors", "")
    # without microns_per_pixel, from the size of the bins
    found = scale(spots(16 / 0.27, bin_size_um=16.0))
    assert found.source == "spot pitch" and found.um_per_px == pytest.approx(0.27)
    # without either, bins are known by their touching: nothing is assumed
    assert np.isnan(scale(spots(16 / 0.27, spot_diameter_fullres=16 / 0.27)).um_per_px)


def test_large_grids_of_bins():
    found = scale(spots(8 / 0.27, side=70, bin_size_um=8.0))
    assert found.um_per_px == pytest.approx(0.27)


def test_legacy_st_is_believed_where_nothing_contradicts_it():
    assert scale(spots(290.0)).um_per_px == pytest.approx(200 / 290)
    assert scale(spots(290.0, spot_diameter_fullres=145.0)).conflict == ""
    other = scale(spots(290.0), metadata=0.25)
    assert (other.um_per_px, other.source) == (0.25, "image metadata")
    assert "spot pitch 0.6897 (200 um pitch assumed)" in other.conflict


@pytest.mark.parametrize("diameter_um", [55, 65])
def test_both_conventions_of_visium_spot_diameters_agree(diameter_um):
    found = scale(spots(200.0, hexagonal=True, spot_diameter_fullres=diameter_um / 0.5))
    assert found.um_per_px == pytest.approx(0.5) and found.source == "spot pitch" and found.conflict == ""


@pytest.mark.parametrize(("metadata", "told"), [(0.5, False), (0.54, False), (0.56, True), (0.44, True), (0.99, True)])
def test_sources_that_differ_by_more_than_a_tenth_are_told(metadata, told):
    found = scale(spots(200.0, hexagonal=True), metadata=metadata)
    assert (found.um_per_px, found.source) == (metadata, "image metadata")
    assert bool(found.conflict) == told
    if told:
        assert found.conflict == f"slide 'S1' (image metadata {metadata}; spot pitch 0.5; image metadata used)"


def test_sources_that_differ_by_more_than_two_are_refused():
    where = spots(200.0, hexagonal=True)
    with pytest.raises(ValueError, match=r"'S1' differ.*image metadata 0\.2; spot pitch 0\.5.*um_per_px=\{'S1'"):
        scale(where, metadata=0.2)
    # decided by an argument that one of them supports
    found = scale(where, metadata=0.2, given=0.5)
    assert (found.um_per_px, found.source) == (0.5, "argument") and "image metadata 0.2" in found.conflict
    assert scale(where, metadata=0.2, check=False).um_per_px == 0.2
    # hires coordinates: the spots are as large as on the full-resolution image, their distances are not
    with pytest.raises(ValueError, match=re.escape("spot pitch 4; spot diameter 0.5 to 0.5909")):
        scale(spots(25.0, hexagonal=True, spot_diameter_fullres=110.0))


def test_an_argument_that_all_sources_contradict_must_be_insisted_on():
    where = spots(16 / 0.27, **HD)
    with pytest.raises(
        ValueError, match=r"`um_per_px`.*argument 3\.4; scalefactors 0\.27; spot pitch 0\.27.*check=False"
    ):
        scale(where, given=3.4)
    found = scale(where, given=3.4, check=False)
    assert found.um_per_px == 3.4 and "scalefactors 0.27" in found.conflict
    assert scale(spots(290.0), given=0.25).um_per_px == 0.25  # an assumption is no contradiction


def test_a_few_scattered_spots_show_no_pitch():
    where = spots(290.0, spot_diameter_fullres=145.0)
    where.adata.uns["spatial"]["S1"]["metadata"]["spot_pitch_um"] = 200.0
    few = Spots.resolve(where.adata[[0, 3, 40]].copy())
    assert scale(few).source == "spot diameter" and scale(few).um_per_px == pytest.approx(200 / 290)
    assert scale(few, metadata=0.7) == scale(few, metadata=0.7, check=False)
    assert scale(few, metadata=0.7).conflict == ""
    del few.adata.uns["spatial"]["S1"]["scalefactors"]["spot_diameter_fullres"]
    assert scale(few).um_per_px == pytest.approx(200 / 870)  # nothing else is known


def test_scale_factors_that_are_no_numbers_are_no_source():
    for value in (None, "unknown", 0.0, np.nan):
        assert scale(spots(290.0, microns_per_pixel=value)).source == "spot pitch"
    assert scale(spots(290.0, microns_per_pixel=np.float32(0.5)), check=False).um_per_px == 0.5


def test_sources_of_a_call_reach_the_user(log):
    where = spots(16 / 0.27, **HD).adata
    pixels = np.full((800, 800, 3), 255, np.uint8)
    gdml.pp.tile(where, tile_um=60, image=pixels)
    assert where.uns["gdml"]["tiles"]["slides"]["S1"]["um_per_px_source"] == "scalefactors"
    assert "0.27 um per px (scalefactors)" in log.getvalue()
    with pytest.raises(ValueError, match="insist on it with check=False"):
        gdml.pp.tile(where, image=pixels, um_per_px=3.4)
    with pytest.warns(
        UserWarning, match=r"more than 10 %: slide 'S1' \(scalefactors 0\.27; image metadata 0\.32"
    ) as caught:
        gdml.pp.tile(where, tile_um=60, image=open_slide(pixels, um_per_px=0.32))
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        gdml.pp.tile(where, tile_um=60, image=open_slide(pixels, um_per_px=0.29))
