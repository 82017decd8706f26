"""Tiles and features of the kind that a model was trained on."""

from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from gdml import _keys
from gdml.pp import embed, tile

if TYPE_CHECKING:
    from gdml.training import TrainedModel


def make_features(
    adata: AnnData, model: "TrainedModel", image: Any, encoder: Any, device: Any, precision: Any, key: str
) -> None:
    """Tile and embed with the model's geometry and encoder, where that has not been done."""
    want = model.tiles
    tiles = adata.uns.get(key, {}).get(_keys.TILES)
    if tiles is None or not _same_geometry(tiles, want):
        logg.info(f"predict: running gdml.pp.tile(adata) with the model's geometry ({_geometry_text(want)})")
        keys = {"library_key": _keys.LIBRARY, "spatial_key": _keys.SPATIAL} if tiles is None else tiles
        tile(
            adata,
            want["tile_um"],
            tile_px=want["tile_px"],
            n_side=want["n_side"],
            image=image,
            library_key=str(keys["library_key"]),
            spatial_key=str(keys["spatial_key"]),
            key_added=key,
        )
    features = adata.uns[key].get(_keys.FEATURES)
    if features is None or not _same_features(features, model):
        name = model.features["encoder"]
        logg.info(f"predict: running gdml.pp.embed(adata, encoder={name!r}), the model's encoder")
        made = _encoder(model, encoder)
        embed(
            adata,
            made,
            tokens=model.features["tokens"],
            neighbors=model.features.get("neighbors", "exact"),
            image=image,
            device=device,
            precision=precision,
            key_added=key,
        )


def _encoder(model: "TrainedModel", encoder: Any) -> Any:
    """Make the encoder of the model, and check that it is the same one."""
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


def _geometry_text(want: dict[str, Any]) -> str:
    side = f"{want['tile_um']:g} um" if want["tile_um"] else "native pixels"
    return f"tiles of {want['tile_px']} px, {side}, {want['n_side']} x {want['n_side']}"


def _same_features(features: Any, model: "TrainedModel") -> bool:
    kind = lambda record: (*(str(record[k]) for k in ("identity", "tokens")), str(record.get("neighbors", "exact")))
    return "keys" in features and kind(features) == kind(model.features)  # stores of gdml 0.1 cannot be read
