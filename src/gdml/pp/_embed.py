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
from gdml.features import TileStores
from gdml.slides import Slide
from gdml.slides.neighbors import N_VIEWS, Neighbors, neighbor_tiles
from gdml.spots.coordinates import check_adata, libraries, spot_coordinates
from gdml.spots.features import PARTS
from gdml.spots.images import HIRES, open_tiled
from gdml.spots.undo import all_or_nothing

from ._embed_slide import embed_slide
from ._extract import Extractor
from ._tile import tile
from ._tokens import Tokens

if TYPE_CHECKING:
    import torch

    from gdml.encoders import Encoder
    from gdml.encoders.device import Precision


def embed(
    adata: AnnData,
    encoder: "str | Path | torch.nn.Module | Callable[[torch.Tensor], torch.Tensor] | Encoder" = "stain",
    *,
    tokens: Tokens = "grid7",
    neighbors: Neighbors = "exact",
    views: int = 1,
    image: Any = None,
    weights: str | Path | None = None,
    encoder_name: str | None = None,
    batch_size: int | None = None,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    compile: bool = False,
    cache_dir: str | Path | None = None,
    key: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Encode the tile of each spot and the tiles of its neighbour region with a frozen encoder.

    Features are kept on disk, in stores keyed by the content of the image, the encoder and the geometry of the
    tiles: what is stored already is not computed again, and a call that was interrupted, even killed, goes on
    where it stopped. Tiles are read in threads ahead of the encoder, and no more of them than a few batches.

    Parameters
    ----------
    adata
        Spots with tiles; where :func:`gdml.pp.tile` was not called, it is, with its defaults.
    encoder
        Name of an encoder ("stain", statistics without weights; "box", a small network that comes with gdml; "uni",
        "uni2-h", any timm model), a module or a function: see :func:`gdml.encoders.get_encoder`.
    tokens
        What is kept of the spot's own tile: ``"grid7"``, the class token and the patches averaged to
        7 x 7; ``"all"`` tokens; or ``"pooled"``, one. Neighbour tiles keep one each.
    neighbors
        Tiles of the neighbour region: ``"exact"``, those around the very spot, as in the paper (25 to encode
        for each spot, none twice); ``"lattice"``, those of one lattice on the slide, up to half a tile off, which
        neighbouring spots share (3.2 to encode for each spot of legacy ST, 0.7 on Visium, beside its own).
    views
        1, or 8 to store each tile in all its quarter turns and mirrorings, too.
    image
        Full-resolution images in place of those recorded by :func:`gdml.pp.tile`: one, or a dict by slide.
        Needed again where they were given in memory.
    weights
        Local file of weights, for encoders that have some.
    encoder_name
        Name of the embedding, in place of the encoder's own.
    batch_size
        Tiles encoded at once; None: what fits the free memory, at most 64 (256 on CUDA). Halved, with a
        warning in the log, where memory runs out.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"`` computes in bfloat16 where the hardware does natively, ``"bf16"``, ``"fp32"``. Features of
        each are kept apart.
    compile
        Compile the encoder with ``torch.compile`` first, which pays on many slides. Features are kept apart.
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
        ``encoder``, ``identity``, ``precision``, ``tokens``, ``n_tokens`` (T), ``dim`` (D), ``neighbors``, ``views``,
        ``obsm``, and ``stores``: for each view (``"0"``) and for the spots' ``"own"`` tiles and for the ``"neighbors"``
        the path of each slide's store, with tokens (T, D) and pooled (D) of the one and pooled of the other, float16.

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
    _check_arguments(tokens, neighbors, views, batch_size)
    extractor = _extractor(encoder, tokens, weights, encoder_name, batch_size, device, precision, compile)
    if copy:
        adata = adata.copy()
    with all_or_nothing(adata, key):  # the tiles that are laid here must not stay where an image can't be read
        _run(adata, extractor, neighbors, views, image, cache_dir, key)
    return adata if copy else None


def _check_arguments(tokens: Tokens, neighbors: Neighbors, views: int, batch_size: int | None) -> None:
    if tokens not in get_args(Tokens):
        raise ValueError(f"`tokens` is {tokens!r}. {did_you_mean(tokens, get_args(Tokens))}")
    if neighbors not in get_args(Neighbors):
        raise ValueError(f"`neighbors` is {neighbors!r}. {did_you_mean(neighbors, get_args(Neighbors))}")
    if views not in (1, N_VIEWS):
        raise ValueError(f"`views` must be 1, or 8 for all quarter turns and mirrorings; found {views!r}.")
    if batch_size is not None and (not isinstance(batch_size, int | np.integer) or batch_size < 1):
        raise ValueError(f"`batch_size` must be a positive whole number of tiles, found {batch_size!r}.")


def _extractor(
    encoder: Any,
    tokens: Tokens,
    weights: str | Path | None,
    name: str | None,
    batch_size: int | None,
    device: "str | torch.device",
    precision: "Precision",
    compile: bool,
) -> Extractor:
    from gdml.encoders import get_encoder
    from gdml.encoders.device import resolve_device, use_bf16

    on = resolve_device(device)
    bf16 = use_bf16(on, precision)
    made = get_encoder(encoder, name=name, **({} if weights is None else {"weights": weights})).to(on)
    if compile:
        if not hasattr(made, "compile"):
            raise ValueError(
                f"`compile`: the encoder {made.name!r} has nothing that torch could compile; leave it out."
            )
        made.compile()
    return Extractor(
        encoder=made,
        tokens=tokens,
        device=on,
        bf16=bf16 and not getattr(made, "full_precision", False),
        compiled=bool(getattr(made, "compiled", compile)),
        batch_size=int(batch_size or 0),
    )


def _run(
    adata: AnnData,
    extractor: Extractor,
    neighbors: Neighbors,
    views: int,
    image: Any,
    cache_dir: str | Path | None,
    key: str,
) -> None:
    """Tile where that is missing, have encoded what no store has, and write."""
    if _keys.TILES not in adata.uns.get(key, {}):
        logg.info("embed: the spots have no tiles yet, running gdml.pp.tile(adata) with its defaults")
        tile(adata, tile_px=extractor.encoder.tile_px, image=image, key_added=key)
    tiles = adata.uns[key][_keys.TILES]
    xy, by_slide = _check_tiles(adata, key, extractor.encoder, image)

    pooled = np.zeros((adata.n_obs, extractor.encoder.dim), np.float32)
    stores: dict[str, list[TileStores]] = {}
    folder = Path(cache_dir or settings.cache_dir).expanduser() / "features"
    with tqdm(total=0, desc=f"embed ({extractor.encoder.name})", unit="tile", disable=None) as bar:
        for library, rows in by_slide.items():
            slide, scale = open_tiled(adata, library, image, key=key), tiles["slides"][library]
            centers, mask = neighbor_tiles(xy[rows], scale, int(tiles["n_side"]), neighbors)
            try:
                stores[library] = [
                    embed_slide(slide, library, scale, extractor, view, xy[rows], centers[mask], folder, bar)
                    for view in range(views)
                ]
            finally:
                if not _is_users(image, library):
                    slide.close()
            pooled[rows] = stores[library][0].own.read_pooled(xy[rows])
    _write(adata, key, extractor, pooled, neighbors, stores)


def _check_tiles(
    adata: AnnData, key: str, encoder: "Encoder", image: Any
) -> tuple[NDArray[np.float64], dict[str, NDArray[np.intp]]]:
    """Coordinates and rows by slide, where they fit the tiles recorded."""
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
    for_all = image is None or isinstance(image, dict) or (isinstance(image, str) and image == HIRES)
    if not for_all and len(by_slide) > 1:
        raise ValueError(f"`image` is one image, but there are {len(by_slide)} slides; pass a dict by slide.")
    return xy, by_slide


def _is_users(image: Any, library: str) -> bool:
    """Whether the slide was opened by the user, who may want to go on with it."""
    return isinstance(image.get(library) if isinstance(image, dict) else image, Slide)


def _write(
    adata: AnnData,
    key: str,
    extractor: Extractor,
    pooled: NDArray[np.float32],
    neighbors: Neighbors,
    stores: dict[str, list[TileStores]],
) -> None:
    encoder = extractor.encoder
    paths = [
        {part: {library: str(getattr(views[view], part).path) for library, views in stores.items()} for part in PARTS}
        for view in range(len(next(iter(stores.values()))))
    ]
    obsm = _keys.embedding(encoder.name)
    adata.obsm[obsm] = pooled
    adata.uns[key] = {
        **adata.uns[key],
        _keys.FEATURES: {
            "encoder": encoder.name,
            "identity": encoder.identity,
            "precision": "bf16" if extractor.bf16 else "fp32",
            "tokens": extractor.tokens,
            "n_tokens": next(iter(stores.values()))[0].own.n_tokens,
            "dim": encoder.dim,
            "neighbors": neighbors,
            "views": len(paths),
            "obsm": obsm,
            "stores": {str(view): of_view for view, of_view in enumerate(paths)},
        },
    }
