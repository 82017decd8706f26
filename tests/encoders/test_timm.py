import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from gdml.encoders import _hub, get_encoder
from gdml.encoders._weights import content_id


def tiles(side: int, n: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ["test_vit", "test_vit3", "test_resnet", "test_convnext", "test_efficientnet"])
def test_first_token_is_the_models_own_pooling(architecture):
    encoder = get_encoder(architecture, pretrained=False)
    tokens, pooled = encoder.encode(tiles(encoder.tile_px))
    n_patches = tokens.shape[1] - encoder.n_prefix
    assert round(n_patches**0.5) ** 2 == n_patches
    assert tokens.shape[2] == pooled.shape[1] == encoder.dim
    torch.testing.assert_close(tokens[:, 0], pooled)
    config = timm.data.resolve_model_data_config(encoder.model)
    x = tiles(encoder.tile_px).permute(0, 3, 1, 2) / 255
    x = (x - torch.tensor(config["mean"]).view(3, 1, 1)) / torch.tensor(config["std"]).view(3, 1, 1)
    with torch.inference_mode():
        expected = encoder.model(x)  # num_classes=0: pooled features
    if expected.shape == pooled.shape:
        torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)


def test_seed_and_global_random_state():
    state = torch.random.get_rng_state()
    a, b, c = (get_encoder("test_vit", pretrained=False, seed=s) for s in (0, 0, 1))
    x = tiles(160)
    torch.testing.assert_close(a.encode(x)[0], b.encode(x)[0], rtol=0, atol=0)
    assert not torch.allclose(a.encode(x)[0], c.encode(x)[0])
    assert a.identity == b.identity != c.identity
    assert torch.equal(state, torch.random.get_rng_state())


def test_mean_and_deviation_can_be_given():
    plain = get_encoder("test_vit", pretrained=False)
    given = get_encoder("test_vit", pretrained=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert given.identity != plain.identity
    with torch.inference_mode():
        expected = given.model(tiles(160).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(given.encode(tiles(160))[1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_file(tmp_path, suffix):
    torch.manual_seed(5)
    model = timm.create_model("test_vit", pretrained=False).eval()  # has a classifier, which is left out
    path = tmp_path / f"weights{suffix}"
    state = model.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    encoder = get_encoder("test_vit", weights=path)
    model.reset_classifier(0)
    x = tiles(160)
    expected = get_encoder(model, tile_px=160, mean=encoder._mean, std=encoder._std).encode(x)[1]
    torch.testing.assert_close(encoder.encode(x)[1], expected)
    assert content_id(path) in encoder.identity


def test_weights_that_dont_fit(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="does not fit 'test_vit': the file lacks"):
        get_encoder("test_vit", weights=path).encode(tiles(160))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="damaged"):
        get_encoder("test_vit", weights=path).encode(tiles(160))
    with pytest.raises(FileNotFoundError, match="no file"):
        get_encoder("test_vit", weights=tmp_path / "none.pt")


def test_no_code_of_a_file_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("code of the file was run",))

    path = tmp_path / "w.pt"
    torch.save({"a": Trap()}, path)
    with pytest.raises(ValueError, match="more than tensors"):
        get_encoder("test_vit", weights=path).encode(tiles(160))


def test_timm_weights_that_cannot_be_downloaded():
    with pytest.raises(ConnectionError, match="stain"), _hub.hub_errors("resnet18"):
        raise LocalEntryNotFoundError("no connection")


def test_image_size_of_a_model_with_another_default():
    encoder = get_encoder("test_vit", pretrained=False, img_size=96)
    assert encoder.tile_px == 96
    assert encoder.encode(tiles(96))[0].shape[1] == 1 + (96 // 16) ** 2
