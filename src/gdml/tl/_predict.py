"""Predict expression from tiles."""

import os
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import check_count, count, some
from gdml._progress import tell
from gdml._provenance import provenance_key
from gdml._settings import settings
from gdml.spots.genes import GeneMatch, match_genes, warn_of_few
from gdml.spots.provenance import known_slides, training_slides
from gdml.spots.resolve import Spots
from gdml.spots.undo import all_or_nothing

from ._features import make_features
from ._record import versions

if TYPE_CHECKING:
    import torch

    from gdml.encoders.device import Precision
    from gdml.training import TrainedModel

IN_MEMORY = "in memory"


def predict(
    adata: AnnData,
    model: "TrainedModel | str | os.PathLike[str] | None" = None,
    *,
    image: Any = None,
    encoder: Any = None,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_pitch_um: float | None = None,
    library_key: str | None = None,
    spatial_key: str | None = None,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    batch_size: int = 512,
    gene_key: str | None = None,
    key_added: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Predict the expression of a model's panel genes at every spot.

    Genes need not have been measured. Tiles and features that are missing, or that differ from the model's geometry
    and encoder, are made first.

    Parameters
    ----------
    adata
        Spots of one or more slides.
    model
        A model from :func:`gdml.tl.fit`, or the folder of a saved model. None: the model that was fitted on
        this ``adata``.
    image
        Full-resolution images, as in :func:`gdml.pp.tile`, if tiles or features are missing.
    encoder
        The encoder of the model, if it was a module or function of your own.
    um_per_px, spot_pitch_um
        Micrometres per px of the images, or between spots, as in :func:`gdml.pp.tile`. Tiles are made again with them.
    library_key, spatial_key
        Column of ``adata.obs`` with the slide of each spot, and place of the spot centres in ``adata.obsm``. By default
        those that :func:`gdml.pp.tile` recorded, else ``'library_id'`` and ``'spatial'``.
    device, precision
        As in :func:`gdml.tl.fit`.
    batch_size
        Number of spots per batch.
    gene_key
        Column of ``adata.var`` with the names by which measured genes are matched to the panel, such as
        ``"gene_ids"``, or ``"var_names"``. None: ``var_names`` or a column of text, whichever matches more panel genes.
        Versions of Ensembl ids are ignored; genes with ambiguous names are not matched.
    key_added
        Name under which tiles, features and results are stored.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or a copy of ``adata``. Writes:

    ``.obsm['gdml']`` : DataFrame, float32, n_obs x panel
        Predicted expression of all panel genes, on the scale in ``.uns['gdml']['predict']['normalization']``.
    ``.layers['gdml']`` : float32, n_obs x n_vars
        The same for panel genes that ``adata`` has, NaN elsewhere. Not written (with a warning) if it would exceed
        ``gdml.settings.max_layer_gb``, or if no gene matches.
    ``.obsm['X_gdml']`` : float32, (n_obs, d)
        Embedding in the model's shared space, rows of unit length, for models that have one.
    ``.uns['gdml']['predict']`` : dict
        ``model``, ``name``, ``weights`` (hash), ``panel``, ``normalization``, ``high_genes``, ``n_matched`` genes,
        ``gene_key`` that they were matched by, ``in_training`` (slides that the model was trained on; absent where its
        training slides are unknown), ``provenance`` (key of what the predictions depend on) and ``versions``.

    Raises
    ------
    KeyError
        If coordinates are missing, no model is given and none was fitted, or a column that is named does not exist.
    ValueError
        If ``adata`` is a view or backed, or the encoder is not the model's.
    TypeError
        If ``model`` is not a model, or a number is expected and something else was passed.
    FileNotFoundError
        If the model, an image or a feature store does not exist.

    Warns
    -----
    UserWarning
        If slides are among the model's training slides: their predictions say nothing about new slides. If fewer than
        half of the panel genes match the genes of ``adata``.

    See Also
    --------
    gdml.tl.evaluate : Score the predictions against measured counts.

    Examples
    --------
    >>> import gdml
    >>> gdml.tl.predict(adata, "her2st-gdml")  # doctest: +SKIP
    """
    spots = Spots.resolve(adata, key=key_added, library_key=library_key, spatial_key=spatial_key, copy=copy)
    steps, match, seen = predict_spots(
        spots,
        model,
        image=image,
        encoder=encoder,
        um_per_px=um_per_px,
        spot_pitch_um=spot_pitch_um,
        device=device,
        precision=precision,
        batch_size=batch_size,
        gene_key=gene_key,
    )
    if seen:
        warnings.warn(
            f"The model was trained on {count(len(seen), 'slide')} of `adata` ({some(seen)}): its scores there "
            "say nothing about new slides. Predict other slides, or compare models with gdml.tl.cross_validate.",
            UserWarning,
            stacklevel=2,
        )
    warn_of_few(spots.adata, list(spots.adata.obsm[key_added]), match, gene_key, stacklevel=2)
    made = f"; {_scales(spots)}" if "tile" in steps else ""
    matched = f"; {match}" if spots.adata.n_vars else ""
    tell(f"predict: {len(match.columns)} genes at {count(len(spots), 'spot')} in obsm[{key_added!r}]{matched}{made}")
    return spots.adata if copy else None


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
) -> tuple[list[str], GeneMatch, list[str]]:
    """Predict and write as :func:`predict` describes.

    Returns
    -------
    Steps that were run, the genes that were matched, and the slides that the model was trained on.
    """
    from gdml.encoders.device import resolve_device, use_bf16
    from gdml.training.fabric import make_fabric
    from gdml.training.trained import weights_digest

    adata, key = spots.adata, spots.key
    spots.xy  # noqa: B018 checks them
    on = resolve_device(device)
    fabric = make_fabric(on, precision=precision)
    check_count("batch_size", batch_size)
    trained, path = find_model(spots, model)
    match = match_genes(adata, trained.panel, gene_key)
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
        values, embedding = _predict_rows(spots, trained, fabric, batch_size)
        slides = known_slides(spots)
    predicted = pd.DataFrame(values, index=adata.obs_names, columns=pd.Index(trained.panel))
    seen = None if trained.slides is None else training_slides(slides, trained.slides)

    adata.obsm[key] = predicted
    if embedding is not None:
        adata.obsm[_keys.embedding(key)] = embedding
    _write_layer(adata, predicted, match, key)
    weights = weights_digest(trained.module)
    about = {
        "weights": weights,
        "model": trained.provenance,
        "slides": [about["key"] for about in slides.values()],
        "precision": "bf16" if use_bf16(on, precision) else "fp32",
        "device": on.type,
    }
    record = {
        "model": path,
        "name": trained.name,
        "weights": weights,
        "panel": np.array(trained.panel, dtype=object),
        "normalization": dict(trained.normalization),
        "high_genes": np.array(trained.high_genes, dtype=object),
        "n_matched": match.n,
        "gene_key": match.gene_key,
        "provenance": provenance_key(about),
        "versions": versions(),
    }
    if seen is not None:
        record["in_training"] = np.array(seen, dtype=object)
    spots.write_record(_keys.PREDICT, record)
    return steps, match, seen or []


def find_model(spots: Spots, model: Any) -> tuple["TrainedModel", str]:
    """Find the model to use, and the folder it is saved in or ``"in memory"``."""
    from gdml.training.trained import TrainedModel, load

    if isinstance(model, TrainedModel):
        return model, model.path or IN_MEMORY
    if model is None:
        record = spots.record(_keys.FIT)
        if record is None:
            raise KeyError(
                f"No `model` is given, and uns[{spots.key!r}] records none: call gdml.tl.fit(adata) first, or pass a "
                "model or the folder of a saved one."
            )
        model = str(record["model"])
        if model == IN_MEMORY:
            raise ValueError("`model`: the fitted model could not be saved; pass the model that gdml.tl.fit returned.")
        if not os.path.exists(model):
            raise FileNotFoundError(
                f"No `model` is given, and the one that uns[{spots.key!r}]['fit'] records, {model!r}, does not exist: pass a "
                "model or the folder of a saved one, or call gdml.tl.fit(adata) again."
            )
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"`model` must be a trained model or the folder of one, found {type(model).__name__}.")
    return load(model), os.path.abspath(os.path.expanduser(model))


def _predict_rows(
    spots: Spots, trained: "TrainedModel", fabric: Any, batch_size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Predictions (n_obs, panel) and embedding (n_obs, d) in the order of the AnnData; the model returns to the CPU."""
    from gdml.spots.data import spot_data
    from gdml.training.loop import predict as predict_data

    data, order = spot_data(spots)
    try:
        fabric.to_device(trained.module)
        values, embedding = predict_data(trained.module, data, fabric, batch_size=batch_size)
    finally:
        trained.module.cpu()
    back = np.argsort(order)
    return values.numpy()[back], None if embedding is None else embedding.numpy()[back]


def _write_layer(adata: AnnData, predicted: pd.DataFrame, match: GeneMatch, key: str) -> None:
    """Write the predictions of the matched genes to a layer."""
    adata.layers.pop(key, None)
    size = adata.n_obs * adata.n_vars * 4 / 1e9
    if match.n and size > settings.max_layer_gb:
        logg.warning(
            f"predict: layers[{key!r}] would take {size:.1f} GB, more than gdml.settings.max_layer_gb = "
            f"{settings.max_layer_gb:g}; the predictions are in obsm[{key!r}] alone."
        )
    elif match.n:
        layer: NDArray[np.float32] = np.full(adata.shape, np.nan, np.float32)
        layer[:, match.columns[match.present]] = predicted.to_numpy()[:, match.present]
        adata.layers[key] = layer


def _scales(spots: Spots) -> str:
    """Micrometres per px of the slides, and their source."""
    slides = (spots.record(_keys.TILES) or {})["slides"]
    values = {f"{float(one['um_per_px']):.4g} um/px ({one['um_per_px_source']})" for one in slides.values()}
    return f"tiled at {some(sorted(values), 2)}"
