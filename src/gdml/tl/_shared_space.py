"""Spots in the space that image and expression share."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml import _keys
from gdml._errors import some
from gdml.expression import Normalization
from gdml.models import get_model, list_models
from gdml.spots.genes import match_as_predicted, match_names, why_few
from gdml.spots.measured import measured_expression
from gdml.spots.resolve import Spots
from gdml.training.trained import weights_digest

from ._predict_spots import predict_spots

if TYPE_CHECKING:
    from gdml.training import TrainedModel

_CHUNK = 1 << 16  # spots whose expression is embedded at once


def check_shared_space(trained: "TrainedModel") -> None:
    """Refuse a model without a shared space.

    Raises
    ------
    ValueError
        If models of its kind have none, or its losses were switched off.
    """
    if not trained.module.shared_space:
        having = [name for name in list_models() if get_model(name).shared_space]
        raise ValueError(
            f"`model` is a {trained.name!r}, which has no space that image and expression share; "
            f"{', '.join(map(repr, having))} have one: gdml.tl.fit(adata, model={having[0]!r})."
        )
    embed_expression(trained, np.zeros((1, len(trained.panel)), np.float32))  # raises where it was switched off


def embed_expression(trained: "TrainedModel", values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Embed normalised expression (N, M) in the shared space, (N, d)."""
    module = trained.module
    with torch.no_grad():
        chunks = torch.from_numpy(values).split(_CHUNK)
        ready = (chunk if module.frame is None else module.frame.targets(chunk) for chunk in chunks)
        return torch.cat([module.embed_expression(chunk).float() for chunk in ready]).numpy()


def expression_of_spots(
    spots: Spots, trained: "TrainedModel", *, layer: str | None, gene_key: str | None, name: str
) -> NDArray[np.float32]:
    """Measured expression of the model's panel, normalised as its training data, (n_obs, M).

    Values of :func:`gdml.pp.normalize` are used if they are on that scale, else the counts are normalised.

    Parameters
    ----------
    spots
        Spots with expression.
    trained
        The model.
    layer, gene_key
        As in :func:`gdml.tl.evaluate`.
    name
        Name of the argument, for messages.

    Raises
    ------
    ValueError
        If a gene of the panel was not measured, or the counts are not raw counts.
    """
    panel, norm = list(trained.panel), Normalization.from_dict(trained.normalization)
    record = spots.record(_keys.NORMALIZATION) or {}
    ready = spots.adata.obsm.get(_keys.measured(spots.key))
    if not (
        layer is gene_key is None
        and isinstance(ready, pd.DataFrame)
        and list(record.get("panel", ())) == list(ready.columns) == panel
        and Normalization.from_dict(record) == norm
    ):
        match = match_as_predicted(spots.adata, panel, gene_key, spots.record(_keys.PREDICT) or {})
        if not match.n:
            why = why_few(spots.adata, panel, match, gene_key)
            raise ValueError(f"The expression of `{name}` can't be embedded. {why}")
        layer = record.get("layer") if layer is None else layer
        ready = measured_expression(spots, panel, norm, layer=layer, columns=match.columns)
    _refuse_absent(ready, name)
    return ready.to_numpy(np.float32)


def profiles_of_panel(profiles: "pd.DataFrame | pd.Series[Any]", trained: "TrainedModel") -> pd.DataFrame:
    """Expression profiles from a table: one row each, columns as in the panel.

    Raises
    ------
    ValueError
        If a gene of the panel is absent, a value is NaN or infinite, or two profiles have one name.
    """
    table = profiles.to_frame().T if isinstance(profiles, pd.Series) else profiles
    if isinstance(profiles, pd.Series) and profiles.name is None:
        table.index = pd.Index(["profile"])
    if not len(table):
        raise ValueError("`adata` is a table without rows; pass one row per profile and one column per gene.")
    if not table.index.is_unique:
        raise ValueError(f"`adata` has profiles with the same name ({some(table.index[table.index.duplicated()])}).")
    match = match_names(pd.Index(table.columns.astype(str), dtype=object), trained.panel, "the profiles' genes")
    values = np.full((len(table), len(trained.panel)), np.nan, np.float32)
    values[:, match.present] = table.iloc[:, match.columns[match.present]].to_numpy(np.float32)
    panel = pd.DataFrame(values, index=table.index.astype(str), columns=list(trained.panel))
    _refuse_absent(panel, "adata")
    return panel


def _refuse_absent(expression: pd.DataFrame, name: str) -> None:
    bad = ~np.isfinite(expression.to_numpy()).all(0)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {expression.shape[1]} panel genes ({some(expression.columns[bad])}) are absent from `{name}`, "
            "ambiguous or not finite: expression can't be embedded without them. Name the column with the panel's names "
            "with gene_key=, compare images instead, or train on genes that all slides have: "
            "gdml.pp.normalize(adata, genes=...)."
        )


def check_predicted(spots: Spots, trained: "TrainedModel", *, name: str) -> None:
    """Refuse spots with predictions of another model, which would be replaced or lie in another space.

    Raises
    ------
    ValueError
        If there are such predictions.
    """
    before = spots.record(_keys.PREDICT)
    if before is not None and before.get("weights") != weights_digest(trained.module):
        raise ValueError(
            f"The predictions of `{name}` (obsm[{spots.key!r}]) are of another model ({before['name']!r}, "
            f"{str(before.get('model', 'of a comparison'))!r}): replace them with gdml.tl.predict({name}, model), or pass "
            "another name as key=."
        )


def images_of_spots(
    spots: Spots, trained: "TrainedModel", *, device: Any, precision: Any, name: str
) -> NDArray[np.float32]:
    """Embedded images of all spots, (n_obs, d), predicted if missing."""
    place = _keys.embedding(spots.key)
    if spots.record(_keys.PREDICT) is None or place not in spots.adata.obsm:
        logg.info(f"retrieve: running gdml.tl.predict({name}, model)")
        predict_spots(spots, trained, device=device, precision=precision)
    return np.asarray(spots.adata.obsm[place], np.float32)
