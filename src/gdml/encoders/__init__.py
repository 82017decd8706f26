"""Tile images to tokens: the registry of frozen encoders."""

from ._base import Encoder
from ._registry import get_encoder, list_encoders, register
from .box import BoxEncoder
from .custom import CustomEncoder
from .device import Precision, resolve_device, use_bf16
from .timm_models import TimmEncoder

__all__ = [
    "BoxEncoder",
    "CustomEncoder",
    "Encoder",
    "Precision",
    "TimmEncoder",
    "get_encoder",
    "list_encoders",
    "register",
    "resolve_device",
    "use_bf16",
]
