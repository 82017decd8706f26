"""Prediction of slides that have only an image: by every model, from every source, and after a kill."""

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch

import gdml

PART = {"region": (200, 300, 600, 700), "tissue": False}
SIDE, N_SIDE = 16, 3  # px of a tile, tiles along a neighbour region, of the encoder below


class Quarters:
    """Colours of the quarters of a tile; says how many tiles it has encoded."""

    name, identity, dim, tile_px = "quarters", "quarters-1", 3, SIDE

    def __init__(self, told=False):
        self.n, self.told = 0, told

    def encode(self, tiles):
        self.n += len(tiles)
        if self.told:
            print(self.n, flush=True)
        quarters = tiles.float().unflatten(1, (2, -1)).unflatten(3, (2, -1)).mean((2, 4)).flatten(1, 2)
        return quarters, quarters.mean(1)

    def to(self, device):
        return self


def path_of(adata, slide="S4"):
    return adata.uns["spatial"][slide]["metadata"]["source_image_path"]


@pytest.fixture(scope="module")
def native(_synthetic, tmp_path_factory):
    """A ridge on native pixels of a fast encoder, saved; and the path of a slide that it has not seen."""
    adata = _synthetic[(_synthetic.obs["library_id"] != "S4").to_numpy()].copy()
    gdml.pp.tile(adata, None, tile_px=SIDE, n_side=N_SIDE)
    gdml.pp.embed(adata, Quarters())
    gdml.pp.normalize(adata, n_genes=5)
    return gdml.tl.fit(adata, "ridge", save_to=tmp_path_factory.mktemp("model") / "native"), path_of(_synthetic)


@pytest.fixture(scope="module")
def fitted_on_um(_fitted):
    return _fitted[1], path_of(_fitted[0])


def predict(native, source=None, **options):
    model, path = native
    return gdml.tl.predict(path if source is None else source, model, **{"encoder": Quarters(), **options})


# -- what is predicted ---------------------------------------------------------------------------------------------------


def test_it_is_the_grid_of_the_model_and_its_prediction(fitted_on_um):
    model, path = fitted_on_um
    slide = gdml.tl.predict(path, model, um_per_px=1.0, library_id="biopsy", min_tissue=0.5)
    by_hand = gdml.pp.grid(path, 112, um_per_px=1.0, library_id="biopsy", min_tissue=0.5)
    gdml.tl.predict(by_hand, model)
    assert slide.n_obs > 20 and slide.n_vars == 0
    assert slide.uns["gdml"]["tiles"] == by_hand.uns["gdml"]["tiles"]
    assert slide.obsm["gdml"].equals(by_hand.obsm["gdml"])
    assert list(slide.obsm["gdml"].columns) == list(model.panel)
    assert slide.uns["gdml"]["predict"]["n_matched"] == 0 and "gdml" not in slide.layers


def test_what_is_written_is_predicted_again_after_it_was_read(fitted_on_um, tmp_path):
    model, path = fitted_on_um
    slide = gdml.tl.predict(path, model, um_per_px=1.0)
    slide.write_h5ad(tmp_path / "slide.h5ad")
    again = ad.read_h5ad(tmp_path / "slide.h5ad")
    np.testing.assert_array_equal(again.obsm["gdml"], slide.obsm["gdml"])
    del again.obsm["gdml"]
    gdml.tl.predict(again, model)
    np.testing.assert_array_equal(again.obsm["gdml"], slide.obsm["gdml"])


def test_a_grid_of_other_tiles_is_tiled_as_the_model_needs(fitted_on_um):
    model, path = fitted_on_um
    slide = gdml.pp.grid(path, 90, spacing_um=112, um_per_px=1.0)
    gdml.tl.predict(slide, model)
    tiles = slide.uns["gdml"]["tiles"]
    assert tiles["tile_um"] == 112 and tiles["slides"]["S4"]["um_per_px"] == 1.0


def test_native_pixels_need_no_scale(native):
    slide = predict(native, region=PART["region"])
    assert np.isnan(slide.uns["gdml"]["tiles"]["tile_um"])
    assert slide.uns["gdml"]["tiles"]["slides"]["S4"]["side_px"] == SIDE
    assert np.isfinite(slide.obsm["gdml"]).all(axis=None) and np.ptp(slide.obsm["gdml"], axis=0).max() > 0


def test_arguments_of_the_grid_reach_it(native):
    slide = predict(native, **PART, um_per_px=1.0, spacing_um=32, layout="hex", library_id="part",
                    library_key="sample", key_added="other")  # fmt: skip
    assert slide.obsm["spatial"][0].tolist() == [208, 308] and slide.obs["sample"].unique().tolist() == ["part"]
    assert slide.obs["array_col"][slide.obs["array_row"] == 1].iloc[0] == 1
    assert set(slide.obsm) >= {"other", "other_neighbor_mask"} and "gdml" not in slide.uns


