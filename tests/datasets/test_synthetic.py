import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gdml
from gdml.datasets import synthetic
from gdml.datasets._tissue import make_tissue, smooth_field
from gdml.metrics import pearson_per_gene

SMALL = {"n_slides": 2, "n_patients": 1, "grid": 3, "n_genes": 20}


def picture(adata, library):
    path = adata.uns["spatial"][library]["metadata"]["source_image_path"]
    return np.asarray(Image.open(path))


def tile_statistics(adata):
    """Plain statistics of the 112 um tile at each spot: colour as absorption, and edges."""
    out = np.empty((adata.n_obs, 26))
    for library in adata.uns["spatial"]:
        image = picture(adata, library)
        half = round(56 * adata.uns["spatial"][library]["scalefactors"]["spot_diameter_fullres"] / 100)
        for i in np.flatnonzero(adata.obs["library_id"] == library):
            x, y = adata.obsm["spatial"][i].astype(int)
            tile = image[y - half : y + half, x - half : x + half]
            absorbed = -np.log((tile + 1.0) / 256)
            out[i] = np.concatenate(
                [
                    absorbed.mean((0, 1)),
                    absorbed.std((0, 1)),
                    np.quantile(absorbed.reshape(-1, 3), [0.05, 0.25, 0.5, 0.75, 0.95], axis=0).ravel(),
                    np.abs(np.diff(absorbed, axis=0)).mean((0, 1)),
                    [(tile.min(-1) > 215).mean(), (absorbed[..., 0] > 0.7).mean()],
                ]
            )
    return out


def test_what_is_learnable_is_learnt_and_what_is_noise_is_not():
    adata = synthetic(n_slides=3, n_patients=2, grid=11, n_genes=120, seed=1)
    x = tile_statistics(adata)
    normalised = sc.pp.log1p(sc.pp.normalize_total(adata, target_sum=1e4, copy=True), copy=True).X.toarray()
    test = (adata.obs["library_id"] == "S3").to_numpy()  # a patient of its own
    model = make_pipeline(StandardScaler(), Ridge(10)).fit(x[~test], normalised[~test])
    pcc = pearson_per_gene(normalised[test], model.predict(x[test]))
    learnable = adata.var["learnable"].to_numpy()
    assert pcc[learnable].mean() > 0.8
    assert pcc[learnable].min() > 0.6
    # chance: mean of 60 correlations whose deviation is 1 / sqrt(spots)
    assert abs(pcc[~learnable].mean()) < 0.05
    assert pcc[~learnable].std() < 2 / np.sqrt(test.sum())


def test_layout(synthetic_adata):
    adata = synthetic_adata
    assert list(adata.obs["library_id"].cat.categories) == ["S1", "S2", "S3", "S4"]
    assert adata.obs.groupby("library_id", observed=True)["patient"].first().tolist() == ["P1", "P1", "P2", "P2"]
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert adata.X.dtype == np.float32
    assert adata.X.data.min() > 0
    np.testing.assert_array_equal(adata.X.data, np.floor(adata.X.data))
    for library, entry in adata.uns["spatial"].items():
        own = adata[adata.obs["library_id"] == library]
        height, width, _ = picture(adata, library).shape
        assert (own.obsm["spatial"] > 0).all()
        assert (own.obsm["spatial"] < (width, height)).all()
        # 200 um a grid step at 1 um per px, from a margin of 150 um
        expected = 150 + 200 * own.obs[["array_col", "array_row"]].to_numpy()
        assert np.abs(own.obsm["spatial"] - expected).max() < 20
        assert entry["metadata"]["spot_pitch_um"] == 200
        assert entry["scalefactors"]["spot_diameter_fullres"] == 100


def test_the_rule_in_uns_gives_the_rates(synthetic_adata):
    truth = synthetic_adata.uns["synthetic"]
    x = (synthetic_adata.obsm["drivers"].to_numpy() - truth["center"]) / truth["scale"]
    share = truth["mean_share"] * 2 / (1 + np.exp(-truth["strength"] * x @ truth["weights"].T))
    rate = synthetic_adata.layers["rate"]
    np.testing.assert_allclose(rate / rate.sum(1, keepdims=True), share, rtol=1e-4)
    # the library size carries no information
    np.testing.assert_allclose(share.sum(1), 1)
    assert list(synthetic_adata.var_names[synthetic_adata.var["learnable"]]) == list(truth["learnable"])
    assert not truth["weights"][~synthetic_adata.var["learnable"]].any()
    z = (synthetic_adata.X.toarray() - rate) / np.sqrt(rate + rate**2 / 60)
    assert abs(z.mean()) < 0.05
    assert z.std() == pytest.approx(1, abs=0.05)


def test_slides_look_like_tissue_on_glass(synthetic_adata):
    for library in synthetic_adata.uns["spatial"]:
        image = picture(synthetic_adata, library).astype(float)
        assert image[:20, :20].mean() > 235  # glass
        middle = image[300:-300, 300:-300].mean((0, 1))
        assert 120 < middle[1] < middle[2]
        assert middle[1] < middle[0]  # pink to purple: green is what both stains absorb
    shades = [picture(synthetic_adata, s)[300:-300, 300:-300].mean((0, 1)) for s in ("S1", "S3")]
    assert np.abs(shades[0] - shades[1]).max() > 1  # two laboratories


