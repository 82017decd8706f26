"""The encoder that comes with the package: a ResNet-18 trained on H&E."""

from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ._weights import content_id
from .timm_models import TimmEncoder

ARCHITECTURE = "resnet18"
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # as in its training


class BoxEncoder(TimmEncoder):
    """ResNet-18, self-supervised on the H&E of HER2ST: 50 tokens of 512 numbers, without a download.

    The first token is the mean of the others, which are the 7 x 7 cells of the last feature map. The guide to
    encoders has the model card: data, recipe, scores and limits.

    Parameters
    ----------
    weights
        File of weights to use instead, made by the same recipe (``recipes/box/train.py``).

    Raises
    ------
    FileNotFoundError
        If ``weights`` does not exist.
    ValueError
        If they do not fit; raised when the first tile is encoded.

    References
    ----------
    He et al., Deep residual learning for image recognition, CVPR 2016. Bardes, Ponce and LeCun, VICReg, ICLR 2022.
    Images: Andersson et al., Nature Communications 12, 6012 (2021), CC BY 4.0.
    """

    def __init__(self, *, weights: str | Path | None = None) -> None:
        shipped = files(__package__).joinpath("weights/box.safetensors")
        super().__init__(ARCHITECTURE, name="box", weights=weights or str(shipped), mean=MEAN, std=STD)

    def _prepared(self, model: Any) -> Any:
        _fold(model)
        return model

    def _identify(self, published: dict[str, Any]) -> str:
        assert self._weights is not None
        return f"box {content_id(self._weights)}"


def _fold(module: nn.Module) -> None:
    """Fold each normalisation into the convolution before it: on a CPU they take a sixth of the time."""
    children = list(module.named_children())
    for (name, conv), (after, norm) in pairwise(children):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(conv, norm))
            setattr(module, after, nn.Identity())
    for _, child in children:
        _fold(child)


ENCODERS = {"box": BoxEncoder}
