"""Features that another program computed: kept as gdml keeps its own, and used only where they fit."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gdml import _keys

from .resolve import Spots

SOURCE = "source"  # uns[key]["features"]: the program that computed the features; absent where it was gdml


def source_of(features: Mapping[str, Any] | None) -> str:
    """Program that computed the features of a record; empty where it was gdml, or where there is no record."""
    return str((features or {}).get(SOURCE, ""))


def uses_external(spots: Spots, features: Mapping[str, Any]) -> bool:
    """Whether spots, or a model with the record ``features``, have features of another program."""
    return bool(source_of(spots.record(_keys.FEATURES)) or source_of(features))


def refuse_to_encode(features: Mapping[str, Any]) -> None:
    """Refuse to encode tiles for a model with the record ``features`` if another program computed them.

    Raises
    ------
    ValueError
        With what to do instead.
    """
    if source_of(features):
        raise ValueError(
            f"The model was trained on features that {source_of(features)} computed ({features['identity']!r}), which "
            "gdml cannot compute: predict slides that it has computed them of, "
            "gdml.tl.predict(gdml.io.read_features(path), model)."
        )


def check_fits(spots: Spots, tiles: Mapping[str, Any], features: Mapping[str, Any], **given: Any) -> None:
    """Refuse spots whose features a model was not trained on, where either are those of another program.

    Such features cannot be computed again by gdml, and those of one program stand for no other's: preprocessing and
    precision differ even with the same weights.

    Parameters
    ----------
    spots
        Spots to predict.
    tiles, features
        Of the model: geometry of its tiles, and record of its features.
    **given
        Arguments of the verb that say how tiles are made and encoded; None where they were not passed.

    Raises
    ------
    ValueError
        If the features do not fit, with the reason.
    """
    own = spots.record(_keys.FEATURES)
    source, wanted = source_of(own), source_of(features)
    read = "gdml.io.read_features(path, adata=adata)"
    if own is None or not source:
        found = "`adata` has none" if own is None else f"those of `adata` were computed by gdml ({own['identity']!r})"
        raise ValueError(
            f"The model was trained on features that {wanted} computed ({features['identity']!r}), which gdml cannot "
            f"compute; {found}. Read those of these slides: {read}."
        )
    again = (
        "To encode the tiles with the model's encoder, del adata.uns"
        f"[{spots.key!r}]['features'] and call gdml.tl.predict again; the images are needed then."
    )
    if not wanted:
        raise ValueError(
            f"The features of `adata` were computed by {source} ({own['identity']!r}), those that the model was trained "
            f"on by gdml ({features['identity']!r}). They are not interchangeable: images are read and scaled "
            f"differently. {again}"
        )
    for name in ("identity", "dim"):
        if str(own[name]) != str(features[name]):
            raise ValueError(
                f"The encoder does not fit: the model was trained on features {features['identity']!r} (D = "
                f"{features['dim']}), `adata` has {own['identity']!r} (D = {own['dim']}). Compute those of the model's "
                f"encoder with {wanted}, and read them: {read}."
            )
    laid = spots.record(_keys.TILES) or {}
    shown = lambda um, px: f"{'native pixels' if um is None or not np.isfinite(um) else f'{float(um):.4g} um'}, {px} px"
    theirs, ours = (tiles["tile_um"], tiles["tile_px"]), (float(laid["tile_um"]), int(laid["tile_px"]))
    if shown(*theirs) != shown(*ours):
        raise ValueError(
            f"The tiles do not fit: the model was trained on tiles of {shown(*theirs)}, the features of `adata` are of "
            f"tiles of {shown(*ours)}. Compute features of such tiles with {wanted}, and read them: {read}."
        )
    if int(laid["n_side"]) != tiles["n_side"]:
        raise ValueError(
            f"The neighbour regions do not fit: {tiles['n_side']} tiles a side for the model, {laid['n_side']} for `adata`. "
            f"Read the features again: gdml.io.read_features(path, adata=adata, n_side={tiles['n_side']})."
        )
    for name, value in given.items():
        if value is not None:
            mend = "Pass it to gdml.io.read_features." if name == "um_per_px" else again
            raise ValueError(f"`{name}` has no effect on features that {source} computed; leave it out. {mend}")
