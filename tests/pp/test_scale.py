import pytest
from scanpy import logging

import gdml
from gdml.encoders import CustomEncoder


def encoder(trained=(0.5,)):
    made = CustomEncoder(lambda x: x.mean((2, 3)), name="mean", tile_px=32, identity="mean")
    made.um_per_px = trained
    return made


@pytest.mark.parametrize(
    ("tile_um", "trained", "advised"),
    [
        (32, (0.5,), 16),  # 1 µm per px
        (16, (0.5,), None),
        (23, (0.5,), None),  # 0.72 µm per px, a factor below 1.5
        (8, (0.5,), 16),
        (16, (0.25, 1.0), None),  # between the scales
        (64, (0.25, 1.0), 32),
        (64, (), None),
        (None, (0.5,), None),  # native pixels
    ],
)
def test_tiles_of_another_scale_than_the_training_images(synthetic_adata, monkeypatch, tile_um, trained, advised):
    lines = []
    monkeypatch.setattr(logging, "warning", lines.append)
    adata = synthetic_adata[:2].copy()
    gdml.pp.tile(adata, tile_um=tile_um, tile_px=32, n_side=1)
    gdml.pp.embed(adata, encoder(trained))
    said = [line for line in lines if "was trained at" in line]
    if advised is None:
        assert not said
        return
    assert len(said) == 1 and f"gdml.pp.tile(adata, tile_um={advised}, tile_px=32)" in said[0]
    gdml.pp.tile(adata, tile_um=advised, tile_px=32)
    gdml.pp.embed(adata, encoder(trained))
    assert [line for line in lines if "was trained at" in line] == said
