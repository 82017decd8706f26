"""Names that an encoder declares for its features, beside the embedding."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import gdml
from gdml.training import TrainedModel

COLOURS = ("red", "green", "blue")


class Colour:
    """Mean of each channel."""

    name, identity, dim, tile_px = "colour", "colour-1", 3, 16
    feature_names: tuple[str, ...] | None = COLOURS

    def encode(self, tiles):
        pooled = tiles.float().mean((1, 2))
        return pooled[:, None], pooled

    def to(self, device):
        return self


@pytest.fixture
def spots(tmp_path):
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.ones((40, 2), np.float32), obsm={"spatial": rng.uniform(10, 90, (40, 2))})
    image = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
    gdml.pp.tile(adata, tile_um=None, tile_px=16, n_side=1, image=image)

    def embed(encoder, **options):
        gdml.pp.embed(adata, encoder, image=image, cache_dir=tmp_path, **options)
        return adata

    return embed


def test_names_are_recorded_and_survive_a_file(spots, tmp_path):
    adata = spots(Colour())
    assert list(adata.uns["gdml"]["features"]["names"]) == list(COLOURS)
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for read in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        names = read.uns["gdml"]["features"]["names"]
        table = pd.DataFrame(read.obsm["X_colour"], read.obs_names, names)
        np.testing.assert_array_equal(table["green"], adata.obsm["X_colour"][:, 1])


def test_embedding_stays_an_array_which_scanpy_needs(spots):
    adata = spots(Colour())
    assert isinstance(adata.obsm["X_colour"], np.ndarray)
    sc.pp.neighbors(adata, use_rep="X_colour", n_pcs=2, n_neighbors=5, method="gauss", transformer="sklearn")
    assert "connectivities" in adata.obsp
    adata.obsm["table"] = pd.DataFrame(adata.obsm["X_colour"], adata.obs_names, COLOURS)
    with pytest.raises((KeyError, TypeError, pd.errors.InvalidIndexError)):  # the reason: scanpy slices by position
        sc.pp.neighbors(adata, use_rep="table", n_pcs=2, n_neighbors=5, method="gauss", transformer="sklearn")


def test_an_encoder_without_names_leaves_none_behind(spots):
    encoder = Colour()
    spots(encoder)
    encoder.feature_names, encoder.identity = None, "colour-2"
    assert "names" not in spots(encoder).uns["gdml"]["features"]


@pytest.mark.parametrize("names", [("red", "green"), ("red", "red", "blue"), (0, 1, 2)])
def test_refuses_other_names_before_it_encodes(spots, names, tmp_path):
    encoder = Colour()
    encoder.feature_names = names
    with pytest.raises(ValueError, match="feature_names of 'colour' must be 3 distinct texts"):
        spots(encoder)
    assert not list((tmp_path / "features").glob("colour*"))
    encoder.feature_names = None  # as the message says
    assert spots(encoder).obsm["X_colour"].shape == (40, 3)


def test_a_model_keeps_the_names_of_its_features(spots, tmp_path):
    adata = spots(Colour())
    adata.X = np.random.default_rng(1).poisson(5, adata.shape).astype(np.float32)
    gdml.pp.normalize(adata, genes=list(adata.var_names), smooth=False)
    model = gdml.tl.fit(adata, "ridge")
    model.save(tmp_path / "model")
    assert tuple(TrainedModel.load(tmp_path / "model").features["names"]) == COLOURS
