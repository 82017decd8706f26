"""Frozen encoders, which turn tile images into tokens, and their registry."""

from ._base import Encoder
from ._registry import get_encoder, list_encoders, register
from .box import BoxEncoder
from .custom import CustomEncoder
from .timm_models import TimmEncoder

__all__ = ["BoxEncoder", "CustomEncoder", "Encoder", "TimmEncoder", "get_encoder", "list_encoders", "register"]


def __dir__() -> list[str]:
    return sorted(__all__)
