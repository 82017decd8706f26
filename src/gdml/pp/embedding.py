"""Encode the tiles of resolved spots, and store the features on disk."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import check_count, count, did_you_mean, some
from gdml._marker import CACHE_DIR, check_writable
from gdml._progress import bar, tell
from gdml._settings import settings
from gdml.features import FeatureBank
from gdml.slides import Slide
from gdml.slides.neighbors import Neighbors, neighbor_tiles
from gdml.spots.images import HIRES, open_tiled
from gdml.spots.resolve import Spots
from gdml.spots.tiles import tile_spots

from ._embed_slide import EmbeddedSlide, embed_slide
from ._extract import Extractor
from ._scale import warn_of_scale
from ._tokens import Tokens

if TYPE_CHECKING:
    import torch

    from gdml.encoders import Encoder
    from gdml.encoders.device import Precision


def embed_spots(
    spots: Spots,
    encoder: Any = "stain",
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
) -> None:
    """Encode tiles and write their record, as :func:`gdml.pp.embed` describes; the arguments and errors are the same.

    Parameters
    ----------
    spots
        Resolved spots; tiles are laid with their defaults if they have none.
    encoder, tokens, neighbors, image, weights, encoder_name, batch_size, device, precision, compile, cache_dir
        As in :func:`gdml.pp.embed`.
    """
    _check_arguments(tokens, neighbors, batch_size)
    extractor = _extractor(encoder, tokens, weights, encoder_name, batch_size, device, precision, compile)
    folder = Path(cache_dir or settings.cache_dir).expanduser() / "features"
    with _stored_in(folder, from_settings=cache_dir is None):
        if spots.record(_keys.TILES) is None:
            logg.info("embed: the spots have no tiles yet, running gdml.pp.tile(adata) with its defaults")
            tile_spots(spots, tile_px=extractor.encoder.tile_px, image=image)
        _check_tiles(spots, extractor.encoder, image)
        _write(spots, extractor, neighbors, _encode(spots, extractor, neighbors, image, folder))


def _check_arguments(tokens: Tokens, neighbors: Neighbors, batch_size: int | None) -> None:
    if tokens not in get_args(Tokens):
        raise ValueError(f"`tokens` is {tokens!r}. {did_you_mean(tokens, get_args(Tokens))}")
    if neighbors not in get_args(Neighbors):
        raise ValueError(f"`neighbors` is {neighbors!r}. {did_you_mean(neighbors, get_args(Neighbors))}")
    if batch_size is not None:
        check_count("batch_size", batch_size)


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
    name = CACHE_DIR if from_settings else "`cache_dir`"
    check_writable(folder, "Features", name)
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
    warn_of_scale(tiles, encoder)
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
            slide, scale = (
                open_tiled(
                    spots.adata, name, image, key=spots.key, own=None if image is not None else spots.image(name)
                ),
                tiles["slides"][name],
            )
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
