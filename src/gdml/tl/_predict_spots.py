"""Predict resolved spots, and write what was predicted."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import check_count, check_switch
from gdml._provenance import provenance_key
from gdml._settings import settings
from gdml.spots.genes import GeneMatch, match_genes
from gdml.spots.provenance import known_slides, training_slides
from gdml.spots.resolve import Spots
from gdml.spots.undo import all_or_nothing

from ._bounds import Asked, ask, make_bounds
from ._features import make_features
from ._model import find_model
from ._record import versions
from ._unfamiliar import OOD, judge, write_judged
from ._warrant import write_warrant

if TYPE_CHECKING:
    from gdml.training import TrainedModel
    from gdml.training.data import SpotData


def make_ready(device: Any, precision: Any, batch_size: int) -> Any:
    """Check how a model is to run, and give the Fabric that runs it; as :func:`gdml.tl.predict`."""
    from gdml.encoders.device import resolve_device
    from gdml.training.fabric import make_fabric

    fabric = make_fabric(resolve_device(device), precision=precision)
    check_count("batch_size", batch_size)
    return fabric


def predict_spots(
    spots: Spots,
    model: Any,
    *,
    image: Any = None,
    encoder: Any = None,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_pitch_um: float | None = None,
    device: Any = "auto",
    precision: Any = "auto",
    batch_size: int = 512,
    gene_key: str | None = None,
    clip: bool = True,
    interval: float | None = None,
    interval_for: str | None = None,
    calibrate_on: Any = None,
) -> tuple[list[str], GeneMatch, list[str], Asked | None]:
    """Predict and write as :func:`gdml.tl.predict` describes.

    Returns
    -------
    Steps that were run, the genes that were matched, the slides that the model was trained on, and the intervals.
    """
    from gdml.encoders.device import use_bf16
    from gdml.spots.data import spot_data
    from gdml.training.trained import weights_digest

    adata, key = spots.adata, spots.key
    check_switch("clip", clip)
    spots.xy  # noqa: B018 checks them
    fabric = make_ready(device, precision, batch_size)
    on = fabric.device
    trained, path = find_model(spots, model)
    match = match_genes(adata, trained.panel, gene_key)
    asked = ask(spots, trained, match, interval=interval, interval_for=interval_for, calibrate_on=calibrate_on)
    with all_or_nothing(adata, key):
        steps = make_features(
            spots,
            trained,
            image=image,
            encoder=encoder,
            um_per_px=um_per_px,
            spot_pitch_um=spot_pitch_um,
            device=device,
            precision=precision,
        )
        data, order = spot_data(spots)
        values, embedding = _predict_rows(data, order, trained, fabric, batch_size)
        unfamiliar = judge(spots, data, trained.familiarity)
        slides = known_slides(spots)
    bounds = None if asked is None else make_bounds(asked, values, spots, clip=clip)
    if clip:  # counts, and every log(x + 1) and mean of them, are at least 0
        values = values.clip(min=0)
    frame_of = lambda table: pd.DataFrame(table, index=adata.obs_names, columns=pd.Index(trained.panel))
    predicted = frame_of(values)
    seen = None if trained.slides is None else training_slides(slides, trained.slides)

    adata.obsm[key] = predicted
    if embedding is not None:
        adata.obsm[_keys.embedding(key)] = embedding
    _write_layer(adata, predicted, match, key)
    write_judged(adata, unfamiliar, key)
    for which in ("low", "high"):
        name = _keys.bound(which, key)
        for place in (adata.obsm, adata.layers):
            place.pop(name, None)
        if bounds is not None:
            adata.obsm[name] = frame_of(getattr(bounds, which))
            _write_layer(adata, adata.obsm[name], match, name)
    weights = weights_digest(trained.module)
    about = {
        "weights": weights,
        "model": trained.provenance,
        "slides": [about["key"] for about in slides.values()],
        "precision": "bf16" if use_bf16(on, precision) else "fp32",
        "device": on.type,
        "clip": clip,
    }
    record = {
        "model": path,
        "name": trained.name,
        "weights": weights,
        "panel": np.array(trained.panel, dtype=object),
        "normalization": dict(trained.normalization),
        "high_genes": np.array(trained.high_genes, dtype=object),
        "clip": clip,
        "n_matched": match.n,
        "gene_key": match.gene_key,
        "provenance": provenance_key(about),
        "versions": versions(),
    }
    frame = trained.module.frame
    if frame is not None and frame.config.targets == "slide":
        record["level_sd"] = frame.level_sd.cpu().numpy()
    if seen is not None:
        record["in_training"] = np.array(seen, dtype=object)
    record |= write_warrant(adata, trained.warrant, match.columns, key=key)
    if unfamiliar is not None:
        record[OOD] = unfamiliar.slides
    if bounds is not None:
        record["interval"] = bounds.record
    spots.write_record(_keys.PREDICT, record)
    return steps, match, seen or [], asked


def _predict_rows(
    data: "SpotData", order: NDArray[np.intp], trained: "TrainedModel", fabric: Any, batch_size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Predictions (n_obs, panel) and embedding (n_obs, d) in the order of the AnnData; the model returns to the CPU."""
    from gdml.training.loop import predict as predict_data

    try:
        fabric.to_device(trained.module)
        values, embedding = predict_data(trained.module, data, fabric, batch_size=batch_size)
    finally:
        trained.module.cpu()
    back = np.argsort(order)
    return values.numpy()[back], None if embedding is None else embedding.numpy()[back]


def _write_layer(adata: AnnData, values: pd.DataFrame, match: GeneMatch, key: str) -> None:
    """Write values of the matched genes to the layer ``key``."""
    adata.layers.pop(key, None)
    size = adata.n_obs * adata.n_vars * 4 / 1e9
    if match.n and size > settings.max_layer_gb:
        logg.warning(
            f"predict: layers[{key!r}] would take {size:.1f} GB, more than gdml.settings.max_layer_gb = "
            f"{settings.max_layer_gb:g}; the values are in obsm[{key!r}] alone."
        )
    elif match.n:
        layer: NDArray[np.float32] = np.full(adata.shape, np.nan, np.float32)
        layer[:, match.columns[match.present]] = values.to_numpy()[:, match.present]
        adata.layers[key] = layer
