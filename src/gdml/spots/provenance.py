"""What the slides of an AnnData are recognised by."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gdml import _keys
from gdml._provenance import array_digest, provenance_key, spots_digest

from .external import source_of
from .resolve import Spots


def fingerprint(spots: Spots, slide: str) -> str:
    """Fingerprint of the image of a slide, as it was tiled or embedded."""
    return str((spots.record(_keys.TILES) or {})["slides"][slide]["fingerprint"])


def encoder_record(spots: Spots) -> dict[str, Any]:
    """Give the encoder of the features as a model keeps it: what was recorded, less where the features lie."""
    features = spots.record(_keys.FEATURES) or {}
    return plain({k: v for k, v in features.items() if k not in ("stores", "keys", "obsm")})


def tile_geometry(tiles: Any) -> dict[str, Any]:
    """Geometry of tiles that a model depends on; ``tile_um`` is None for native pixels."""
    um = float(tiles["tile_um"])
    return {
        "tile_um": um if np.isfinite(um) else None,
        "tile_px": int(tiles["tile_px"]),
        "n_side": int(tiles["n_side"]),
    }


def plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Python numbers, strings and lists instead of numpy's, which h5ad returns and JSON refuses."""
    return {k: v.tolist() if isinstance(v, np.generic | np.ndarray) else v for k, v in record.items()}


def slide_key(spots: Spots, slide: str, *, counts: Sequence[bytes] | None = None) -> str:
    """Key of everything that the numbers of a slide depend on: image, geometry, features, positions and counts.

    Parameters
    ----------
    spots
        Tiled and embedded spots.
    slide
        Name of the slide.
    counts
        :func:`gdml._provenance.row_digests` of the counts or expression of all spots; None where they play no part.
    """
    tiles, features = spots.record(_keys.TILES) or {}, spots.record(_keys.FEATURES) or {}
    rows, geometry = spots.slides[slide], tiles["slides"][slide]
    # of another program, whose features of one slide and encoder may differ: by their content
    content = {"features": str(features["keys"][slide])} if source_of(features) else {}
    return provenance_key(
        {
            **content,
            "image": fingerprint(spots, slide),
            "geometry": {
                **{name: str(geometry[name]) for name in ("um_per_px", "side_px")},
                **{name: int(tiles[name]) for name in ("tile_px", "n_side")},
                "neighbors": str(features.get("neighbors", "exact")),
            },
            "encoder": {name: str(features[name]) for name in ("identity", "precision", "tokens")},
            "grid": array_digest(spots.grid(slide)),
            "spots": spots_digest(spots.xy[rows], None if counts is None else [counts[row] for row in rows]),
        }
    )


def known_slides(spots: Spots, *, counts: Sequence[bytes] | None = None) -> dict[str, dict[str, str]]:
    """Collect what slides are recognised by: ``image`` (fingerprint) and ``key`` (as :func:`slide_key`) of each."""
    return {
        slide: {"image": fingerprint(spots, slide), "key": slide_key(spots, slide, counts=counts)}
        for slide in spots.slides
    }


def training_slides(slides: Mapping[str, Mapping[str, str]], training: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Slides that are among the training slides of a model; both as :func:`known_slides` gives them.

    A slide is recognised by its image, so that a subset of its spots and a slide under another name count too.
    """
    images = {known["image"] for known in training.values()}
    return [name for name, known in slides.items() if known["image"] in images]


def in_training(spots: Spots, slides: list[str]) -> "pd.Series[Any]":
    """Whether each slide was among the training slides of the predictions; NA where that was not recorded."""
    record = spots.record(_keys.PREDICT) or {}
    if "in_training" in record:
        known = set(map(str, record["in_training"]))
        return pd.Series([slide in known for slide in slides], slides, dtype="boolean")
    of_comparison = "protocol" in record  # scored on slides that were held out
    return pd.Series(False if of_comparison else pd.NA, slides, dtype="boolean")
