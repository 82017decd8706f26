import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open

import gdml
from gdml.encoders import get_encoder
from gdml.encoders._weights import load_weights
from gdml.encoders.box import MEAN, STD

WEIGHTS = files("gdml.encoders").joinpath("weights/box.safetensors")


def test_it_is_small_and_says_how_it_was_made():
    assert WEIGHTS.stat().st_size <= 25e6
    encoder = get_encoder("box")
    assert sum(p.numel() for p in encoder.model.parameters()) <= 12e6
    with safe_open(WEIGHTS, framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}
        about = json.loads(file.metadata()["recipe"])
    assert about["architecture"] == "resnet18"
    assert about["sections"] == ["B4", "C2", "C3", "C4", "C6"]
    assert about["recipe"]["steps"] > 0 and about["augmentation"]["um_per_px"] == [0.35, 1.0]


def test_tokens_are_cells_and_pooled_is_their_mean():
    encoder = get_encoder("box")
    assert (encoder.name, encoder.dim, encoder.tile_px, encoder.n_prefix) == ("box", 512, 224, 1)
    tiles = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens, pooled = encoder.encode(tiles)
    assert tokens.shape == (2, 50, 512)
    torch.testing.assert_close(tokens[:, 0], pooled)
    torch.testing.assert_close(tokens[:, 1:].mean(1), pooled)
    x = (tiles.permute(0, 3, 1, 2).float() / 255 - MEAN[0]) / STD[0]
    torch.testing.assert_close(encoder.model(x), pooled, rtol=1e-3, atol=1e-3)


def test_folding_changes_no_number():
    encoder = get_encoder("box")
    plain = timm.create_model("resnet18", num_classes=0).eval()
    load_weights(plain, Path(str(WEIGHTS)), "resnet18")
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in encoder.model.modules())
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(encoder.model(x), plain(x), rtol=1e-3, atol=1e-4)


def test_other_weights_are_another_encoder(tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(WEIGHTS.read_bytes())
    assert get_encoder("box", weights=copy).identity == get_encoder("box").identity
    content = bytearray(WEIGHTS.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    assert get_encoder("box", weights=copy).identity != get_encoder("box").identity
    with pytest.raises(FileNotFoundError):
        get_encoder("box", weights=tmp_path / "gone.safetensors")


def test_it_embeds(synthetic_adata):
    adata = synthetic_adata[:2].copy()
    gdml.pp.tile(adata, n_side=1)
    gdml.pp.embed(adata, "box")
    assert adata.uns["gdml"]["features"]["encoder"] == "box"
    assert adata.obsm["X_box"].shape == (2, 512) and np.isfinite(adata.obsm["X_box"]).all()
