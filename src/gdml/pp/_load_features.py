"""Features of an AnnData's spots, back from the stores on disk."""

from anndata import AnnData

from gdml import _keys
from gdml.features import SlideFeatures, open_path

from ._validate import libraries, spot_coordinates


def load_features(adata: AnnData, key: str = _keys.KEY) -> dict[str, SlideFeatures]:
    """Features of the current rows of ``adata`` from the stores that :func:`embed` recorded.

    Parameters
    ----------
    adata
        Embedded spots; a subset of what was embedded is fine.
    key
        ``key`` of the embedding.

    Returns
    -------
    For each slide its features, rows in the order they have in ``adata``.

    Raises
    ------
    KeyError
        If nothing was embedded, or not these spots.
    FileNotFoundError
        If a store is gone.
    """
    record = adata.uns.get(key, {}).get(_keys.FEATURES)
    if record is None:
        raise KeyError(f"uns[{key!r}] has no features; call gdml.pp.embed(adata) first.")
    tiles = adata.uns[key][_keys.TILES]
    xy = spot_coordinates(adata, tiles["spatial_key"])
    mend = f"call gdml.pp.embed(adata, encoder={str(record['encoder'])!r}) again."
    features = {}
    for library, rows in libraries(adata, tiles["library_key"], spatial_key=tiles["spatial_key"]).items():
        if library not in record["stores"]:
            raise KeyError(f"Slide {library!r} has no features; {mend}")
        try:
            features[library] = open_path(str(record["stores"][library])).read(xy[rows])
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"Slide {library!r}: {error} Was the cache cleared or moved? If so, {mend}"
            ) from error
        except KeyError as error:
            raise KeyError(f"Slide {library!r}: {error.args[0]} Have spots moved? If so, {mend}") from error
    return features
