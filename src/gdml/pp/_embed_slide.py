"""One slide: encode the tiles that its stores lack."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdml.features import FeatureSpec, FeatureStore, distinct_tiles, open_path, open_store, store_path
from gdml.slides import Slide

from ._extract import Extractor


@dataclass(frozen=True)
class EmbeddedSlide:
    """The stores of a slide, and what was encoded.

    Attributes
    ----------
    own
        Tiles of the spots, with the tokens of the token budget.
    neighbors
        All other tiles, pooled; the same store where the budget is ``"pooled"``. A tile is in one store or the other:
        where spots are one tile apart, the neighbour of one spot is the own tile of the next.
    key
        Provenance key of the features, see :meth:`gdml.features.FeatureSpec.key`.
    fingerprint
        Of the image.
    n_encoded, n_found
        Tiles that were encoded, and those that were in the stores.
    """

    own: FeatureStore
    neighbors: FeatureStore
    key: str
    fingerprint: str
    n_encoded: int
    n_found: int


def embed_slide(
    slide: Slide,
    scale: dict[str, Any],
    extractor: Extractor,
    xy: NDArray[np.float64],
    around: NDArray[np.float64],
    folder: Path,
    progress: Callable[[int, int], object],
) -> EmbeddedSlide:
    """Encode the tiles of a slide that its stores lack, and store them.

    Parameters
    ----------
    slide
        The image.
    scale
        Record of the slide by :func:`gdml.pp.tile`.
    extractor
        Encodes the tiles.
    xy
        Centres of the spots, full-resolution px, (n, 2).
    around
        Centres of the tiles of their neighbour regions, (m, 2), of which the pooled embedding is kept.
    folder
        Folder of all stores.
    progress
        Called with the number of tiles to encode that were found and the number of those done since the last call.
    """
    side_px = float(scale["side_px"])
    spec = FeatureSpec(
        image=slide.fingerprint(),
        encoder=extractor.identity,
        um_per_px=float(scale["um_per_px"]),
        side_px=side_px,
        tile_px=extractor.encoder.tile_px,
        tokens=extractor.tokens,
    )
    own = _open(folder, spec, extractor)
    others = own if spec.tokens == "pooled" else _open(folder, replace(spec, tokens="pooled"), extractor)

    def encode(store: FeatureStore, centers: NDArray[np.float64]) -> int:
        centers = distinct_tiles(centers)
        progress(len(centers), 0)
        extractor.run(slide, store, centers, side_px, progress=lambda n: progress(0, n))
        return len(centers)

    n_encoded = encode(own, xy[own.missing(xy, verify=True)])
    elsewhere = around[own.missing(around, verify=True)]
    n_encoded += encode(others, elsewhere[others.missing(elsewhere, verify=True)])
    n_found = len(distinct_tiles(np.concatenate([xy, around]))) - n_encoded
    return EmbeddedSlide(own, others, spec.key(), spec.image, n_encoded, n_found)


def _open(folder: Path, spec: FeatureSpec, extractor: Extractor) -> FeatureStore:
    path = store_path(folder, spec)
    if path.is_dir():  # the number of tokens is known without loading weights
        return open_path(path)
    n_tokens = 1 if spec.tokens == "pooled" else extractor.n_tokens()
    return open_store(folder, spec, n_tokens=n_tokens, dim=extractor.encoder.dim)
