"""Encode tiles with a frozen encoder, and store the features on disk."""

import errno
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import count, did_you_mean, some
from gdml._progress import bar, tell
from gdml._settings import settings
from gdml.features import FeatureBank
from gdml.slides import Slide
from gdml.slides.neighbors import Neighbors, neighbor_tiles
from gdml.spots.images import HIRES, open_tiled
from gdml.spots.resolve import Spots
from gdml.spots.undo import all_or_nothing

from ._embed_slide import EmbeddedSlide, embed_slide
from ._extract import Extractor
from ._tile import tile
from ._tokens import Tokens

if TYPE_CHECKING:
    import torch

    from gdml.encoders import Encoder, Precision


def embed(
    adata: AnnData,
    encoder: "str | Path | torch.nn.Module | Callable[[torch.Tensor], torch.Tensor] | Encoder" = "stain",
    *,
    tokens: Tokens = "grid7",
    neighbors: Neighbors = "exact",
    image: Any = None,
    weights: str | Path | None = None,
    encoder_name: str | None = None,
    batch_size: int | None = None,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    compile: bool = False,
    cache_dir: str | Path | None = None,
    key_added: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Encode the tile of each spot and the tiles of its neighbour region with a frozen encoder.

    Features are kept on disk, in stores keyed by the content of the image, the encoder and the geometry of the
    tiles. Tiles that are stored already are not encoded again, and a call that was interrupted, even killed, is
    resumed by the next one. Tiles are read in threads, a few batches ahead of the encoder.

    Parameters
    ----------
    adata
        Spots with tiles; :func:`gdml.pp.tile` is called with its defaults if they have none.
    encoder
        Name of an encoder ("stain", statistics without weights; "box", a small network that comes with gdml; "uni",
        "uni2-h", any timm model), a module or a function, see :func:`gdml.encoders.get_encoder`.
    tokens
        Tokens that are kept of the spot's own tile: ``"grid7"``, the class token and the patches averaged to
        7 x 7; ``"all"``; or ``"pooled"``, one. Of neighbour tiles the pooled embedding is kept.
    neighbors
        Tiles of the neighbour region: ``"exact"``, centred on the spot, as in the paper (up to 25 tiles to encode
        per spot); ``"lattice"``, from one lattice on the slide, up to half a tile off, which neighbouring spots
        share (3.2 tiles to encode per spot of legacy ST, 0.7 on Visium, beside its own).
    image
        Full-resolution images in place of those recorded by :func:`gdml.pp.tile`: one, or a dict by slide.
        Needed again where they were given in memory.
    weights
        Local file of weights, for encoders that have some.
    encoder_name
        Name of the embedding, in place of the encoder's own.
    batch_size
        Tiles encoded at once; by default what fits the free memory, at most 64 (256 on CUDA). It is halved, with a
        warning in the log, when memory runs out.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    precision
        ``"auto"``, bfloat16 where the hardware supports it natively; ``"bf16"``; or ``"fp32"``. Features of each are
        kept apart.
    compile
        Compile the encoder with ``torch.compile`` first, which pays on many slides. Features are kept apart.
    cache_dir
        Folder of the stores; by default ``gdml.settings.cache_dir``.
    key_added
        ``key_added`` of the tiles; the record of the features is stored beside theirs.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or a copy of ``adata``. Sets:

    ``obsm["X_{encoder}"]`` : float32, (n_obs, D)
        Pooled embedding of the spot's tile.
    ``uns["gdml"]["features"]``
        ``encoder``, ``identity``, ``precision``, ``tokens``, ``n_tokens`` (T), ``dim`` (D), ``neighbors``, ``obsm``;
        ``keys``, the provenance key of each slide's features; and ``stores``, the path of each slide's store of the
        spots' ``"own"`` tiles, with tokens (T, D) and pooled (D), float16, and of the ``"neighbors"``, pooled alone.
    ``uns["gdml"]["tiles"]["slides"][slide]["fingerprint"]``
        Hash of the content of the image.

    Raises
    ------
    KeyError
        If coordinates are missing, or a slide was not tiled.
    FileNotFoundError
        If an image or a file of weights does not exist.
    ValueError
        If an argument is not valid, an image can't be read, the tiles do not match the encoder, or features
        exceed the range of float16.
    OSError
        If the cache folder cannot be written to; nothing was encoded then.
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
    spots = Spots.resolve(adata, key=key_added, copy=copy)
    _check_arguments(tokens, neighbors, batch_size)
    extractor = _extractor(encoder, tokens, weights, encoder_name, batch_size, device, precision, compile)
    folder = Path(cache_dir or settings.cache_dir).expanduser() / "features"
    with all_or_nothing(spots.adata, key_added), _stored_in(folder, from_settings=cache_dir is None):
        if spots.record(_keys.TILES) is None:
            logg.info("embed: the spots have no tiles yet, running gdml.pp.tile(adata) with its defaults")
            tile(spots.adata, tile_px=extractor.encoder.tile_px, image=image, key_added=key_added)
        _check_tiles(spots, extractor.encoder, image)
        _write(spots, extractor, neighbors, _encode(spots, extractor, neighbors, image, folder))
    return spots.adata if copy else None


def _check_arguments(tokens: Tokens, neighbors: Neighbors, batch_size: int | None) -> None:
    if tokens not in get_args(Tokens):
        raise ValueError(f"`tokens` is {tokens!r}. {did_you_mean(tokens, get_args(Tokens))}")
    if neighbors not in get_args(Neighbors):
        raise ValueError(f"`neighbors` is {neighbors!r}. {did_you_mean(neighbors, get_args(Neighbors))}")
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
    from gdml.encoders import get_encoder, resolve_device, use_bf16

    target = resolve_device(device)
    bf16 = use_bf16(target, precision)
    made = get_encoder(encoder, name=name, **({} if weights is None else {"weights": weights})).to(target)
    if compile:
        if not hasattr(made, "compile"):
            raise ValueError(
                f"`compile`: the encoder {made.name!r} has nothing that torch could compile; leave it out."
            )
        made.compile()
    return Extractor(
        encoder=made,
        tokens=tokens,
        device=target,
        bf16=bf16 and not getattr(made, "full_precision", False),
        compiled=bool(getattr(made, "compiled", compile)),
        batch_size=int(batch_size or 0),
    )


@contextmanager
def _stored_in(folder: Path, from_settings: bool) -> Iterator[None]:
    """Try to write to the folder of the stores first, and name the setting behind it where the disk is full."""
    name = "gdml.settings.cache_dir, set by GDML_CACHE_DIR" if from_settings else "`cache_dir`"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise type(error)(
            f"Features cannot be written to {str(folder)!r} ({error.strerror}); choose another folder with {name}."
        ) from error
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            error.add_note(f"Features are written to {str(folder)!r}; choose another folder with {name}.")
        raise


def _check_tiles(spots: Spots, encoder: "Encoder", image: Any) -> None:
    """Refuse tiles that do not cover the slides or do not match the encoder."""
    tiles = spots.adata.uns[spots.key][_keys.TILES]
    unknown = [slide for slide in spots.slides if slide not in tiles["slides"]]
    if unknown:
        raise KeyError(f"uns[{spots.key!r}]['tiles'] lacks the slides {some(unknown)}; call gdml.pp.tile(adata) again.")
    if int(tiles["tile_px"]) != encoder.tile_px:
        raise ValueError(
            f"The tiles have {tiles['tile_px']} px, the encoder {encoder.name!r} takes {encoder.tile_px}; "
            f"call gdml.pp.tile(adata, tile_px={encoder.tile_px}) first."
        )
    for_all = image is None or isinstance(image, dict) or (isinstance(image, str) and image == HIRES)
    if not for_all and len(spots.slides) > 1:
        raise ValueError(f"`image` is one image, but there are {len(spots.slides)} slides; pass a dict by slide.")


def _encode(
    spots: Spots, extractor: Extractor, neighbors: Neighbors, image: Any, folder: Path
) -> dict[str, EmbeddedSlide]:
    """Encode the tiles of all slides that are not stored."""
    tiles = spots.adata.uns[spots.key][_keys.TILES]
    embedded = {}
    with bar(0, desc="embed", unit="tile") as progress:

        def update(found: int, done: int) -> None:
            progress.total += found
            progress.update(done)

        for name, rows in spots.slides.items():
            progress.set_description(f"embed {name}", refresh=False)
            slide, scale = open_tiled(spots.adata, name, image, key=spots.key), tiles["slides"][name]
            centers, inside = neighbor_tiles(spots.xy[rows], scale, int(tiles["n_side"]), neighbors)
            try:
                embedded[name] = embed_slide(slide, scale, extractor, spots.xy[rows], centers[inside], folder, update)
            finally:
                if not _opened_by_user(image, name):
                    slide.close()
    n_encoded, n_found = (sum(getattr(s, part) for s in embedded.values()) for part in ("n_encoded", "n_found"))
    tell(
        f"embed: {extractor.encoder.name}, {count(next(iter(embedded.values())).own.n_tokens, 'token')} per spot; "
        f"{n_encoded} tiles encoded, {n_found} found in {str(folder)!r}"
    )
    return embedded


def _opened_by_user(image: Any, slide: str) -> bool:
    return isinstance(image.get(slide) if isinstance(image, dict) else image, Slide)


def _write(spots: Spots, extractor: Extractor, neighbors: Neighbors, embedded: dict[str, EmbeddedSlide]) -> None:
    encoder, adata = extractor.encoder, spots.adata
    pooled = np.zeros((adata.n_obs, encoder.dim), np.float32)
    for name, rows in spots.slides.items():
        bank = FeatureBank(embedded[name].own.path)
        pooled[rows] = bank.pooled(bank.rows(spots.xy[rows]))
    obsm = _keys.embedding(encoder.name)
    adata.obsm[obsm] = pooled
    tiles = adata.uns[spots.key][_keys.TILES]
    slides = {name: {**tiles["slides"][name], "fingerprint": s.fingerprint} for name, s in embedded.items()}
    adata.uns[spots.key] = {
        **adata.uns[spots.key],
        _keys.TILES: {**tiles, "slides": {**tiles["slides"], **slides}},
        _keys.FEATURES: {
            "encoder": encoder.name,
            "identity": encoder.identity,
            "precision": "bf16" if extractor.bf16 else "fp32",
            "tokens": extractor.tokens,
            "n_tokens": next(iter(embedded.values())).own.n_tokens,
            "dim": encoder.dim,
            "neighbors": neighbors,
            "obsm": obsm,
            "keys": {name: slide.key for name, slide in embedded.items()},
            "stores": {
                "own": {name: str(slide.own.path) for name, slide in embedded.items()},
                "neighbors": {name: str(slide.neighbors.path) for name, slide in embedded.items()},
            },
        },
    }
