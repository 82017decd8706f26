"""Published pathology encoders: what their model cards say, as data.

Sources are the model cards (:attr:`Published.page`) and the papers; where a card is shown only to those who were granted
access, the loading code of public toolkits repeats it: TRIDENT (https://github.com/mahmoodlab/TRIDENT,
``patch_encoder_models/load.py``) and lazyslide-models (https://github.com/rendeirolab/lazyslide-models).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Pooling = Literal["class", "class+mean", "attention"]
Layout = Literal["timm", "dinov2", "conch"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NC_ND = "CC-BY-NC-ND-4.0"
_OWN_ADDRESS = "the account's e-mail address must be that of your institution"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published encoder: where its weights are, what they fit, and how its authors use it.

    Attributes
    ----------
    title, shape
        Name in the literature, and the architecture in words.
    repository, filenames
        Repository on the Hugging Face hub, and its file of weights; the first of several that is there.
    layout
        How the tensors in the file are named: as timm, transformers' ``Dinov2Model`` or CONCH do.
    license, terms
        Licence of the weights, and what else is asked of those who request access.
    paper
        Citation.
    architecture, options, swiglu
        timm model, its arguments, and whether its blocks are gated (SwiGLU).
    pooling
        What the authors take as the embedding of a tile: the class token; the class token followed by the mean of the
        patch tokens; or attention pooling.
    mean, std
        By channel, of pixels in [0, 1].
    tile_px, um_per_px
        Side of a tile, px, and the scales of the training images, µm per px; empty where these have no one scale.
    """

    title: str
    shape: str
    repository: str
    license: str
    paper: str
    architecture: str
    terms: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    swiglu: bool = False
    filenames: tuple[str, ...] = ("pytorch_model.bin",)
    layout: Layout = "timm"
    pooling: Pooling = "class"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    tile_px: int = 224
    um_per_px: tuple[float, ...] = (0.5,)

    @property
    def page(self) -> str:
        """Page of the model card."""
        return f"https://huggingface.co/{self.repository}"

    def __str__(self) -> str:
        return f"{self.title} ({self.shape})"