@pytest.mark.parametrize("source", ["array", "slide", "path", "spatialdata"])
def test_every_source_gives_the_same_prediction(native, source):
    from PIL import Image

    pixels = np.asarray(Image.open(native[1]))
    expected = predict(native, pixels, **PART)
    if source == "spatialdata":
        image = pytest.importorskip("spatialdata").models.Image2DModel.parse(np.moveaxis(pixels, 2, 0))
    else:
        image = {"array": pixels, "slide": gdml.slides.open_slide(pixels), "path": Path(native[1])}[source]
    slide = predict(native, image, **PART)
    if source == "path":  # another decoder may round otherwise
        np.testing.assert_allclose(slide.obsm["gdml"], expected.obsm["gdml"], atol=0.2)
    else:
        np.testing.assert_array_equal(slide.obsm["gdml"], expected.obsm["gdml"])
        assert slide.uns["gdml"]["tiles"]["slides"]["slide"]["image"] == "in memory"


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_read(monkeypatch):
    """Fails where a slide is tiled or a tile encoded."""

    def refuse(*args, **options):
        raise AssertionError("something was computed")

    for name in ("lattice", "find_tissue"):
        module = gdml.spots.lattice if name == "lattice" else gdml.spots.overview
        monkeypatch.setattr(module, name, refuse)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"copy": True}, TypeError, "`copy` cannot be used with an image: a new AnnData is returned"),
        ({"image": "x.tif"}, TypeError, "`image` cannot be used with an image"),
        ({"spot_pitch_um": 100}, TypeError, "`spot_pitch_um` cannot be used with an image.*spacing_um="),
        ({"spatial_key": "xy"}, TypeError, "`spatial_key` cannot be used with an image"),
        ({"gene_key": "gene_ids"}, TypeError, "`gene_key` cannot be used with an image"),
        ({"um_per_px": {"S4": 1.0}}, TypeError, "`um_per_px` must be a number"),
        ({"spacing_um": 10}, ValueError, "Pass um_per_px= to gdml.tl.predict."),
        ({"encoder": None}, ValueError, r"encoder is 'quarters', which is not built in: pass .*encoder=\.\.\."),
        ({"encoder": "stain"}, ValueError, "The model's encoder is 'quarters-1', found 'stain"),
        ({"device": "gpu"}, ValueError, "`device` is 'gpu'"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be a whole number"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_read(native, nothing_read, options, error, message):
    with pytest.raises(error, match=message):
        predict(native, **options)


def test_an_image_needs_a_model(native):
    with pytest.raises(TypeError, match="`model` is missing: pass a model or the folder of a saved one"):
        gdml.tl.predict(native[1])


def test_an_image_of_unknown_scale(fitted_on_um, nothing_read):
    model, path = fitted_on_um
    with pytest.raises(
        ValueError, match=r"um per px of the slide .*S4.jpg' is unknown.*um_per_px= to gdml.tl.predict\.$"
    ):
        gdml.tl.predict(path, model)


def test_a_path_that_is_no_image(native, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"There is no file .*biopsy.svs': `adata` must be an AnnData, or the path"
    ):
        predict(native, "biopsy.svs")
    adata = ad.AnnData(np.ones((2, 2), np.float32))
    for name, call in (("h5ad", "anndata.read_h5ad"), ("zarr", "anndata.read_zarr")):
        path = tmp_path / f"slide.{name}"
        getattr(adata, f"write_{name}")(path)
        with pytest.raises(ValueError, match=f"holds an AnnData, not an image: read it first, .*{call}"):
            predict(native, path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("layout", "square"), ("tissue", True), ("min_tissue", 0.5), ("region", (0, 0, 9, 9)), ("spacing_um", 50.0),
     ("library_id", "A")],
)  # fmt: skip
def test_arguments_of_images_are_refused_where_there_are_spots(fitted, name, value):
    adata, model = fitted
    with pytest.raises(TypeError, match=f"`{name}` lays tiles on an image, but `adata` is an AnnData"):
        gdml.tl.predict(adata, model, **{name: value})


# -- after a kill --------------------------------------------------------------------------------------------------------


def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_numbers(native, tmp_path, monkeypatch):
    model, path = native
    monkeypatch.setattr(gdml.settings, "cache_dir", tmp_path / "undisturbed")
    whole = Quarters()
    expected = predict(native, encoder=whole, **PART)

    process = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path / "killed"), model.path, path], stdout=subprocess.PIPE, text=True
    )
    while int(process.stdout.readline()) < whole.n // 2:
        pass
    process.kill()
    assert process.wait() != 0
    monkeypatch.setattr(gdml.settings, "cache_dir", tmp_path / "killed")
    before = stored(tmp_path / "killed")
    rest = Quarters()
    again = predict(native, encoder=rest, **PART)
    assert before > 0 and rest.n > 0
    assert before + rest.n == stored(tmp_path / "undisturbed") == stored(tmp_path / "killed")
    assert whole.n == before + rest.n + 1  # a white tile shows how many tokens there are
    np.testing.assert_array_equal(again.obsm["gdml"], expected.obsm["gdml"])


def stored(folder):
    from gdml.features.store import open_path

    return sum(len(open_path(path.parent)) for path in folder.glob("features/*/gdml.json"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    gdml.settings.cache_dir = sys.argv[1]
    gdml.tl.predict(sys.argv[3], sys.argv[2], encoder=Quarters(told=True), **PART)
