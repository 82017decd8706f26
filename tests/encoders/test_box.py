import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

import gdml
from gdml.encoders import get_encoder
from gdml.encoders._weights import load_weights
from gdml.encoders.box import MEAN, STD


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights and moments, as float16 and without counters of batches: what the recipe writes."""
    torch.manual_seed(0)
    net = timm.create_model("resnet18", num_classes=0).train()
    net(torch.randn(8, 3, 64, 64))  # moments of normalisations that are not zero and one
    path = tmp_path_factory.mktemp("box") / "box.safetensors"
    save_file({k: v.half().contiguous() for k, v in net.state_dict().items() if v.is_floating_point()}, path)
    return path


def test_without_weights_it_says_how_to_get_some(synthetic_adata):
    how = r'train\.py --images .* weights="box\.safetensors".* encoder="stain"'
    with pytest.raises(ValueError, match=how):
        get_encoder("box")
    with pytest.raises(ValueError, match=how):
        gdml.pp.embed(synthetic_adata, "box")
    assert "gdml" not in synthetic_adata.uns


def test_tokens_are_cells_and_pooled_is_their_mean(weights):
    encoder = get_encoder("box", weights=weights)
    assert (encoder.name, encoder.dim, encoder.tile_px, encoder.n_prefix) == ("box", 512, 224, 1)
    tiles = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens, pooled = encoder.encode(tiles)
    assert tokens.shape == (2, 50, 512)
    torch.testing.assert_close(tokens[:, 0], pooled)
    torch.testing.assert_close(tokens[:, 1:].mean(1), pooled)
    x = (tiles.permute(0, 3, 1, 2).float() / 255 - MEAN[0]) / STD[0]
    torch.testing.assert_close(encoder.model(x), pooled, rtol=1e-3, atol=1e-3)


def test_folding_changes_no_number(weights):
    encoder = get_encoder("box", weights=weights)
    plain = timm.create_model("resnet18", num_classes=0).eval()
    load_weights(plain, weights, "resnet18")
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in encoder.model.modules())
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(encoder.model(x), plain(x), rtol=1e-3, atol=1e-4)


def test_other_weights_are_another_encoder(weights, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    assert get_encoder("box", weights=copy).identity == get_encoder("box", weights=weights).identity
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    assert get_encoder("box", weights=copy).identity != get_encoder("box", weights=weights).identity
    with pytest.raises(FileNotFoundError):
        get_encoder("box", weights=tmp_path / "gone.safetensors")


def test_it_embeds(weights, synthetic_adata):
    adata = synthetic_adata[:2].copy()
    gdml.pp.tile(adata, n_side=1)
    gdml.pp.embed(adata, "box", weights=weights)
    assert adata.uns["gdml"]["features"]["encoder"] == "box"
    assert adata.obsm["X_box"].shape == (2, 512) and np.isfinite(adata.obsm["X_box"]).all()
