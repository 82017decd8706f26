"""Predict one slide of a corpus, in whatever process it is run."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
from anndata import AnnData

from gdml import _keys
from gdml.corpus.manifest import Item
from gdml.corpus.outlines import outline_of
from gdml.pp.embedding import embed_spots
from gdml.pp.stores import has_features

from ._features import model_encoder
from ._model import as_model
from ._predict_image import image_spots
from ._predict_spots import predict_spots
from ._unfamiliar import OOD, unlike

if TYPE_CHECKING:
    from gdml.training import TrainedModel

PREDICT_SLIDES = "gdml.tl.predict_slides"
GROUP = "group"  # obs of the results, and column of the manifest


@dataclass(frozen=True)
class Options:
    """Arguments of :func:`gdml.tl.predict_slides` that a slide needs; plain values, since they travel to workers.

    Parameters
    ----------
    model
        Folder of the model.
    weights
        Digest of its weights.
    named
        What the results record as the place of the model.
    encoder
        Name of the encoder; None: the model's own.
    spacing_um, layout, tissue, min_tissue, precision, batch_size, clip, threads, interval, interval_for
        As in :func:`gdml.tl.predict_slides`.
    device
        Name of the device.
    cache_dir
        Folder whose features are used.
    keep_features
        Whether new ones are written there, too.
    """

    model: str
    weights: str
    named: str
    encoder: Any
    spacing_um: float | None
    layout: Any
    tissue: Any
    min_tissue: float
    precision: Any
    batch_size: int
    clip: bool
    threads: int
    device: str
    cache_dir: str
    keep_features: bool
    interval: float | None = None
    interval_for: str | None = None


def predict_slide(item: Item, result: Path, scratch: Path, *, options: Options) -> dict[str, Any]:
    """Predict a slide and write its AnnData.

    Parameters
    ----------
    item
        The slide.
    result
        Where the AnnData is written, as zarr.
    scratch
        Folder for its features; tiles that are found in it are not encoded again.
    options
        The model and how it is applied.

    Returns
    -------
    ``n_tiles``; ``in_training``, whether the model was trained on this slide; ``unlike``, why it is unlike the slides that
    the model was trained on, empty where it is not; ``verdict`` and ``unusual_spots``, as :func:`gdml.tl.predict_slides` has
    them, where the model can tell.
    """
    with _quiet(), _threads(options):
        trained, encoder = _load(options.model, options.weights, options.encoder)
        spots, *_ = image_spots(
            str(item.path),
            trained,
            encoder=encoder,
            um_per_px=item.um_per_px,
            key=_keys.KEY,
            library_id=item.name,
            spacing_um=options.spacing_um,
            layout=options.layout,
            tissue=outline_of(options.tissue, item),
            min_tissue=options.min_tissue,
            call=PREDICT_SLIDES,
        )
        how: dict[str, Any] = {
            "tokens": trained.features["tokens"],
            "device": options.device,
            "precision": options.precision,
        }
        keep = options.keep_features or has_features(spots, encoder, cache_dir=options.cache_dir, **how)
        embed_spots(
            spots,
            encoder,
            neighbors=trained.features.get("neighbors", "exact"),
            cache_dir=options.cache_dir if keep else scratch,
            **how,
        )
        _, _, seen, _ = predict_spots(
            spots,
            trained,
            encoder=encoder,
            device=options.device,
            precision=options.precision,
            batch_size=options.batch_size,
            clip=options.clip,
            interval=options.interval,
            interval_for=options.interval_for,
        )
        adata = spots.adata
        if item.group is not None:
            adata.obs[GROUP] = item.group
            adata.obs[GROUP] = adata.obs[GROUP].astype("category")
        adata.uns[_keys.KEY][_keys.PREDICT]["model"] = options.named
        if not options.keep_features:  # a later verb encodes the tiles again: they may be gone by then
            for part in ("stores", "keys"):
                del adata.uns[_keys.KEY][_keys.FEATURES][part]
        _write(adata, result)
        judged = adata.uns[_keys.KEY][_keys.PREDICT].get(OOD)
        record = {"n_tiles": adata.n_obs, "in_training": bool(seen), "unlike": unlike(judged).get(item.name, "")}
        if judged is not None:
            one = judged.loc[item.name]
            record |= {"verdict": str(one["verdict"]), "unusual_spots": float(one["unusual_spots"])}
        return record


def _write(adata: AnnData, result: Path) -> None:
    """Write a result as zarr of format 3, which has two files an array where format 2 has three."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        with anndata.settings.override(zarr_write_format=3):
            adata.write_zarr(result)


@lru_cache(maxsize=1)
def _load(model: str, weights: str, encoder: Any) -> tuple["TrainedModel", Any]:
    """Model and encoder, which a process reads once for all its slides; ``weights`` tells a folder that was changed."""
    trained = as_model(model)
    return trained, model_encoder(trained, encoder)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the lines and bars of each step out of the log: there are thousands of slides."""
    from scanpy import settings

    before = settings.verbosity
    settings.verbosity = 0
    try:
        yield
    finally:
        settings.verbosity = before


@contextmanager
def _threads(options: Options) -> Iterator[None]:
    """Compute with as many threads on every machine, since sums in another order may round otherwise."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
