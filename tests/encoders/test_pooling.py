"""Embeddings of the published encoders, against loops over tokens and heads."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import gelu, layer_norm, silu

from gdml.encoders import get_encoder
from gdml.encoders.pathology import PUBLISHED
from gdml.pp._tokens import thin_tokens

HEADS = {"uni": 16, "uni2-h": 24, "virchow2": 16, "h-optimus-0": 24, "h-optimus-1": 24, "h0-mini": 12, "gigapath": 24}
GATED = set(HEADS) - {"uni"}


def tiles(side: int = 224, n: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def images(name: str) -> torch.Tensor:
    card = PUBLISHED[name]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (card.mean, card.std))
    return (tiles(card.tile_px).permute(0, 3, 1, 2) / 255 - mean) / std


def random_state(shapes: dict[str, tuple[int, ...]], depth: int) -> dict[str, torch.Tensor]:
    """Random tensors for the first blocks: of norms and layer scales about 1, positions large enough to matter."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, shape in shapes.items():
        block = name.partition("blocks.")[2].partition(".")[0]
        if block and int(block) >= depth:
            continue
        value = torch.randn(shape, generator=generator)
        if "norm" in name or "ln_" in name or "gamma" in name:
            value = ("bias" not in name) + 0.1 * value
        elif len(shape) == 2:
            value = value / math.sqrt(shape[1])
        state[name] = 0.1 * value if "patch_embed" in name or name.endswith("bias") else value
    return state


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention of the queries (Q, C) of one image, head by head."""
    out = []
    for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        out.append(torch.softmax(qh @ kh.T / math.sqrt(qh.shape[1]), -1) @ vh)
    return torch.cat(out, -1)


def transformer(state: dict[str, torch.Tensor], image: torch.Tensor, heads: int, gated: bool) -> torch.Tensor:
    """Tokens (T, C) of one image (3, S, S)."""
    width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        return layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    side = image.shape[1] // patch
    kernel = state["patch_embed.proj.weight"].flatten(1)
    cut = [
        kernel @ image[:, patch * i : patch * (i + 1), patch * j : patch * (j + 1)].flatten()
        for i in range(side)
        for j in range(side)
    ]
    prefix = torch.cat([state["cls_token"][0], *([state["reg_token"][0]] if "reg_token" in state else [])])
    x, position = torch.stack(cut) + state["patch_embed.proj.bias"], state["pos_embed"][0]
    if len(position) == len(x):  # positions of patches alone
        x = torch.cat([prefix, x + position])
    else:
        x = torch.cat([prefix, x]) + position
    depth = sum(name.endswith("norm1.weight") for name in state)
    for i in range(depth):
        block = f"blocks.{i}."
        q, k, v = linear(norm(x, block + "norm1"), block + "attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, heads), block + "attn.proj") * state.get(block + "ls1.gamma", 1)
        inner = linear(norm(x, block + "norm2"), block + "mlp.fc1")
        first, second = inner.chunk(2, -1)
        inner = silu(first) * second if gated else gelu(inner)
        x = x + linear(inner, block + "mlp.fc2") * state.get(block + "ls2.gamma", 1)
    return norm(x, "norm")


def mean_of(tokens: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(tokens.shape[1])
    for token in tokens:
        total += token
    return total / len(tokens)


# the two ViT-B, H0-mini here and CONCH below, in their real size; the others with one block
@pytest.mark.parametrize(
    ("name", "depth"),
    [("uni", 1), ("uni2-h", 1), ("virchow2", 1), ("h-optimus-0", 1), ("h0-mini", 12), ("gigapath", 1)],
)
def test_tokens_and_embedding(name, depth, published_shapes, tmp_path):
    state = random_state(published_shapes[name], depth)
    save_file(state, tmp_path / "model.safetensors")
    encoder = get_encoder(name, weights=tmp_path / "model.safetensors", depth=depth)
    tokens, pooled = encoder.encode(tiles())
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    for b, image in enumerate(images(name)):
        expected = transformer(state, image, HEADS[name], name in GATED)
        class_token, patches = expected[0], expected[1 + registers :]
        if PUBLISHED[name].pooling == "class+mean":
            torch.testing.assert_close(pooled[b], torch.cat([class_token, mean_of(patches)]), rtol=1e-3, atol=1e-3)
            for i in (0, 17, 255):
                torch.testing.assert_close(tokens[b, 1 + i], torch.cat([class_token, patches[i]]), rtol=1e-3, atol=1e-3)
        else:
            torch.testing.assert_close(pooled[b], class_token, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(tokens[b], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(tokens[:, 0], pooled)


def test_mean_of_the_patch_tokens_is_the_embedding():
    encoder = get_encoder("h0-mini", pretrained=False, depth=1)
    narrow = get_encoder("h0-mini", pretrained=False, depth=1, pooling="class")
    tokens, pooled = encoder.encode(tiles())
    assert tokens.shape == (1, 1 + 16**2, 2 * 768) and encoder.n_prefix == 1
    torch.testing.assert_close(tokens[:, 1:].mean(1), pooled)
    plain, class_token = narrow.encode(tiles())
    assert plain.shape == (1, 5 + 16**2, 768)
    torch.testing.assert_close(class_token, pooled[:, :768])
    thin = thin_tokens(tokens, pooled, "grid7", encoder.n_prefix)
    assert thin.shape == (1, 50, 1536)
    torch.testing.assert_close(thin[:, 0], pooled)
    # the class token is the same in all; cells of 16 x 16 patches overlap, so that their mean is close to the embedding
    torch.testing.assert_close(thin[:, :, :768], pooled[:, None, :768].expand(-1, 50, -1))
    assert (thin[:, 1:].mean(1) - pooled).abs().max() < 0.2 * tokens[:, 1:].std(1).max()


@pytest.mark.parametrize("depth", [1, pytest.param(12, marks=pytest.mark.slow)])
def test_conch_is_pooled_by_attention(depth, published_shapes, tmp_path):
    state = random_state(published_shapes["conch"], depth)
    torch.save(state, tmp_path / "pytorch_model.bin")
    encoder = get_encoder("conch", weights=tmp_path / "pytorch_model.bin", depth=depth)
    tokens, pooled = encoder.encode(tiles(448))
    assert tokens.shape == (1, 1, 512) and encoder.n_prefix == 1
    for budget in ("grid7", "all", "pooled"):
        torch.testing.assert_close(thin_tokens(tokens, pooled, budget, 1), pooled[:, None])
    visual = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    trunk = {key.removeprefix("trunk."): value for key, value in visual.items()}
    pool = {key.removeprefix("attn_pool_contrast."): value for key, value in visual.items()}
    bias = pool["attn.in_proj_bias"].chunk(3)
    for b, image in enumerate(images("conch")):
        context = transformer(trunk, image, 12, gated=False)
        context = layer_norm(context, (768,), pool["ln_k.weight"], pool["ln_k.bias"])
        query = layer_norm(pool["query"], (512,), pool["ln_q.weight"], pool["ln_q.bias"])
        q, k, v = (
            x @ pool[f"attn.{part}_proj_weight"].T + shift
            for x, part, shift in zip((query, context, context), "qkv", bias, strict=True)
        )
        out = attend(q, k, v, 8) @ pool["attn.out_proj.weight"].T + pool["attn.out_proj.bias"]
        expected = layer_norm(out[0], (512,), visual["ln_contrast.weight"], visual["ln_contrast.bias"])
        torch.testing.assert_close(pooled[b], expected, rtol=1e-3, atol=1e-3)
