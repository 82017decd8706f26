"""Tiles through a frozen encoder into a store on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray
from scanpy import logging as logg
from tqdm.auto import tqdm

from gdml import _keys
from gdml._errors import did_you_mean, some
from gdml._settings import settings
from gdml.features import FeatureSpec, FeatureStore, open_path, open_store, store_path
from gdml.slides import Slide

from ._extract import Extractor, Tokens
from ._load_features import load_features
from ._tile import tile
from ._undo import all_or_nothing
from ._validate import HIRES, check_adata, libraries, open_tiled, spot_coordinates

if TYPE_CHECKING:
    import torch

    from gdml.encoders import Encoder, Precision

__all__ = ["embed", "load_features"]

_BATCH = {"cpu": 50, "cuda": 400, "mps": 100}


def embed(
    adata: AnnData,
    encoder: "str | Path | torch.nn.Module | Callable[[torch.Tensor], torch.Tensor] | Encoder" = "stain",
    *,
    tokens: Tokens = "grid7",
    image: Any = None,
    weights: str | Path | None = None,
    encoder_name: str | None = None,
    batch_size: int | None = None,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    cache_dir: str | Path | None = None,
    key: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Encode the tile of each spot and the tiles of its neighbour region with a frozen encoder.

    Features are kept on disk, one store for each slide, keyed by the content of its image, the encoder and
    the geometry of the tiles: what is stored already is not computed again, and an interrupted call
    goes on where it stopped. Pixels are read region by region and never held beyond the tiles in flight.

    Parameters
    ----------
    adata
        Spots with tiles; where :func:`gdml.pp.tile` was not called, it is, with its defaults.
    encoder
        Name of an encoder ("stain" needs no weights; "uni", "uni2-h", any timm model), a module or a
        function: see :func:`gdml.encoders.get_encoder`.
    tokens
        What is kept of the spot's own tile: ``"grid7"``, the class token and the patches averaged to
        7 x 7; ``"all"`` tokens; or ``"pooled"``, one. Neighbour tiles keep one each.
    image
        Full-resolution images in place of those recorded by :func:`gdml.pp.tile`: one, or a dict by slide.
        Needed again where they were given in memory.
    weights
        Local file of weights, for encoders that have some.
    encoder_name
        Name of the embedding, in place of the encoder's own.
    batch_size
        Tiles encoded at once, rounded to whole spots. None: 50 on the CPU, 400 on a GPU.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"`` computes in bfloat16 where the hardware does natively, ``"bf16"``, ``"fp32"``. Features of
        each are kept apart.
    cache_dir
        Folder of the stores; ``gdml.settings.cache_dir`` if None.
    key
        ``key_added`` of the tiles.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or a copy of ``adata``. Sets:

    ``obsm["X_{encoder}"]`` : float32, (n_obs, D)
        Pooled embedding of the spot's tile.
    ``uns["gdml"]["features"]``
        ``encoder``, ``identity``, ``precision``, ``tokens``, ``n_tokens`` (T), ``dim`` (D), ``obsm``, and ``stores``:
        for each slide the path of its store, with tokens (n, T, D), pooled (n, D) and neighbours
        (n, n_side**2, D), float16.

    Raises
    ------
    KeyError
        If coordinates are missing, or slides that were not tiled.
    FileNotFoundError
        If an image or a file of weights does not exist.
    ValueError
        If an argument is not valid, an image can't be read, the tiles don't fit the encoder, or features
        don't fit float16.
    PermissionError, ConnectionError
        If weights are gated or can't be downloaded.

    See Also
    --------
    gdml.pp.tile : Geometry of the tiles.
    gdml.encoders.list_encoders : Names of encoders.

    Examples
    --------
    >>> import gdml
    >>> adata = gdml.datasets.synthetic()
    >>> gdml.pp.embed(adata, encoder="stain")
    >>> adata.obsm["X_stain"].shape[0] == adata.n_obs
    True
    """
    check_adata(adata, copy=copy)
    extractor = _extractor(encoder, tokens, weights, encoder_name, batch_size, device, precision)
    if copy:
        adata = adata.copy()
    with all_or_nothing(adata, key):  # the tiles that are laid here must not stay where an image can't be read
        _run(adata, extractor, image, cache_dir, key)
    return adata if copy else None


def _run(adata: AnnData, extractor: Extractor, image: Any, cache_dir: str | Path | None, key: str) -> None:
    """Tile where that is missing, encode what no store has, and write."""
    if _keys.TILES not in adata.uns.get(key, {}):
        logg.info("embed: the spots have no tiles yet, running gdml.pp.tile(adata) with its defaults")
        tile(adata, tile_px=extractor.encoder.tile_px, image=image, key_added=key)
    tiles = adata.uns[key][_keys.TILES]
    xy, by_slide, mask = _check_tiles(adata, key, extractor.encoder, image)

    pooled = np.zeros((adata.n_obs, extractor.encoder.dim), np.float32)
    stores: dict[str, FeatureStore] = {}
    with tqdm(total=adata.n_obs, desc=f"embed ({extractor.encoder.name})", unit="spot", disable=None) as bar:
        for library, rows in by_slide.items():
            slide = open_tiled(adata, library, image, key=key)
            try:
                store = _open(slide, tiles, library, extractor, cache_dir)
                todo = rows[store.missing(xy[rows])]
                todo = todo[np.lexsort(xy[todo].T)]  # by y, then x: an image without tiles is decoded once
                bar.update(len(rows) - len(todo))
                side_px = float(tiles["slides"][library]["side_px"])
                extractor.run(slide, store, xy[todo], mask[todo], side_px, bar.update)
            finally:
                if not _is_users(image, library):
                    slide.close()
            pooled[rows] = store.read_pooled(xy[rows])
            stores[library] = store
            logg.info(f"embed: slide {library}: {len(todo)} spots encoded, {len(rows) - len(todo)} found in the store")
    _write(adata, key, extractor, pooled, stores)


