import pytest
import torch

from gdml import encoders
from gdml.encoders import CustomEncoder, Encoder, TimmEncoder, get_encoder, list_encoders, register


def tiles(n: int = 2, side: int = 224) -> torch.Tensor:
    return torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def mean_colour(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


class Patches(torch.nn.Module):
    """A grid of 4 x 4 patches, without a class token."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 56, 56)
        self.dropout = torch.nn.Dropout()

    def forward(self, x):
        return self.dropout(self.conv(x)).flatten(2).transpose(1, 2)


def test_names():
    assert {"box", "stain", "uni", "uni2-h"} <= set(list_encoders())
    stain = get_encoder("stain")
    assert isinstance(stain, Encoder) and stain.name == "stain"
    assert get_encoder("stain", name="mine").name == "mine"
    assert get_encoder("stain").name == "stain"


def test_registered_names_win(monkeypatch):
    monkeypatch.setattr(encoders._registry, "_registered", {})
    register("tiny", lambda *, width=3: CustomEncoder(mean_colour, name=f"tiny{width}"))
    assert get_encoder("tiny", width=5).name == "tiny5"
    assert "tiny" in list_encoders()
    with pytest.raises(ValueError, match="does not take these options"):
        get_encoder("tiny", depth=5)
    with pytest.raises(TypeError, match="callable"):
        register("x", 3)


@pytest.mark.parametrize(
    ("encoder", "error", "message"),
    [
        ("unii", ValueError, "Did you mean 'uni'"),
        ("timm:resnet5", ValueError, "Did you mean 'resnet50'"),
        ("weights.safetensors", ValueError, "pass its architecture"),
        (Patches, TypeError, "not its class"),
        (3, TypeError, "found int"),
    ],
)
def test_unknown(encoder, error, message):
    with pytest.raises(error, match=message):
        get_encoder(encoder)


def test_encoder_object_is_returned_as_it_is():
    made = CustomEncoder(mean_colour)
    assert get_encoder(made) is made
    with pytest.raises(ValueError, match="made already"):
        get_encoder(made, name="other")


def test_function():
    encoder = get_encoder(mean_colour, tile_px=32)
    tokens, pooled = encoder.encode(tiles(2, 32))
    assert encoder.name == "mean_colour" and (encoder.dim, encoder.tile_px) == (3, 32)
    assert tokens.shape == (2, 1, 3)
    x = tiles(2, 32).float().mean((1, 2)) / 255
    expected = (x - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(pooled, expected)


def test_module_runs_in_evaluation_mode_and_its_weights_are_its_identity():
    torch.manual_seed(0)
    module = Patches()
    encoder = get_encoder(module)
    first, _ = encoder.encode(tiles())
    assert first.shape == (2, 17, 8)  # the mean of a bare grid stands for the tile
    torch.testing.assert_close(first[:, 0], first[:, 1:].mean(1))
    torch.testing.assert_close(encoder.encode(tiles())[0], first, rtol=0, atol=0)
    assert get_encoder(module).identity == encoder.identity
    with torch.no_grad():
        module.conv.bias += 1
    assert get_encoder(module).identity != encoder.identity


@pytest.mark.parametrize("bad", [lambda x: x, lambda x: [x.mean((2, 3))], lambda x: x.mean((2, 3))[:1]])
def test_functions_that_return_something_else(bad):
    with pytest.raises(ValueError, match="must return a tensor"):
        get_encoder(bad)


def test_timm_model_is_named_by_prefix_or_plainly():
    plain = get_encoder("test_vit", pretrained=False, seed=1)
    assert isinstance(plain, TimmEncoder) and plain.name == "test_vit"
    assert get_encoder("timm:test_vit", pretrained=False, seed=1).identity == plain.identity
