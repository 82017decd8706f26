"""Features of an AnnData's spots, back from the stores on disk."""

import numpy as np
from anndata import AnnData

from gdml import _keys
from gdml.features import SlideFeatures, TileStores, open_path
from gdml.slides.neighbors import neighbor_tiles, turned_order

from .coordinates import libraries, spot_coordinates

PARTS = ("own", "neighbors")


def load_features(adata: AnnData, *, key: str = _keys.KEY, view: int = 0) -> dict[str, SlideFeatures]:
    """Read the features of the current rows of ``adata`` from the stores that :func:`gdml.pp.embed` recorded.

    Parameters
    ----------
    adata
        Embedded spots; a subset of what was embedded is fine.
    key
        ``key`` of the embedding.
    view
        Which of the views that were stored: 0 to 3 are quarter turns counterclockwise, 4 to 7 these mirrored
        left to right. Neighbours turn with the region: the first is the top left one of what was turned.

    Returns
    -------
    For each slide a :class:`gdml.features.SlideFeatures`, rows in the order they have in ``adata``.

    Raises
    ------
    KeyError
        If nothing was embedded, or not these spots.
    FileNotFoundError
        If a store is gone.
    ValueError
        If there is no such view, or a store is damaged.
    """
    record = adata.uns.get(key, {}).get(_keys.FEATURES)
    if record is None:
        raise KeyError(f"uns[{key!r}] has no features; call gdml.pp.embed(adata) first.")
    if "views" not in record:
        raise ValueError(
            f"uns[{key!r}]['features'] was written by gdml 0.1, which stored features otherwise; "
            f"call gdml.pp.embed(adata, encoder={str(record['encoder'])!r}) again."
        )
    if str(view) not in record["stores"]:
        raise ValueError(
            f"`view` is {view}, but the views {', '.join(record['stores'])} are stored; gdml.pp.embed(adata, views=8) adds them."
        )
    tiles = adata.uns[key][_keys.TILES]
    n_side = int(tiles["n_side"])
    order = turned_order(n_side, view)
    xy = spot_coordinates(adata, tiles["spatial_key"])
    mend = f"call gdml.pp.embed(adata, encoder={str(record['encoder'])!r}) again."
    features = {}
    for library, rows in libraries(adata, tiles["library_key"], spatial_key=tiles["spatial_key"]).items():
        paths = record["stores"][str(view)]
        if library not in paths["own"]:
            raise KeyError(f"Slide {library!r} has no features; {mend}")
        centers, mask = neighbor_tiles(xy[rows], tiles["slides"][library], n_side, record["neighbors"])
        try:
            stores = TileStores(*(open_path(str(paths[part][library])) for part in PARTS))
            neighbors = np.zeros((*mask.shape, stores.own.dim), np.float16)
            neighbors[mask] = stores.read_pooled(centers[mask])
            features[library] = SlideFeatures(
                tokens=stores.own.read_tokens(xy[rows]),
                pooled=stores.own.read_pooled(xy[rows]),
                neighbors=neighbors[:, order],
                neighbor_mask=mask[:, order],
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"Slide {library!r}: {error} Was the cache cleared or moved? If so, {mend}"
            ) from error
        except KeyError as error:
            raise KeyError(f"Slide {library!r}: {error.args[0]} Have spots moved? If so, {mend}") from error
    return features