def _extractor(
    encoder: Any,
    tokens: Tokens,
    weights: str | Path | None,
    name: str | None,
    batch_size: int | None,
    device: "str | torch.device",
    precision: "Precision",
) -> Extractor:
    from gdml.encoders import get_encoder, resolve_device, use_bf16

    if tokens not in get_args(Tokens):
        raise ValueError(f"`tokens` is {tokens!r}. {did_you_mean(tokens, get_args(Tokens))}")
    if batch_size is not None and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
        raise ValueError(f"`batch_size` must be a positive whole number of tiles, found {batch_size!r}.")
    on = resolve_device(device)
    bf16 = use_bf16(on, precision)
    made = get_encoder(encoder, name=name, **({} if weights is None else {"weights": weights})).to(on)
    return Extractor(
        encoder=made,
        tokens=tokens,
        batch_size=int(batch_size or _BATCH[on.type]),
        device=on,
        bf16=bf16 and not getattr(made, "full_precision", False),
    )


def _check_tiles(
    adata: AnnData, key: str, encoder: "Encoder", image: Any
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.intp]], NDArray[np.bool_]]:
    """Coordinates, rows by slide and neighbour mask, where they fit the tiles recorded."""
    tiles = adata.uns[key][_keys.TILES]
    xy = spot_coordinates(adata, tiles["spatial_key"])
    by_slide = libraries(adata, tiles["library_key"], spatial_key=tiles["spatial_key"])
    again = "call gdml.pp.tile(adata) again."
    unknown = [library for library in by_slide if library not in tiles["slides"]]
    if unknown:
        raise KeyError(f"uns[{key!r}]['tiles'] lacks the slides {some(unknown)}; {again}")
    if int(tiles["tile_px"]) != encoder.tile_px:
        raise ValueError(
            f"The tiles have {tiles['tile_px']} px, the encoder {encoder.name!r} takes {encoder.tile_px}; "
            f"call gdml.pp.tile(adata, tile_px={encoder.tile_px}) first."
        )
    mask = np.asarray(adata.obsm.get(_keys.neighbor_mask(key)))
    if mask.shape != (adata.n_obs, int(tiles["n_side"]) ** 2):
        raise ValueError(f"obsm[{_keys.neighbor_mask(key)!r}] does not fit uns[{key!r}]['tiles']; {again}")
    for_all = image is None or isinstance(image, dict) or (isinstance(image, str) and image == HIRES)
    if not for_all and len(by_slide) > 1:
        raise ValueError(f"`image` is one image, but there are {len(by_slide)} slides; pass a dict by slide.")
    return xy, by_slide, mask.astype(bool)


def _open(slide: Slide, tiles: Any, library: str, extractor: Extractor, cache_dir: str | Path | None) -> FeatureStore:
    encoder = extractor.encoder
    spec = FeatureSpec(
        image=slide.fingerprint(),
        encoder=encoder.identity + (" bf16" if extractor.bf16 else ""),
        um_per_px=float(tiles["slides"][library]["um_per_px"]),
        side_px=float(tiles["slides"][library]["side_px"]),
        tile_px=int(tiles["tile_px"]),
        n_side=int(tiles["n_side"]),
        tokens=extractor.tokens,
    )
    folder = Path(cache_dir or settings.cache_dir).expanduser() / "features"
    path = store_path(folder, spec)
    if path.is_dir():  # no need to load weights to know how many tokens there are
        return open_path(path)
    return open_store(folder, spec, n_tokens=extractor.n_tokens(), dim=encoder.dim)


def _is_users(image: Any, library: str) -> bool:
    """Whether the slide was opened by the user, who may want to go on with it."""
    return isinstance(image.get(library) if isinstance(image, dict) else image, Slide)


def _write(
    adata: AnnData, key: str, extractor: Extractor, pooled: NDArray[np.float32], stores: dict[str, FeatureStore]
) -> None:
    encoder = extractor.encoder
    obsm = _keys.embedding(encoder.name)
    adata.obsm[obsm] = pooled
    adata.uns[key] = {
        **adata.uns[key],
        _keys.FEATURES: {
            "encoder": encoder.name,
            "identity": encoder.identity,
            "precision": "bf16" if extractor.bf16 else "fp32",
            "tokens": extractor.tokens,
            "n_tokens": next(iter(stores.values())).n_tokens,
            "dim": encoder.dim,
            "obsm": obsm,
            "stores": {library: str(store.path) for library, store in stores.items()},
        },
    }
