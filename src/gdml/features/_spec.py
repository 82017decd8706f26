"""What decides the numbers of a feature, as a key."""

import hashlib
import json
from dataclasses import asdict, dataclass

FORMAT = 2  # of the store on disk; raised whenever what it holds changes its meaning


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that the features of a tile depend on, its place aside.

    Parameters
    ----------
    image
        Fingerprint of the image's content.
    encoder
        Identity of the encoder, with the precision it ran in.
    um_per_px
        Micrometres per full-resolution px; NaN where unknown.
    side_px
        Side of a tile, full-resolution px.
    tile_px
        Side of the image that the encoder is given, px.
    tokens
        Token budget: ``"grid7"``, ``"all"`` or ``"pooled"``.
    view
        Which of the eight turns and mirrorings the tile was given in: 0 is as it lies in the slide.
    """

    image: str
    encoder: str
    um_per_px: float
    side_px: float
    tile_px: int
    tokens: str
    view: int = 0

    def key(self) -> str:
        """Hash of what decides the numbers, hexadecimal: equal keys, equal features.

        The micrometres per pixel are left out: they reach the pixels through ``side_px`` alone. The version
        of the store's format is in, so that a store of another version is never taken for this one.
        """
        decisive = {name: value for name, value in asdict(self).items() if name != "um_per_px"}
        text = json.dumps({**decisive, "format": FORMAT}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
