"""DINOv2 models from files of transformers, against transformers."""

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from gdml.encoders import get_encoder

# config.json of the repositories, with fewer layers
CONFIGS = {
    # the grid of DINOv2's images of 518 px, resampled for those of 224 px
    "midnight": {
        "hidden_size": 1536,
        "num_attention_heads": 24,
        "use_swiglu_ffn": True,
        "image_size": 518,
        "patch_size": 14,
    },
    "phikon-v2": {"hidden_size": 1024, "num_attention_heads": 16, "image_size": 224, "patch_size": 16},
}


@pytest.mark.parametrize(("name", "depth"), [("midnight", 1), ("phikon-v2", 1)])
def test_same_numbers_as_transformers(name, depth, tmp_path):
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(num_hidden_layers=depth, mlp_ratio=4, **CONFIGS[name])).eval()
    with torch.no_grad():  # its first positions are small, its biases none
        for key, parameter in model.named_parameters():
            scale = 1.0 if "embeddings" in key and "patch" not in key else 0.1
            parameter.add_(scale * torch.randn_like(parameter) / max(parameter.ndim - 1, 1))
    model.save_pretrained(tmp_path)
    encoder = get_encoder(name, weights=tmp_path / "model.safetensors", depth=depth)
    tiles = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
    tokens, pooled = encoder.encode(tiles)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder._mean, encoder._std))
    with torch.inference_mode():
        expected = model((tiles.permute(0, 3, 1, 2) / 255 - mean) / std).last_hidden_state
    if name == "midnight":  # the card's extract_classification_embedding
        expected = torch.cat([expected[:, :1].expand_as(expected[:, 1:]), expected[:, 1:]], 2)
        torch.testing.assert_close(tokens[:, 1:], expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(pooled, expected.mean(1), rtol=1e-3, atol=1e-4)
    else:
        torch.testing.assert_close(tokens, expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(pooled, expected[:, 0], rtol=1e-3, atol=1e-4)


def test_timms_own_models_take_such_files_too(tmp_path):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=384, num_hidden_layers=1, num_attention_heads=6, image_size=224, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    encoder = get_encoder(
        "timm:vit_small_patch14_dinov2", weights=tmp_path / "model.safetensors", img_size=224, depth=1
    )
    assert encoder.tile_px == 224 and encoder.model.pos_embed.shape == (1, 257, 384)
