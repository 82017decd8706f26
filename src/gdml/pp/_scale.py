"""Scale of the tiles, and that of the images an encoder was trained on."""

from typing import TYPE_CHECKING, Any

from scanpy import logging as logg

if TYPE_CHECKING:
    from gdml.encoders import Encoder

_FACTOR = 1.5


def warn_of_scale(tiles: dict[str, Any], encoder: "Encoder") -> None:
    """Warn if the tiles have another scale than the training images of the encoder, as far as both are known.

    Parameters
    ----------
    tiles
        Record of :func:`gdml.pp.tile`.
    encoder
        Its attribute ``um_per_px`` has the scales of its training images, µm per px.
    """
    trained: tuple[float, ...] = getattr(encoder, "um_per_px", ())
    found = float(tiles["tile_um"]) / int(tiles["tile_px"])  # NaN where the tiles have native pixels
    if not trained or not max(min(trained) / found, found / max(trained)) > _FACTOR:
        return
    nearest = min(trained) if found < min(trained) else max(trained)
    logg.warning(
        f"embed: the tiles have {found:.2g} µm per px, but {encoder.name!r} was trained at {nearest:g}; "
        f"gdml.pp.tile(adata, tile_um={nearest * encoder.tile_px:g}, tile_px={encoder.tile_px}) has that scale"
    )