def test_seed(tmp_path):
    first = synthetic(**SMALL, seed=3, path=tmp_path / "a")
    same = synthetic(**SMALL, seed=3, path=tmp_path / "b")
    other = synthetic(**SMALL, seed=4, path=tmp_path / "a")
    np.testing.assert_array_equal(first.X.toarray(), same.X.toarray())
    np.testing.assert_array_equal(picture(first, "S1"), picture(same, "S1"))
    np.testing.assert_array_equal(first.obsm["spatial"], same.obsm["spatial"])
    assert not np.array_equal(picture(first, "S1"), picture(other, "S1"))
    assert not np.array_equal(picture(first, "S1"), picture(first, "S2"))


def test_pictures_are_painted_once_and_whole(tmp_path, monkeypatch):
    synthetic(**SMALL, path=tmp_path)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert [f.name for f in files] == ["S1.jpg", "S2.jpg"]
    monkeypatch.setattr("gdml.datasets._synthetic.render", None)  # would fail if called
    synthetic(**SMALL, path=tmp_path)
    files[0].unlink()
    with pytest.raises(TypeError):
        synthetic(**SMALL, path=tmp_path)
    assert sorted(tmp_path.rglob("*.jpg")) == files[1:]


def test_scale_of_the_picture(tmp_path):
    fine = synthetic(**SMALL, um_per_px=0.5, path=tmp_path)
    coarse = synthetic(**SMALL, path=tmp_path)
    assert picture(fine, "S1").shape[0] == 2 * picture(coarse, "S1").shape[0]
    np.testing.assert_allclose(fine.obsm["spatial"], 2 * coarse.obsm["spatial"])
    np.testing.assert_array_equal(fine.obsm["drivers"], coarse.obsm["drivers"])
    halved = np.asarray(Image.fromarray(picture(fine, "S1")).reduce(2)).astype(float)
    assert np.corrcoef(halved.ravel(), picture(coarse, "S1").ravel())[0, 1] > 0.7  # the same tissue


def test_pictures_are_listed_in_the_cache_and_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr(gdml.settings, "cache_dir", tmp_path)
    synthetic(**SMALL)
    assert gdml.settings.list_cache()["kind"].tolist() == ["synthetic"]
    gdml.settings.clear_cache("synthetic")
    assert not list(tmp_path.rglob("*.jpg"))


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(synthetic_adata, tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    getattr(synthetic_adata, f"write_{suffix}")(path)
    again = (ad.read_h5ad if suffix == "h5ad" else ad.read_zarr)(path)
    for name, value in synthetic_adata.uns["synthetic"].items():
        assert np.array_equal(again.uns["synthetic"][name], value)


def test_all_or_nothing_learnable(tmp_path):
    assert synthetic(**SMALL, learnable=0, path=tmp_path).var["learnable"].sum() == 0
    assert synthetic(**SMALL, learnable=1, path=tmp_path).var["learnable"].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_slides": 1, "n_patients": 2}, "one slide per patient"),
        ({"n_patients": 0}, "`n_patients` must be .* at least 1, found 0"),
        ({"grid": 2.5}, "`grid` .* found 2.5"),
        ({"n_genes": 1}, "`n_genes` .* found 1"),
        ({"learnable": 1.5}, "`learnable` is 1.5"),
        ({"depth": 0}, "`depth` is 0"),
        ({"um_per_px": float("nan")}, "`um_per_px` must be finite"),
    ],
)
def test_numbers_out_of_range(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        synthetic(**(SMALL | change), path=tmp_path)
    assert not any(tmp_path.iterdir())


def test_text_for_a_number_is_refused(tmp_path):
    with pytest.raises(TypeError, match="`depth` must be a number, found '80'"):
        synthetic(**SMALL, depth="80", path=tmp_path)


def test_drivers_are_what_is_in_the_disc():
    tissue = make_tissue(np.random.default_rng(0), 1000.0)
    xy = np.array([[400.0, 300.0], [612.0, 555.0]])
    drivers = tissue.drivers(xy, 200.0)
    for centre, found in zip(xy, drivers, strict=True):
        within = np.hypot(*(tissue.nuclei - centre).T) < 100
        assert found[0] == pytest.approx(within.sum() / (np.pi * 0.1**2), rel=0.1)
        glands = np.hypot(*(tissue.lumens - centre).T) < 100
        assert found[3] == pytest.approx((np.pi * tissue.radii[glands] ** 2).sum() / (np.pi * 100**2), abs=0.06)


def test_fields_are_even_and_smooth():
    field = smooth_field(np.random.default_rng(0), 80, 8)
    np.testing.assert_allclose(np.quantile(field, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01)
    assert np.abs(np.diff(field, axis=0)).mean() < 0.05
