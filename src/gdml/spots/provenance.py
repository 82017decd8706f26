"""What the slides of an AnnData are known by."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from gdml import _keys
from gdml._provenance import provenance_key, spots_digest

from .images import IN_MEMORY, open_tiled
from .resolve import Spots


def fingerprint(spots: Spots, slide: str, image: Any = None) -> str:
    """Fingerprint of a slide's image; "" where the image was given in memory and is not given again.

    Parameters
    ----------
    spots
        Tiled spots.
    slide
        Name of the slide.
    image
        As in :func:`gdml.pp.tile`.
    """
    record = (spots.record(_keys.TILES) or {})["slides"][slide]
    if "fingerprint" in record:
        return str(record["fingerprint"])
    given = image.get(slide) if isinstance(image, Mapping) else image
    if given is None and record["image"] == IN_MEMORY:
        return ""
    opened = open_tiled(spots.adata, slide, given, key=spots.key)
    try:
        return opened.fingerprint()
    finally:
        if opened is not given:
            opened.close()


def slide_provenance(spots: Spots, slide: str, *, counts: Any = None, image: Any = None) -> dict[str, Any]:
    """Everything that the numbers of a slide depend on; its ``provenance_key`` is the key of the slide.

    Parameters
    ----------
    spots
        Tiled and embedded spots.
    slide
        Name of the slide.
    counts
        Spots x genes that results depend on, rows as in the AnnData; None where counts play no part.
    image
        As in :func:`gdml.pp.tile`.

    Returns
    -------
    Plain values: ``image`` (fingerprint), geometry (``um_per_px``, ``side_px``, ``tile_px``, ``n_side``,
    ``neighbors``), ``encoder`` (identity), ``precision`` and ``tokens`` of the features, and ``spots``, the digest of
    positions and counts.
    """
    tiles, features = spots.record(_keys.TILES) or {}, spots.record(_keys.FEATURES) or {}
    geometry, rows = tiles["slides"][slide], spots.slides[slide]
    scale = float(geometry["um_per_px"])
    return {
        "image": fingerprint(spots, slide, image),
        "um_per_px": scale if np.isfinite(scale) else None,
        "side_px": float(geometry["side_px"]),
        "tile_px": int(tiles["tile_px"]),
        "n_side": int(tiles["n_side"]),
        "neighbors": str(features.get("neighbors", "exact")),
        "encoder": str(features["identity"]),
        "precision": str(features["precision"]),
        "tokens": str(features["tokens"]),
        "spots": spots_digest(spots.xy[rows], None if counts is None else counts[rows]),
    }


def known_slides(spots: Spots, *, counts: Any = None, image: Any = None) -> dict[str, dict[str, str]]:
    """Collect what slides are recognised by: ``image`` (fingerprint), ``positions`` (digest) and ``key``."""
    found = {}
    for slide in spots.slides:
        about = slide_provenance(spots, slide, counts=counts, image=image)
        positions = spots_digest(spots.xy[spots.slides[slide]])
        found[slide] = {"image": about["image"], "positions": positions, "key": provenance_key(about)}
    return found


def training_slides(
    slides: Mapping[str, Mapping[str, str]], training: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Slides that are among the training slides of a model, with their name there.

    A slide is recognised by the fingerprint of its image, so that a subset of its spots and a slide under another name
    are recognised too; where a fingerprint is unknown, by the positions of its spots.

    Parameters
    ----------
    slides, training
        As :func:`known_slides` gives them.
    """
    by_image = {about["image"]: name for name, about in training.items() if about["image"]}
    by_place = {about["positions"]: name for name, about in training.items()}
    found = {}
    for name, about in slides.items():
        if about["image"] in by_image:
            found[name] = by_image[about["image"]]
        elif about["positions"] in by_place and not (
            about["image"] and training[by_place[about["positions"]]]["image"]
        ):
            found[name] = by_place[about["positions"]]
    return found


def in_training(spots: Spots, slides: list[str]) -> "pd.Series[Any]":
    """Whether each slide was among the training slides of the predictions; NA where that was not recorded."""
    record = spots.record(_keys.PREDICT) or {}
    if "in_training" in record:
        known = set(map(str, record["in_training"]))
        return pd.Series([slide in known for slide in slides], slides, dtype="boolean")
    of_comparison = "protocol" in record  # scored on slides that were held out
    return pd.Series(False if of_comparison else pd.NA, slides, dtype="boolean")
