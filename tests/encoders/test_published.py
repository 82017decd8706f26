import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gdml.encoders import get_encoder, list_encoders
from gdml.encoders._weights import content_id
from gdml.encoders.pathology import PUBLISHED

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BIOPTIMUS = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MIXED = (0.25, 0.5, 1.0, 2.0)

# From the model cards at https://huggingface.co/{repository}; cards that are shown on request are repeated by the code
# of TRIDENT (trident/patch_encoder_models/load.py, README) and lazyslide-models (vision/*.py), which agree. Scales of
# Virchow2 and Midnight: arXiv:2408.00738 and arXiv:2504.05186. Parameters, in millions, of the published file: UNI,
# Virchow2, H0-mini and Phikon-v2 as in lazyslide-models (param_size); the ViT-g as on the cards, 1.13 billion, with
# 2.1 million more positions in DINOv2's own grid.
# repository, licence, statistics, px, µm per px, tokens before the patches, patches, width of the model and embedding
CARDS = {
    "uni": ("MahmoodLab/UNI", "CC-BY-NC-ND-4.0", IMAGENET, 224, (0.5,), 1, 14**2, 1024, 1024, 303.4),
    "uni2-h": ("MahmoodLab/UNI2-h", "CC-BY-NC-ND-4.0", IMAGENET, 224, (0.5,), 9, 16**2, 1536, 1536, 681.4),
    "virchow2": ("paige-ai/Virchow2", "CC-BY-NC-ND-4.0", IMAGENET, 224, MIXED, 5, 16**2, 1280, 2560, 631.2),
    "h-optimus-0": ("bioptimus/H-optimus-0", "Apache-2.0", BIOPTIMUS, 224, (0.5,), 5, 16**2, 1536, 1536, 1134.8),
    "h-optimus-1": ("bioptimus/H-optimus-1", "CC-BY-NC-ND-4.0", BIOPTIMUS, 224, (0.5,), 5, 16**2, 1536, 1536, 1134.8),
    "h0-mini": ("bioptimus/H0-mini", "CC-BY-NC-ND-4.0", BIOPTIMUS, 224, (0.5,), 5, 16**2, 768, 1536, 85.7),
    "midnight": ("kaiko-ai/midnight", "MIT", HALF, 224, MIXED, 1, 16**2, 1536, 3072, 1136.5),
    "conch": ("MahmoodLab/CONCH", "CC-BY-NC-ND-4.0", CLIP, 448, (), 1, 0, 512, 512, None),
    "gigapath": ("prov-gigapath/prov-gigapath", "Apache-2.0", IMAGENET, 224, (0.5,), 1, 14**2, 1536, 1536, 1135.0),
    "phikon-v2": ("owkin/phikon-v2", "Owkin non-commercial", IMAGENET, 224, (0.5,), 1, 14**2, 1024, 1024, 303.4),
}


def test_all_are_there():
    assert set(PUBLISHED) == set(CARDS) <= set(list_encoders())


@pytest.mark.parametrize("name", list(CARDS))
def test_files_of_the_published_architecture_load(name, stand_in, published_shapes):
    repository, licence, statistics, px, scales, prefix, patches, width, dim, million = CARDS[name]
    published = PUBLISHED[name]
    assert published.repository == repository and licence in published.license
    assert published.page == f"https://huggingface.co/{repository}"
    encoder = get_encoder(name, weights=stand_in(name))
    assert (encoder.name, encoder.tile_px, encoder.dim, encoder.um_per_px) == (name, px, dim, scales)
    assert (encoder._mean, encoder._std) == statistics
    assert encoder.n_prefix == (1 if dim == 2 * width else prefix)
    model = encoder.model
    assert not any(parameter.is_meta or parameter.requires_grad for parameter in model.parameters())
    assert model.num_prefix_tokens == prefix and model.num_features == width
    if patches:
        assert model.patch_embed.num_patches == patches
    if million:
        numbers = sum(math.prod(shape) for shape in published_shapes[name].values())
        assert round(numbers / 1e6, 1) == pytest.approx(million)


