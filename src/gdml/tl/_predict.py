"""Predict expression from tiles."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml import _keys
from gdml._settings import settings
from gdml.spots.coordinates import check_adata, spot_coordinates
from gdml.spots.data import spot_data
from gdml.spots.genes import GeneMatch, match_genes, why_none
from gdml.spots.undo import all_or_nothing

from ._features import make_features
from ._record import versions

if TYPE_CHECKING:
    import torch

    from gdml.encoders.device import Precision
    from gdml.training import TrainedModel


def predict(
    adata: AnnData,
    model: "TrainedModel | str | os.PathLike[str] | None" = None,
    *,
    image: Any = None,
    encoder: Any = None,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    batch_size: int = 512,
    gene_key: str | None = None,
    key_added: str = _keys.KEY,
    copy: bool = False,
) -> AnnData | None:
    """Predict the expression of a model's panel genes at every spot.

    Works on any AnnData with spots and images; genes need not have been measured. Tiles and features are made
    with the model's geometry and encoder where they are missing.

    Parameters
    ----------
    adata
        Spots of one or more slides.
    model
        What :func:`gdml.tl.fit` returned, or the folder of a saved model. None: the model that was fitted on
        this ``adata``.
    image
        Full-resolution images, as in :func:`gdml.pp.tile`, where tiles or features are missing.
    encoder
        The encoder of the model, where it was a module or function of the user's.
    device, precision
        As in :func:`gdml.tl.fit`.
    batch_size
        Spots that are predicted at once.
    gene_key
        Column of ``adata.var`` with the names by which measured genes are matched to the panel, such as
        ``"gene_ids"``, or ``"var_names"``. None: ``var_names``, or the column of text by which more of the panel is
        found. Versions of Ensembl ids are left aside; a name that several genes bear is not matched.
    key_added
        Name under which tiles, features and results are stored.
    copy
        Return a copy instead of writing to ``adata``.

    Returns
    -------
    None, or a copy of ``adata``. Sets:

    ``.obsm['gdml']`` : DataFrame, float32, n_obs x panel
        Predicted expression of all panel genes, on the scale in ``.uns['gdml']['predict']['normalization']``.
    ``.layers['gdml']`` : float32, n_obs x n_vars
        The same for those panel genes that ``adata`` has, NaN elsewhere. Not written (with a warning) where it
        would exceed ``gdml.settings.max_layer_gb``, or where no gene matches.
    ``.obsm['X_gdml']`` : float32, (n_obs, d)
        Embedding in the model's shared space, rows of unit length, where the model has one.
    ``.uns['gdml']['predict']`` : dict
        ``model``, ``name``, ``weights`` (hash), ``panel``, ``normalization``, ``high_genes``, ``n_matched``,
        ``gene_key`` that genes were matched by, ``versions``.

    Raises
    ------
    KeyError
        If coordinates are missing, no model is given and none was fitted, or ``gene_key`` is no column of ``var``.
    ValueError
        If ``adata`` is a view or backed, or its features come from another encoder than the model's.
    FileNotFoundError
        If the model, an image or a feature store is gone.

    See Also
    --------
    gdml.tl.evaluate : Score the predictions against measured counts.

    Examples
    --------
    >>> import gdml
    >>> gdml.tl.predict(adata, "her2st-gdml")  # doctest: +SKIP
    """
    from gdml.encoders.device import resolve_device
    from gdml.spots.resolve import Spots
    from gdml.training.fabric import make_fabric
    from gdml.training.loop import predict as predict_spots
    from gdml.training.trained import weights_digest

    check_adata(adata, copy=copy)
    spot_coordinates(adata, adata.uns.get(key_added, {}).get(_keys.TILES, {}).get("spatial_key", _keys.SPATIAL))
    on = resolve_device(device)
    fabric = make_fabric(on, precision=precision)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a whole number of at least 1, found {batch_size!r}.")
    trained, path = find_model(adata, model, key_added)
    match = match_genes(adata, trained.panel, gene_key)
    if copy:
        adata = adata.copy()
    with all_or_nothing(adata, key_added):
        make_features(adata, trained, image, encoder, on, precision, key_added)
        data, order = spot_data(Spots.resolve(adata, key=key_added))
        fabric.to_device(trained.module)
        values, embedding = predict_spots(trained.module, data, fabric, batch_size=batch_size)
        trained.module.cpu()
    back = np.argsort(order)
    predicted = pd.DataFrame(values.numpy()[back], index=adata.obs_names, columns=pd.Index(trained.panel))

    adata.obsm[key_added] = predicted
    if embedding is not None:
        adata.obsm[_keys.embedding(key_added)] = embedding.numpy()[back]
    _write_layer(adata, predicted, match, gene_key, key_added)
    adata.uns[key_added] = {
        **adata.uns[key_added],
        _keys.PREDICT: {
            "model": path,
            "name": trained.name,
            "weights": weights_digest(trained.module),
            "panel": np.array(trained.panel, dtype=object),
            "normalization": dict(trained.normalization),
            "high_genes": np.array(trained.high_genes, dtype=object),
            "n_matched": match.n,
            "gene_key": match.gene_key,
            "versions": versions(),
        },
    }
    logg.info(f"predict: {len(trained.panel)} genes at {adata.n_obs} spots in obsm[{key_added!r}]; {match}")
    return adata if copy else None


def find_model(adata: AnnData, model: Any, key: str) -> tuple["TrainedModel", str]:
    """Find the model, and say where it is saved."""
    from gdml.training import TrainedModel, load

    if isinstance(model, TrainedModel):
        return model, model.path or "in memory"
    if model is None:
        record = adata.uns.get(key, {}).get(_keys.FIT)
        if record is None:
            raise KeyError(
                f"No `model` is given, and uns[{key!r}] records none: call gdml.tl.fit(adata) first, or pass a "
                "model or the folder of a saved one."
            )
        model = str(record["model"])
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"`model` must be a trained model or the folder of one, found {type(model).__name__}.")
    return load(model), os.path.abspath(os.path.expanduser(model))


def _write_layer(adata: AnnData, predicted: pd.DataFrame, match: GeneMatch, gene_key: str | None, key: str) -> None:
    """Spread the predictions over the genes that were matched."""
    adata.layers.pop(key, None)
    size = adata.n_obs * adata.n_vars * 4 / 1e9
    if not match.n:
        if adata.n_vars:
            why = why_none(adata, predicted.columns, gene_key)
            logg.warning(f"predict: the predictions are in obsm[{key!r}] alone. {why}")
    elif size > settings.max_layer_gb:
        logg.warning(
            f"predict: layers[{key!r}] would take {size:.1f} GB, more than gdml.settings.max_layer_gb = "
            f"{settings.max_layer_gb:g}; the predictions are in obsm[{key!r}] alone."
        )
    else:
        layer: NDArray[np.float32] = np.full(adata.shape, np.nan, np.float32)
        layer[:, match.columns[match.present]] = predicted.to_numpy()[:, match.present]
        adata.layers[key] = layer
