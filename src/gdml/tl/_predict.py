"""Predict expression from tiles."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import some
from gdml._settings import settings
from gdml.pp import embed, tile
from gdml.pp._undo import all_or_nothing
from gdml.pp._validate import check_adata, spot_coordinates

from ._record import versions
from ._spots import spot_data

if TYPE_CHECKING:
    import torch

    from gdml.encoders._device import Precision
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
        The same for those panel genes that are in ``var_names``, NaN elsewhere. Not written (with a warning)
        where it would exceed ``gdml.settings.max_layer_gb``, or where no gene matches.
    ``.obsm['X_gdml']`` : float32, (n_obs, d)
        Embedding in the model's shared space, rows of unit length, where the model has one.
    ``.uns['gdml']['predict']`` : dict
        ``model``, ``name``, ``panel``, ``normalization``, ``high_genes``, ``n_matched``, ``versions``.

    Raises
    ------
    KeyError
        If coordinates are missing, or no model is given and none was fitted.
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
    import torch

    from gdml.encoders._device import resolve_device, use_bf16
    from gdml.training import make_fabric, predict_rows

    check_adata(adata, copy=copy)
    spot_coordinates(adata, adata.uns.get(key_added, {}).get(_keys.TILES, {}).get("spatial_key", _keys.SPATIAL))
    on = resolve_device(device)
    fabric = make_fabric(on, bf16=use_bf16(on, precision))
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"`batch_size` must be a whole number of at least 1, found {batch_size!r}.")
    trained, path = _model(adata, model, key_added)
    if copy:
        adata = adata.copy()
    with all_or_nothing(adata, key_added):
        _make_features(adata, trained, image, encoder, on, precision, key_added)
        data, order = spot_data(adata, key=key_added)
        fabric.to_device(trained.module)
        values, embedding = predict_rows(trained.module, data, torch.arange(len(data)), fabric, batch_size=batch_size)
        trained.module.cpu()
    back = np.argsort(order)
    predicted = pd.DataFrame(values.numpy()[back], index=adata.obs_names, columns=pd.Index(trained.panel))

    adata.obsm[key_added] = predicted
    if embedding is not None:
        adata.obsm[_keys.embedding(key_added)] = embedding.numpy()[back]
    matched = _write_layer(adata, predicted, key_added)
    adata.uns[key_added] = {
        **adata.uns[key_added],
        _keys.PREDICT: {
            "model": path,
            "name": trained.name,
            "panel": np.array(trained.panel, dtype=object),
            "normalization": dict(trained.normalization),
            "high_genes": np.array(trained.high_genes, dtype=object),
            "n_matched": matched,
            "versions": versions(),
        },
    }
    logg.info(
        f"predict: {len(trained.panel)} genes at {adata.n_obs} spots in obsm[{key_added!r}]; "
        f"{matched} of them are in var_names"
    )
    return adata if copy else None


def _model(adata: AnnData, model: Any, key: str) -> tuple["TrainedModel", str]:
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


def _make_features(
    adata: AnnData, model: "TrainedModel", image: Any, encoder: Any, device: Any, precision: Any, key: str
) -> None:
    """Tile and embed with the model's geometry and encoder, where that has not been done."""
    want = model.tiles
    tiles = adata.uns.get(key, {}).get(_keys.TILES)
    if tiles is None or not _same_geometry(tiles, want):
        logg.info(f"predict: running gdml.pp.tile(adata) with the model's geometry ({_geometry_text(want)})")
        keys = {"library_key": _keys.LIBRARY, "spatial_key": _keys.SPATIAL} if tiles is None else tiles
        tile(
            adata,
            want["tile_um"],
            tile_px=want["tile_px"],
            n_side=want["n_side"],
            image=image,
            library_key=str(keys["library_key"]),
            spatial_key=str(keys["spatial_key"]),
            key_added=key,
        )
    features = adata.uns[key].get(_keys.FEATURES)
    if features is None or not _same_features(features, model):
        name = model.features["encoder"]
        logg.info(f"predict: running gdml.pp.embed(adata, encoder={name!r}), the model's encoder")
        made = _encoder(model, encoder)
        embed(
            adata,
            made,
            tokens=model.features["tokens"],
            neighbors=model.features.get("neighbors", "exact"),
            image=image,
            device=device,
            precision=precision,
            key=key,
        )


def _encoder(model: "TrainedModel", encoder: Any) -> Any:
    """Make the encoder of the model, and check that it is the same one."""
    from gdml.encoders import get_encoder

    name, identity = model.features["encoder"], model.features["identity"]
    mend = "pass the encoder that it was trained with: gdml.tl.predict(adata, model, encoder=...)"
    if encoder is None:
        try:
            encoder = get_encoder(name)
        except ValueError as error:
            raise ValueError(f"The model's encoder is {name!r}, which is not built in: {mend}.") from error
    else:
        encoder = get_encoder(encoder)
    if encoder.identity != identity:
        raise ValueError(f"The model's encoder is {identity!r}, found {encoder.identity!r}: {mend}.")
    return encoder


def _same_geometry(tiles: Any, want: dict[str, Any]) -> bool:
    um = float(tiles["tile_um"])
    same_um = not np.isfinite(um) if want["tile_um"] is None else bool(np.isclose(um, want["tile_um"]))
    return same_um and all(int(tiles[k]) == want[k] for k in ("tile_px", "n_side"))


def _geometry_text(want: dict[str, Any]) -> str:
    side = f"{want['tile_um']:g} um" if want["tile_um"] else "native pixels"
    return f"tiles of {want['tile_px']} px, {side}, {want['n_side']} x {want['n_side']}"


def _same_features(features: Any, model: "TrainedModel") -> bool:
    kind = lambda record: (*(str(record[k]) for k in ("identity", "tokens")), str(record.get("neighbors", "exact")))
    return "views" in features and kind(features) == kind(model.features)  # gdml 0.1 knew no views


def _write_layer(adata: AnnData, predicted: pd.DataFrame, key: str) -> int:
    """Spread the predictions over ``var_names``; give the number of genes that match."""
    at = adata.var_names.get_indexer(predicted.columns)
    matched = int((at >= 0).sum())
    adata.layers.pop(key, None)
    size = adata.n_obs * adata.n_vars * 4 / 1e9
    if not matched:
        if adata.n_vars:
            logg.warning(
                f"predict: none of the {predicted.shape[1]} panel genes ({some(predicted.columns)}) is in var_names "
                f"({some(adata.var_names)}); the predictions are in obsm[{key!r}] alone."
            )
    elif size > settings.max_layer_gb:
        logg.warning(
            f"predict: layers[{key!r}] would take {size:.1f} GB, more than gdml.settings.max_layer_gb = "
            f"{settings.max_layer_gb:g}; the predictions are in obsm[{key!r}] alone."
        )
    else:
        layer: NDArray[np.float32] = np.full(adata.shape, np.nan, np.float32)
        layer[:, at[at >= 0]] = predicted.to_numpy()[:, at >= 0]
        adata.layers[key] = layer
    return matched