GOLDEN = {
    "uni": "timm vit_large_patch16_224 dynamic_img_size=True img_size=224 init_values=1e-05 num_classes=0 patch_size=16 "
    "mean=(0.485, 0.456, 0.406) std=(0.229, 0.224, 0.225) ",
    "uni2-h": "timm vit_giant_patch14_224 act_layer=SiLU depth=24 dynamic_img_size=True embed_dim=1536 img_size=224 "
    "init_values=1e-05 mlp_layer=GluMlp mlp_ratio=5.33334 no_embed_class=True num_classes=0 num_heads=24 patch_size=14 "
    "reg_tokens=8 mean=(0.485, 0.456, 0.406) std=(0.229, 0.224, 0.225) ",
}


@pytest.mark.parametrize("name", list(GOLDEN))
def test_identities_of_earlier_versions_are_kept(name, stand_in):
    assert get_encoder(name, weights=stand_in(name)).identity == GOLDEN[name] + content_id(stand_in(name))


def test_identity_tells_weights_and_pooling_apart(stand_in, published_shapes, tmp_path):
    ours = get_encoder("h0-mini", weights=stand_in("h0-mini"))
    assert content_id(stand_in("h0-mini")) in ours.identity
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other weights")  # content counts, and is not read before a tile is encoded
    assert get_encoder("h0-mini", weights=other).identity != ours.identity
    narrow = get_encoder("h0-mini", weights=stand_in("h0-mini"), pooling="class")
    assert narrow.identity != ours.identity and (narrow.dim, narrow.n_prefix) == (768, 5)


@pytest.mark.parametrize(
    ("name", "pooling", "known"),
    [("uni", "attention", "class"), ("uni", "mean", "class"), ("conch", "class", "attention")],
)
def test_pooling_that_a_model_has_not(name, pooling, known):
    with pytest.raises(ValueError, match=f"'{name}' has '{known}"):
        get_encoder(name, pretrained=False, pooling=pooling)


@pytest.mark.parametrize(
    ("passed", "to", "named"),
    [
        ("virchow2", "uni", ["UNI (ViT-L/16)", "Virchow2 (ViT-H/14, 4 register tokens)", "encoder='virchow2'"]),
        ("h-optimus-1", "uni", ["UNI", "encoder='h-optimus-0' or encoder='h-optimus-1'"]),
        ("conch", "timm:vit_base_patch16_224", ["'vit_base_patch16_224'", "CONCH", "encoder='conch'"]),
        # the same architecture, told by the names in the file
        ("phikon-v2", "uni", ["UNI (ViT-L/16)", "Phikon-v2", "encoder='phikon-v2'"]),
        ("uni", "phikon-v2", ["Phikon-v2", "the weights of UNI (ViT-L/16)", "encoder='uni'"]),
    ],
)
def test_weights_of_another_model_are_refused_by_name(passed, to, named, stand_in):
    encoder = get_encoder(to, weights=stand_in(passed))
    with pytest.raises(ValueError) as caught:
        _ = encoder.model
    for part in [stand_in(passed).name, *named]:
        assert part in str(caught.value)


def test_weights_of_no_known_model_are_compared(tmp_path, stand_in):
    path = tmp_path / "w.safetensors"
    save_file({"cls_token": torch.zeros(1, 1, 7), "other": torch.zeros(2)}, path)
    with pytest.raises(ValueError) as caught:
        _ = get_encoder("h0-mini", weights=path).model
    found = str(caught.value)
    assert "H0-mini" in found and "has 1 tensor that the model has not, such as 'other'" in found
    assert "(1, 1, 7) in place of (1, 1, 768)" in found and re.search(r"lacks 1\d\d tensors", found)
    # an option of the user, not the file
    with pytest.raises(ValueError, match="'pos_embed'.*in place of") as caught:
        _ = get_encoder("h0-mini", weights=stand_in("h0-mini"), img_size=448).model
    assert "these are the weights of" not in str(caught.value)


def test_the_guide_lists_each():
    guide = Path(__file__).parents[2] / "docs" / "guide" / "encoders.md"
    rows = {
        line.partition(" |")[0].strip('| `"'): line for line in guide.read_text().splitlines() if line.startswith("| `")
    }
    for name, (repository, licence, _, px, scales, *_, dim, _) in CARDS.items():
        cells = [cell.strip() for cell in rows[name].strip("|").split("|")]
        scale = " to ".join(f"{x:g}" for x in (scales[0], *scales[1:][-1:])) if scales else "mixed"
        assert cells[2:5] == [str(dim), str(px), scale], name
        assert f"https://huggingface.co/{repository}" in cells[1] and licence in cells[6], name
