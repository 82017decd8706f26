"""One slide: encode the tiles that its stores lack."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gdml.features import FeatureSpec, FeatureStore, open_path, open_store
from gdml.features.store import store_path
from gdml.features.tiles import distinct_tiles
from gdml.slides import Slide
from gdml.slides.neighbors import Neighbors, neighbor_tiles
from gdml.spots.images import open_as_tiled

from ._extract import Extractor


@dataclass(frozen=True)
class SlideTask:
    """What is to be encoded of a slide.

    Parameters
    ----------
    name
        Name of the slide.
    source
        Its image, as :func:`gdml.slides.open_slide` takes it; a :class:`~gdml.slides.Slide` is left open.
    record
        Record of the slide by :func:`gdml.pp.tile`.
    xy
        Centres of the spots, full-resolution px, (n, 2).
    n_side
        Tiles along a side of the neighbour region.
    neighbors
        Which tiles the neighbour region has.
    folder
        Folder of all stores.
    """

    name: str
    source: Any
    record: Mapping[str, Any]
    xy: NDArray[np.float64]
    n_side: int
    neighbors: Neighbors
    folder: Path


@dataclass(frozen=True)
class EmbeddedSlide:
    """The stores of a slide, and what was encoded.

    Attributes
    ----------
    own
        Store of the tiles of the spots, with the tokens of the token budget.
    neighbors
        Store of all other tiles, pooled; the same where the budget is ``"pooled"``. A tile is in one store or the
        other: where spots are one tile apart, the neighbour of one spot is the own tile of the next.
    n_tokens
        Tokens of an own tile.
    key
        Provenance key of the features, see :meth:`gdml.features.FeatureSpec.key`.
    fingerprint
        Of the image.
    n_encoded, n_found
        Tiles that were encoded, and those that were in the stores.
    """

    own: Path
    neighbors: Path
    n_tokens: int
    key: str
    fingerprint: str
    n_encoded: int
    n_found: int


def embed_slide(task: SlideTask, extractor: Extractor, progress: Callable[[int, int], object]) -> EmbeddedSlide:
    """Encode the tiles of a slide that its stores lack, and store them.

    Parameters
    ----------
    task
        The slide, and its tiles.
    extractor
        Encodes the tiles.
    progress
        Called with the number of tiles to encode that were found and the number of those done since the last call.

    Raises
    ------
    FileNotFoundError, ValueError
        If the image is not the one that was tiled, or can't be read; if features exceed the range of float16.
    """
    slide = open_as_tiled(task.source, task.name, task.record)
    try:
        return _encode(slide, task, extractor, progress)
    finally:
        if not isinstance(task.source, Slide):
            slide.close()


def spec_of(record: Mapping[str, Any], fingerprint: str, extractor: Extractor) -> FeatureSpec:
    """Name what the features of a slide's own tiles depend on.

    Parameters
    ----------
    record
        Record of the slide by :func:`gdml.pp.tile`.
    fingerprint
        Of its image.
    extractor
        Encodes the tiles.
    """
    return FeatureSpec(
        image=fingerprint,
        encoder=extractor.identity,
        um_per_px=float(record["um_per_px"]),
        side_px=float(record["side_px"]),
        tile_px=extractor.encoder.tile_px,
        tokens=extractor.tokens,
    )


def _encode(
    slide: Slide, task: SlideTask, extractor: Extractor, progress: Callable[[int, int], object]
) -> EmbeddedSlide:
    centers, inside = neighbor_tiles(task.xy, task.record, task.n_side, task.neighbors)
    xy, around = task.xy, centers[inside]
    spec = spec_of(task.record, slide.fingerprint(), extractor)
    own = _open(task.folder, spec, extractor)
    others = own if spec.tokens == "pooled" else _open(task.folder, replace(spec, tokens="pooled"), extractor)

    def encode(store: FeatureStore, centers: NDArray[np.float64]) -> int:
        centers = distinct_tiles(centers)
        progress(len(centers), 0)
        extractor.run(slide, store, centers, spec.side_px, progress=lambda n: progress(0, n))
        return len(centers)

    n_encoded = encode(own, xy[own.missing(xy, verify=True)])
    elsewhere = around[own.missing(around, verify=True)]
    n_encoded += encode(others, elsewhere[others.missing(elsewhere, verify=True)])
    n_found = len(distinct_tiles(np.concatenate([xy, around]))) - n_encoded
    return EmbeddedSlide(own.path, others.path, own.n_tokens, spec.key(), spec.image, n_encoded, n_found)


def _open(folder: Path, spec: FeatureSpec, extractor: Extractor) -> FeatureStore:
    path = store_path(folder, spec)
    if path.is_dir():  # the number of tokens is known without loading weights
        return open_path(path)
    n_tokens = 1 if spec.tokens == "pooled" else extractor.n_tokens()
    return open_store(folder, spec, n_tokens=n_tokens, dim=extractor.encoder.dim)
