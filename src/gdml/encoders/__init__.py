"""Tile images to tokens: the registry of frozen encoders."""

from ._base import Encoder
from ._registry import factories

__all__ = ["Encoder", "factories"]
