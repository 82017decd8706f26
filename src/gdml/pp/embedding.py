"""Encode the tiles of resolved spots, and store the features on disk."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import count, did_you_mean, some
from gdml._marker import CACHE_DIR, check_writable
from gdml._progress import bar, tell
from gdml.features import FeatureBank
from gdml.slides.neighbors import Neighbors
from gdml.spots.images import HIRES, tiled_image
from gdml.spots.resolve import Spots
from gdml.spots.tiles import tile_spots

from ._cluster import check_plan, embed_on_workers, settle
from ._embed_slide import EmbeddedSlide, SlideTask, embed_slide
from ._extract import Extractor
from ._names import names_of
from ._plan import Plan
from ._scale import warn_of_scale
from ._tokens import Tokens
from .stores import stores_folder

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
    client: Any = None,
) -> None:
    """Encode tiles and write their record, as :func:`gdml.pp.embed` describes; the arguments and errors are the same.

    Parameters
    ----------
    spots
        Resolved spots; tiles are laid with their defaults if they have none.
    encoder, tokens, neighbors, image, weights, encoder_name, batch_size, device, precision, compile, cache_dir, client
        As in :func:`gdml.pp.embed`.
    """
    if neighbors not in get_args(Neighbors):
        raise ValueError(f"`neighbors` is {neighbors!r}. {did_you_mean(neighbors, get_args(Neighbors))}")
    plan = Plan(encoder, tokens, weights, encoder_name, batch_size, device, precision, compile)
    folder = stores_folder(cache_dir)
    with _stored_in(folder, from_settings=cache_dir is None):
        if client is None:
            extractor = plan.make()
        else:
            check_plan(plan, client)
            plan = settle(plan, client)
            extractor = replace(plan, device="cpu").make()  # nothing is encoded here
        names = names_of(extractor.encoder)
        if spots.record(_keys.TILES) is None:
            logg.info("embed: the spots have no tiles yet, running gdml.pp.tile(adata) with its defaults")
            tile_spots(spots, tile_px=extractor.encoder.tile_px, image=image)
        _check_tiles(spots, extractor.encoder, image)
        tasks = _tasks(spots, neighbors, image, folder)
        if client is None:
            embedded = _encode_here(tasks, extractor)
        else:
            embedded = _encode_on_workers(tasks, extractor, client, plan)
        _tell(embedded, extractor, folder)
        _write(spots, extractor, neighbors, embedded, names)


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


def _tasks(spots: Spots, neighbors: Neighbors, image: Any, folder: Path) -> list[SlideTask]:
    tiles = spots.adata.uns[spots.key][_keys.TILES]
    return [
        SlideTask(
            name=name,
            source=tiled_image(
                spots.adata, name, image, key=spots.key, own=None if image is not None else spots.image(name)
            ),
            record=tiles["slides"][name],
            xy=spots.xy[rows],
            n_side=int(tiles["n_side"]),
            neighbors=neighbors,
            folder=folder,
        )
        for name, rows in spots.slides.items()
    ]


def _encode_here(tasks: Sequence[SlideTask], extractor: Extractor) -> dict[str, EmbeddedSlide]:
    """Encode one slide after the other."""
    embedded = {}
    with bar(0, desc="embed", unit="tile") as progress:

        def update(found: int, done: int) -> None:
            progress.total += found
            progress.update(done)

        for task in tasks:
            progress.set_description(f"embed {task.name}", refresh=False)
            embedded[task.name] = embed_slide(task, extractor, update)
    return embedded


def _encode_on_workers(
    tasks: Sequence[SlideTask], extractor: Extractor, client: Any, plan: Plan
) -> dict[str, EmbeddedSlide]:
    """Encode several slides at once, one a worker; the slides are returned in the order of the tasks."""
    embedded = {}
    with bar(len(tasks), desc="embed", unit="slide") as progress:
        for name, slide in embed_on_workers(client, tasks, plan, extractor.identity):
            embedded[name] = slide
            progress.update()
    return {task.name: embedded[task.name] for task in tasks}


def _tell(embedded: dict[str, EmbeddedSlide], extractor: Extractor, folder: Path) -> None:
    n_encoded, n_found = (sum(getattr(s, part) for s in embedded.values()) for part in ("n_encoded", "n_found"))
    tell(
        f"embed: {extractor.encoder.name}, {count(next(iter(embedded.values())).n_tokens, 'token')} per spot; "
        f"{n_encoded} tiles encoded, {n_found} found in {str(folder)!r}"
    )


def _write(
    spots: Spots,
    extractor: Extractor,
    neighbors: Neighbors,
    embedded: dict[str, EmbeddedSlide],
    names: NDArray | None,
) -> None:
    encoder, adata = extractor.encoder, spots.adata
    pooled = np.zeros((adata.n_obs, encoder.dim), np.float32)
    for name, rows in spots.slides.items():
        bank = FeatureBank(embedded[name].own)
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
            "n_tokens": next(iter(embedded.values())).n_tokens,
            "dim": encoder.dim,
            "neighbors": neighbors,
            "obsm": obsm,
            **({} if names is None else {"names": names}),
            "keys": {name: slide.key for name, slide in embedded.items()},
            "stores": {
                "own": {name: str(slide.own) for name, slide in embedded.items()},
                "neighbors": {name: str(slide.neighbors) for name, slide in embedded.items()},
            },
        },
    }
