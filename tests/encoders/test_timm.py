import pytest
import timm
import torch
from safetensors.torch import save_file

from gdml.encoders import _hub, get_encoder, pathology
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
    with pytest.raises(ValueError, match="does not fit 'test_vit'"):
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


@pytest.mark.parametrize(
    ("name", "dim", "n_prefix", "n_patches", "million"), [("uni", 1024, 1, 196, 303), ("uni2-h", 1536, 9, 256, 681)]
)
def test_pathology_models_have_the_published_size(name, dim, n_prefix, n_patches, million):
    encoder = get_encoder(name, pretrained=False)
    assert (encoder.name, encoder.dim, encoder.n_prefix, encoder.tile_px) == (name, dim, n_prefix, 224)
    assert encoder._mean == (0.485, 0.456, 0.406)  # not the 0.5 that timm has for these architectures
    with torch.device("meta"):
        model = timm.create_model(encoder.architecture, **encoder._kwargs)
    assert sum(p.numel() for p in model.parameters()) // 10**6 == million
    assert model.patch_embed.num_patches == n_patches


# Arguments of timm.create_model in the model cards, which public code that loads them repeats:
# https://huggingface.co/MahmoodLab/UNI, https://huggingface.co/MahmoodLab/UNI2-h
CARDS = {
    "uni": {
        "architecture": "vit_large_patch16_224",
        "img_size": 224,
        "patch_size": 16,
        "init_values": 1e-5,
        "num_classes": 0,
        "dynamic_img_size": True,
    },
    "uni2-h": {
        "architecture": "vit_giant_patch14_224",
        "img_size": 224,
        "patch_size": 14,
        "depth": 24,
        "num_heads": 24,
        "init_values": 1e-5,
        "embed_dim": 1536,
        "mlp_ratio": 2.66667 * 2,
        "num_classes": 0,
        "no_embed_class": True,
        "mlp_layer": timm.layers.SwiGLUPacked,
        "act_layer": torch.nn.SiLU,
        "reg_tokens": 8,
        "dynamic_img_size": True,
    },
}


@pytest.mark.parametrize("name", list(CARDS))
def test_pathology_models_are_built_as_their_cards_say(name, monkeypatch):
    built = []
    create = timm.create_model

    def record(architecture, **kwargs):
        built.append({"architecture": architecture, **kwargs})
        with torch.device("meta"):
            return create(architecture, **{k: v for k, v in kwargs.items() if k != "pretrained"})

    monkeypatch.setattr(timm, "create_model", record)
    encoder = get_encoder(name, pretrained=False)
    monkeypatch.setattr(encoder, "_device", torch.device("meta"))
    model = encoder.model
    for made in built:
        assert {k: v for k, v in made.items() if k != "pretrained"} == CARDS[name]
    assert len(built) == 2 and built[1]["pretrained"] is False
    # layer scale, which checkpoints have a weight for in every block
    assert all(block.ls1.gamma.shape == block.ls2.gamma.shape == (encoder.dim,) for block in model.blocks)
    tokens = model.forward_features(torch.empty((2, 3, 224, 224), device="meta"))
    assert tokens.shape == (2, encoder.n_prefix + {"uni": 14**2, "uni2-h": 16**2}[name], encoder.dim)
    assert encoder._std == (0.229, 0.224, 0.225)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache folder of the hub, and no network."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def refuse(error):
        def download(*args, **kwargs):
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    return tmp_path, refuse


def gated() -> Exception:
    from huggingface_hub.errors import GatedRepoError

    error = GatedRepoError.__new__(GatedRepoError)  # its arguments differ between versions
    error.args = ("403 Client Error",)
    return error


def offline() -> Exception:
    from huggingface_hub.errors import LocalEntryNotFoundError

    return LocalEntryNotFoundError("no connection")


@pytest.mark.parametrize(("name", "page"), [("uni", "MahmoodLab/UNI"), ("uni2-h", "MahmoodLab/UNI2-h")])
@pytest.mark.parametrize(("error", "kind"), [(gated, PermissionError), (offline, ConnectionError)])
def test_errors_name_page_token_and_alternatives(hub, name, page, error, kind):
    hub[1](error())
    with pytest.raises(kind) as caught:
        get_encoder(name)
    for part in (name, f"huggingface.co/{page}", "HF_TOKEN", "weights=", "stain", "timm:"):
        assert part in str(caught.value)


def test_timm_weights_that_cannot_be_downloaded():
    with pytest.raises(ConnectionError, match="stain"), _hub.hub_errors("resnet18"):
        raise offline()


def test_cached_gated_weights_load_offline(hub, monkeypatch):
    cache, refuse = hub
    refuse(gated())
    torch.manual_seed(3)
    snapshot = cache / "models--MahmoodLab--UNI" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "models--MahmoodLab--UNI" / "refs").mkdir()
    (cache / "models--MahmoodLab--UNI" / "refs" / "main").write_text("abc")
    model = timm.create_model("test_vit", pretrained=False, num_classes=0)
    torch.save(model.state_dict(), snapshot / "pytorch_model.bin")
    small = pathology.Published("MahmoodLab/UNI", "test_vit", {"img_size": 160})
    encoder = pathology._factory("uni", lambda: small)()
    assert encoder.name == "uni"
    torch.testing.assert_close(encoder.model.state_dict()["norm.weight"], model.state_dict()["norm.weight"])
    encoder.encode(tiles(160))
