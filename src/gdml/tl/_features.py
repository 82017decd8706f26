"""Tiles and features that a verb needs and that were not made yet."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from scanpy import logging as logg

from gdml import _keys
from gdml.pp.embedding import embed_spots
from gdml.spots.measured import normalize_spots
from gdml.spots.resolve import Spots
from gdml.spots.tiles import tile_spots

if TYPE_CHECKING:
    from gdml.training import TrainedModel


def run_missing_steps(spots: Spots, verb: str, normalization: str | None = None) -> list[str]:
    """Tile, normalise and embed with defaults where that was not done.

    Parameters
    ----------
    spots
        Spots to learn from.
    verb
        Name of the verb that needs the steps, for messages.
    normalization
        Normalisation to use where none was recorded; None if the verb needs none.

    Returns
    -------
    Names of the steps that were run.
    """
    steps = []
    if spots.record(_keys.TILES) is None:
        steps.append("tile")
        with _run_by(verb, "gdml.pp.tile(adata)"):
            tile_spots(spots)
    # counts are checked before the features, which take longest
    ready = _keys.measured(spots.key) in spots.adata.obsm and spots.record(_keys.NORMALIZATION) is not None
    if normalization is not None and not ready:
        steps.append("normalize" if normalization == "scanpy" else f"normalize ({normalization!r})")
        with _run_by(verb, "gdml.pp.normalize(adata)"):
            normalize_spots(spots, normalization, stacklevel=5)
    if spots.record(_keys.FEATURES) is None:
        steps.append("embed")
        with _run_by(verb, "gdml.pp.embed(adata)"):
            embed_spots(spots)
    return steps


def make_features(
    spots: Spots,
    model: "TrainedModel",
    *,
    image: Any = None,
    encoder: Any = None,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_pitch_um: float | None = None,
    device: Any = "auto",
    precision: Any = "auto",
) -> list[str]:
    """Tile and embed with the geometry and encoder of a model, where that was not done.

    Parameters
    ----------
    spots
        Spots to predict.
    model
        Its ``tiles`` and ``features`` say what is needed: geometry, encoder, tokens and kind of neighbour tiles.
    image, um_per_px, spot_pitch_um
        As in :func:`gdml.pp.tile`; tiles are made again where a scale is given.
    encoder, device, precision
        As in :func:`gdml.tl.predict`.

    Returns
    -------
    Names of the steps that were run.
    """
    steps = []
    want, tiles = model.tiles, spots.record(_keys.TILES)
    rescaled = um_per_px is not None or spot_pitch_um is not None
    if tiles is None or rescaled or not (_same_geometry(tiles, want) and _same_columns(tiles, spots)):
        logg.info(f"predict: running gdml.pp.tile(adata) with the model's geometry ({_geometry_text(want)})")
        steps.append("tile")
        tile_spots(
            spots,
            want["tile_um"],
            tile_px=want["tile_px"],
            n_side=want["n_side"],
            image=image,
            um_per_px=um_per_px,
            spot_pitch_um=spot_pitch_um,
        )
    features = spots.record(_keys.FEATURES)
    if features is None or not _same_features(features, model):
        steps.append("embed")
        logg.info(f"predict: running gdml.pp.embed(adata, encoder={model.features['encoder']!r}), the model's encoder")
        embed_spots(
            spots,
            model_encoder(model, encoder),
            tokens=model.features["tokens"],
            neighbors=model.features.get("neighbors", "exact"),
            image=image,
            device=device,
            precision=precision,
        )
    return steps


@contextmanager
def _run_by(verb: str, step: str) -> Iterator[None]:
    """Add to errors of a step which call takes the arguments that their messages name."""
    logg.info(f"{verb}: running {step} with its defaults")
    try:
        yield
    except Exception as error:
        error.add_note(f"gdml.tl.{verb} ran {step} with its defaults; call it yourself first to pass it arguments.")
        raise


def model_encoder(model: "TrainedModel", encoder: Any = None) -> Any:
    """Make the encoder of a model, and check its identity.

    Parameters
    ----------
    model
        Its ``features`` say which encoder it was trained with.
    encoder
        As in :func:`gdml.tl.predict`.

    Raises
    ------
    ValueError
        If the encoder is not built in and was not passed, or is another one.
    """
    from gdml.encoders import get_encoder

    name, identity = model.features["encoder"], model.features["identity"]
    mend = "pass the encoder that it was trained with: gdml.tl.predict(adata, model, encoder=...)"
    if encoder is None:
        try:
            encoder = get_encoder(name)
        except ValueError as error:
            raise ValueError(f"The model's encoder is {name!r}, which is not built in: {mend}.") from error
    else:
        encoder = get_encoder(encoder)
    if encoder.identity != identity:
        raise ValueError(f"The model's encoder is {identity!r}, found {encoder.identity!r}: {mend}.")
    return encoder


def _same_geometry(tiles: Any, want: dict[str, Any]) -> bool:
    um = float(tiles["tile_um"])
    same_um = not np.isfinite(um) if want["tile_um"] is None else bool(np.isclose(um, want["tile_um"]))
    return same_um and all(int(tiles[k]) == want[k] for k in ("tile_px", "n_side"))


def _same_columns(tiles: Any, spots: Spots) -> bool:
    return (str(tiles["library_key"]), str(tiles["spatial_key"])) == (spots.library_key, spots.spatial_key)


def _geometry_text(want: dict[str, Any]) -> str:
    side = f"{want['tile_um']:g} um" if want["tile_um"] else "native pixels"
    return f"tiles of {want['tile_px']} px, {side}, {want['n_side']} x {want['n_side']}"


def _same_features(features: Any, model: "TrainedModel") -> bool:
    kind = lambda record: (*(str(record[k]) for k in ("identity", "tokens")), str(record.get("neighbors", "exact")))
    return "keys" in features and kind(features) == kind(model.features)  # earlier versions have other stores
