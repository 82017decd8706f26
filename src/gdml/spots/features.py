"""Features of the spots of an AnnData, read from the stores on disk."""

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import some
from gdml.features import FeatureBank, SlideFeatures
from gdml.slides.neighbors import neighbor_tiles

from .external import source_of
from .resolve import Spots


def bank_rows(spots: Spots, slide: str) -> tuple[FeatureBank, NDArray[np.int32], NDArray[np.int32]]:
    """Open the features of a slide, and find the rows of its spots.

    Parameters
    ----------
    spots
        Embedded spots; a subset of those that were embedded is fine.
    slide
        Name of the slide.

    Returns
    -------
    bank
        Features of the distinct tiles of the slide.
    own : int32, (n,)
        Row of each spot's own tile, spots in the order of ``spots.slides[slide]``.
    neighbors : int32, (n, K)
        Rows of the tiles of its neighbour region, row-major; -1 outside the image, and where another program that
        computed the features has no tile.

    Raises
    ------
    KeyError
        If nothing was embedded, or not these spots.
    FileNotFoundError
        If a store does not exist.
    ValueError
        If the stores were written by an earlier version, or are damaged.
    """
    record, tiles = spots.record(_keys.FEATURES), spots.record(_keys.TILES)
    if record is None or tiles is None:
        raise KeyError(f"uns[{spots.key!r}] has no features; call gdml.pp.embed(adata) first.")
    external = bool(source_of(record))
    again = f"call gdml.pp.embed(adata, encoder={str(record['encoder'])!r}) again."
    if external:
        again = "call gdml.io.read_features(path, adata=adata) again."
    stores = record.get("stores", {})
    if "own" not in stores:
        raise ValueError(
            f"uns[{spots.key!r}]['features'] was written by an earlier version of gdml, whose stores have another "
            f"format; {again}"
        )
    if slide not in stores["own"]:
        raise KeyError(f"Slide {slide!r} has no features; {again}")
    xy = spots.xy[spots.slides[slide]]
    centers, inside = neighbor_tiles(xy, tiles["slides"][slide], int(tiles["n_side"]), record["neighbors"])
    try:
        bank = FeatureBank(str(stores["own"][slide]), str(stores["neighbors"][slide]))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"Slide {slide!r}: {error} If the cache was cleared or moved, {again}") from error
    neighbors = np.full(inside.shape, -1, np.int32)
    neighbors[inside] = bank.rows(centers[inside])
    middle = inside.shape[1] // 2
    own = neighbors[:, middle]
    absent = inside & (neighbors < 0)
    if external:  # it chose the tiles to encode, which need not be those around the spots
        absent[:, np.arange(inside.shape[1]) != middle] = False
    absent[:, middle] |= own >= bank.n_own
    if absent.any():
        shown = some([f"({x:g}, {y:g})" for x, y in centers[absent]], 3)
        raise KeyError(
            f"Slide {slide!r}: {absent.sum()} of {inside.sum()} tiles are not in its stores: {shown}. "
            f"If spots have moved, {again}"
        )
    return bank, own.copy(), neighbors


def load_features(adata: AnnData, *, key: str = _keys.KEY) -> dict[str, SlideFeatures]:
    """Read the features of the spots of ``adata`` from the stores that :func:`gdml.pp.embed` recorded.

    Parameters
    ----------
    adata
        Embedded spots; a subset of those that were embedded is fine.
    key
        ``key_added`` of the embedding.

    Returns
    -------
    A :class:`gdml.features.SlideFeatures` for each slide, rows in the order of ``adata``.

    Raises
    ------
    KeyError
        If nothing was embedded, or not these spots.
    FileNotFoundError
        If a store does not exist.
    ValueError
        If a store is damaged, or was written by an earlier version.
    """
    spots = Spots.resolve(adata, key=key, copy=getattr(adata, "is_view", False))
    features = {}
    for slide in spots.slides:
        bank, own, rows = bank_rows(spots, slide)
        neighbors = np.zeros((*rows.shape, bank.dim), np.float16)
        neighbors[rows >= 0] = bank.pooled(rows[rows >= 0])
        features[slide] = SlideFeatures(bank.tokens(own), bank.pooled(own), neighbors, rows >= 0)
    return features
