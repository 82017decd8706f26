"""One slide, one view: which tiles no store has, and having them encoded."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml.features import FeatureSpec, FeatureStore, TileStores, distinct_tiles, open_path, open_store, store_path
from gdml.slides import Slide

from ._extract import Extractor

if TYPE_CHECKING:
    from tqdm import tqdm


def embed_slide(
    slide: Slide,
    library: str,
    scale: dict[str, Any],
    extractor: Extractor,
    view: int,
    xy: NDArray[np.float64],
    around: NDArray[np.float64],
    folder: Path,
    bar: "tqdm[Any]",
) -> TileStores:
    """Encode one view of those tiles of a slide that its stores lack, and store them.

    Parameters
    ----------
    slide, library
        The image, and its name in messages.
    scale
        What :func:`gdml.pp.tile` recorded of the slide.
    extractor
        Encodes the tiles.
    view
        How they are turned.
    xy
        Centres of the spots, full-resolution px, (n, 2): of these the extractor's token budget is kept.
    around
        Centres of the tiles of their neighbour regions, (m, 2), of which the pooled embedding is kept.
    folder
        Of all stores.
    bar
        Told what there is to do, and what was done.

    Returns
    -------
    The stores, which then have all the tiles.
    """
    side_px = float(scale["side_px"])
    spec = FeatureSpec(
        image=slide.fingerprint(),
        encoder=extractor.identity,
        um_per_px=float(scale["um_per_px"]),
        side_px=side_px,
        tile_px=extractor.encoder.tile_px,
        tokens=extractor.tokens,
        view=view,
    )
    own = _open(folder, spec, extractor)
    pooled_only = own if spec.tokens == "pooled" else _open(folder, replace(spec, tokens="pooled"), extractor)
    stores = TileStores(own, pooled_only)

    n_encoded = 0
    for store, asked, has in ((own, xy, own), (pooled_only, around, stores)):
        todo = distinct_tiles(asked[has.missing(asked, verify=True)])
        bar.total += len(todo)
        extractor.run(slide, store, todo, side_px, view=view, progress=bar.update)
        n_encoded += len(todo)
    n_asked = len(distinct_tiles(np.concatenate([xy, around])))
    turned = f", view {view}" if view else ""
    logg.info(f"embed: slide {library}{turned}: {n_encoded} tiles encoded, {n_asked - n_encoded} found in the stores")
    return stores


def _open(folder: Path, spec: FeatureSpec, extractor: Extractor) -> FeatureStore:
    path = store_path(folder, spec)
    if path.is_dir():  # no need to load weights to know how many tokens there are
        return open_path(path)
    n_tokens = 1 if spec.tokens == "pooled" else extractor.n_tokens()
    return open_store(folder, spec, n_tokens=n_tokens, dim=extractor.encoder.dim)
