"""Everything that the features of a tile depend on, as a key."""

from dataclasses import asdict, dataclass

from gdml._provenance import provenance_key

FORMAT = 3  # of the store on disk; raised whenever the meaning of its content changes


@dataclass(frozen=True)
class FeatureSpec:
    """Everything that the features of a tile depend on, except its position.

    Parameters
    ----------
    image
        Fingerprint of the content of the image.
    encoder
        Identity of the encoder, with the precision of the computation.
    um_per_px
        Micrometres per full-resolution px; NaN if unknown.
    side_px
        Side of a tile, full-resolution px.
    tile_px
        Side of the image that the encoder receives, px.
    tokens
        Token budget: ``"grid7"``, ``"all"`` or ``"pooled"``.
    """

    image: str
    encoder: str
    um_per_px: float
    side_px: float
    tile_px: int
    tokens: str

    def key(self) -> str:
        """Provenance key, hexadecimal: equal keys, equal features.

        The micrometres per pixel are left out, since they reach the pixels through ``side_px`` alone. The format of
        the store is included, so that a store of another format has another key.
        """
        decisive = {name: value for name, value in asdict(self).items() if name != "um_per_px"}
        return provenance_key({**decisive, "format": FORMAT})
