"""What decides the numbers of a feature, as a key."""

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that the features of a slide depend on.

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
    n_side
        Tiles along a side of the neighbour region.
    tokens
        Token budget: ``"grid7"``, ``"all"`` or ``"pooled"``.
    """

    image: str
    encoder: str
    um_per_px: float
    side_px: float
    tile_px: int
    n_side: int
    tokens: str

    def key(self) -> str:
        """Hash of what decides the numbers, hexadecimal: equal keys, equal features.

        The micrometres per pixel are left out: they reach the pixels through ``side_px`` alone.
        """
        decisive = {name: value for name, value in asdict(self).items() if name != "um_per_px"}
        return hashlib.blake2b(json.dumps(decisive, sort_keys=True).encode(), digest_size=16).hexdigest()