# Cards of H-optimus-0 and -1: "images of size 224x224 that were extracted at 0.5 microns per pixel", and these statistics
_BIOPTIMUS: dict[str, Any] = {"mean": (0.707223, 0.578729, 0.703617), "std": (0.211883, 0.230117, 0.177517)}
_H_OPTIMUS: dict[str, Any] = {
    "shape": "ViT-g/14, 4 register tokens",
    "architecture": "vit_giant_patch14_reg4_dinov2",
    "options": {"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
    **_BIOPTIMUS,
}
_EITHER_FILE = ("model.safetensors", "pytorch_model.bin")

PUBLISHED: Mapping[str, Published] = MappingProxyType(
    {
        "uni": Published(
            title="UNI",
            shape="ViT-L/16",
            repository="MahmoodLab/UNI",
            license=_NC_ND,
            terms=_OWN_ADDRESS,
            paper="Chen et al., Nature Medicine 30, 850 (2024)",
            architecture="vit_large_patch16_224",
            options={"img_size": 224, "patch_size": 16, "init_values": 1e-5, "dynamic_img_size": True},
        ),
        "uni2-h": Published(
            title="UNI2-h",
            shape="ViT-H/14, 8 register tokens",
            repository="MahmoodLab/UNI2-h",
            license=_NC_ND,
            terms=_OWN_ADDRESS,
            paper="Chen et al., Nature Medicine 30, 850 (2024)",
            architecture="vit_giant_patch14_224",
            options={
                "img_size": 224,
                "patch_size": 14,
                "depth": 24,
                "num_heads": 24,
                "init_values": 1e-5,
                "embed_dim": 1536,
                "mlp_ratio": 2.66667 * 2,
                "no_embed_class": True,
                "reg_tokens": 8,
                "dynamic_img_size": True,
            },
            swiglu=True,
        ),
        # Card: the embedding is the class token and the mean of the tokens after the four registers, 2 x 1280.
        # Scales: section 3 of the paper (5x, 10x, 20x and 40x).
        "virchow2": Published(
            title="Virchow2",
            shape="ViT-H/14, 4 register tokens",
            repository="paige-ai/Virchow2",
            filenames=_EITHER_FILE,
            license=_NC_ND,
            terms=_OWN_ADDRESS,
            paper="Zimmermann et al., arXiv:2408.00738 (2024)",
            architecture="vit_huge_patch14_224",
            options={
                "img_size": 224,
                "init_values": 1e-5,
                "mlp_ratio": 5.3375,
                "reg_tokens": 4,
                "dynamic_img_size": True,
            },
            swiglu=True,
            pooling="class+mean",
            um_per_px=(0.25, 0.5, 1.0, 2.0),
        ),
        "h-optimus-0": Published(
            title="H-optimus-0",
            repository="bioptimus/H-optimus-0",
            license="Apache-2.0",
            paper="Saillard et al., https://github.com/bioptimus/releases (2024)",
            **_H_OPTIMUS,
        ),
        "h-optimus-1": Published(
            title="H-optimus-1",
            repository="bioptimus/H-optimus-1",
            filenames=_EITHER_FILE,
            license=_NC_ND,
            paper="Bioptimus, https://huggingface.co/bioptimus/H-optimus-1 (2025)",
            **_H_OPTIMUS,
        ),
        # Card: class token followed by the mean of the patch tokens, 2 x 768
        "h0-mini": Published(
            title="H0-mini",
            shape="ViT-B/14, 4 register tokens",
            repository="bioptimus/H0-mini",
            filenames=_EITHER_FILE,
            license=_NC_ND,
            paper="Filiot et al., arXiv:2501.16239 (2025)",
            architecture="vit_base_patch14_reg4_dinov2",
            options={"img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.33334, "dynamic_img_size": True},
            swiglu=True,
            pooling="class+mean",
            **_BIOPTIMUS,
        ),
        # Card: mean and deviation of 0.5; class token followed by the mean of the patch tokens, 2 x 1536.
        # Scales: section 2 of the paper.
        "midnight": Published(
            title="Midnight-12k",
            shape="ViT-g/14",
            repository="kaiko-ai/midnight",
            filenames=("model.safetensors",),
            layout="dinov2",
            license="MIT",
            paper="Karasikov et al., arXiv:2504.05186 (2025)",
            architecture="vit_giant_patch14_dinov2",
            options={"img_size": 224, "dynamic_img_size": True},
            pooling="class+mean",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            um_per_px=(0.25, 0.5, 1.0, 2.0),
        ),
        # Statistics of OpenAI's CLIP (open_clip_custom/factory.py of https://github.com/mahmoodlab/CONCH). README: the
        # embedding before projection and normalisation serves further models. Trained on figures with captions.
        "conch": Published(
            title="CONCH",
            shape="ViT-B/16 with attention pooling, 448 px",
            repository="MahmoodLab/CONCH",
            layout="conch",
            license=_NC_ND,
            terms=_OWN_ADDRESS,
            paper="Lu et al., Nature Medicine 30, 863 (2024)",
            architecture="vit_base_patch16_224",
            options={"img_size": 448, "dynamic_img_size": True},
            pooling="attention",
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
            tile_px=448,
            um_per_px=(),
        ),
        # Card: tiles of 256 px at 0.5 µm per px, cropped to the central 224 px: the scale is unchanged
        "gigapath": Published(
            title="Prov-GigaPath",
            shape="ViT-g/16",
            repository="prov-gigapath/prov-gigapath",
            license="Apache-2.0, research only",
            paper="Xu et al., Nature 630, 181 (2024)",
            architecture="vit_giant_patch14_dinov2",
            options={"img_size": 224, "patch_size": 16, "mlp_ratio": 5.33334, "dynamic_img_size": True},
        ),
        "phikon-v2": Published(
            title="Phikon-v2",
            shape="ViT-L/16, DINOv2",
            repository="owkin/phikon-v2",
            filenames=("model.safetensors",),
            layout="dinov2",
            license="Owkin non-commercial",
            paper="Filiot et al., arXiv:2409.09173 (2024)",
            architecture="vit_large_patch14_dinov2",
            options={"img_size": 224, "patch_size": 16, "dynamic_img_size": True},
        ),
    }
)
