"""Retrieve: the nearest spots in the space that image and expression share."""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import count, did_you_mean, some
from gdml.spots.coordinates import check_adata, library_of_each_spot
from gdml.spots.undo import all_or_nothing

if TYPE_CHECKING:
    import torch

    from gdml.encoders.device import Precision
    from gdml.training import TrainedModel

Modality: TypeAlias = Literal["image", "expression"]
_OTHER: dict[str, Modality] = {"image": "expression", "expression": "image"}


def retrieve(
    adata: "AnnData | pd.DataFrame | pd.Series[Any]",
    reference: AnnData,
    *,
    model: "TrainedModel | str | os.PathLike[str] | None" = None,
    query: Modality | None = None,
    target: Modality | None = None,
    n_neighbors: int = 10,
    spots: str | Iterable[str] | None = None,
    include_self: bool = False,
    layer: str | None = None,
    gene_key: str | None = None,
    device: "str | torch.device" = "auto",
    precision: "Precision" = "auto",
    key: str = _keys.KEY,
) -> pd.DataFrame:
    """Find the spots that lie nearest in the space that image and expression share.

    The nearest training spots of a tile, by their expression or their images; or the nearest tiles of an expression
    profile. The search is exact.

    Parameters
    ----------
    adata
        Spots that are asked about; or expression profiles on the model's scale, a row each, with the panel's genes as
        columns (one profile may be a Series).
    reference
        Spots to search among, the training spots as a rule.
    model
        What :func:`gdml.tl.fit` returned, or the folder of a saved model; one with a shared space. None: the model
        that was fitted on ``reference``, else the one that ``adata`` or ``reference`` was predicted with.
    query
        What of ``adata`` is asked about: ``"image"`` (default), or the measured ``"expression"`` (that of profiles).
    target
        What of ``reference`` is compared with it. By default the other of the two.
    n_neighbors
        Spots to find for each query.
    spots
        Names of the spots of ``adata`` that are asked about; by default all.
    include_self
        Whether a spot may find itself, where it is in ``reference`` too: the one of the same name on the same slide.
    layer
        Layer with the raw counts, where expression has to be normalised. By default the recorded one, else ``X``.
    gene_key
        Column of ``var`` with the names of the panel, as in :func:`gdml.tl.predict`, where expression has to be
        normalised.
    device, precision
        As in :func:`gdml.tl.fit`.
    key
        Name under which tiles, features and predictions are stored, in both.

    Returns
    -------
    DataFrame, a row for each query and neighbour, nearest first, with the columns

    ``query``
        Name of the spot or profile.
    ``rank``
        1 for the nearest.
    ``match``, ``library``
        Name of the spot in ``reference``, and its slide. Of spots equally near the first is taken.
    ``distance``, ``similarity``
        Cosine distance, 0 to 2, and 1 minus that.

    Writes, to the AnnData that it is asked of:

    ``.obsm['X_gdml']``
        Embedded images, where missing, by :func:`gdml.tl.predict` with all that it writes.
    ``.obsm['X_gdml_expression']`` : float32, (n_obs, d)
        Embedded expression.

    Raises
    ------
    KeyError
        If no model is given and none was used, or a name of ``spots`` is not in ``adata``.
    ValueError
        If the model has no shared space; if expression is asked of spots that lack panel genes; if ``n_neighbors``
        is larger than the reference; if there are predictions of another model under ``key``.

    Examples
    --------
    >>> import gdml
    >>> gdml.tl.retrieve(test, train, model=model, spots="10x12-C6")  # doctest: +SKIP
    >>> gdml.tl.retrieve(train.obsm["gdml_measured"].groupby(train.obs["cluster"]).mean(), train)  # doctest: +SKIP
    """
    given = isinstance(adata, pd.DataFrame | pd.Series)
    query, target = _modalities(query, target, given)
    check_adata(reference, name="reference")
    if not given:
        check_adata(adata)
    rows = _rows(adata, spots)
    trained = _find_model(adata, reference, model, key)
    own = None if given or include_self else _own_rows(adata, reference, key)
    if isinstance(n_neighbors, bool) or not isinstance(n_neighbors, int | np.integer) or n_neighbors < 1:
        raise ValueError(f"`n_neighbors` must be a whole number of at least 1, found {n_neighbors!r}.")
    left = reference.n_obs - int(own is not None and (own[rows] >= 0).any())
    if n_neighbors > left:
        raise ValueError(f"`n_neighbors` is {n_neighbors}, but `reference` has {count(left, 'spot')} to find.")

    import torch

    from gdml.models.bank import nearest_rows

    from . import _shared_space as space

    space.check_shared_space(trained)
    options: dict[str, Any] = {"key": key, "device": device, "precision": precision}
    measure: dict[str, Any] = {"key": key, "layer": layer, "gene_key": gene_key}
    sides = [(adata, query, "adata"), (reference, target, "reference")]
    for one, _, name in sides:
        if isinstance(one, AnnData):
            space.check_predicted(one, trained, key=key, name=name)
    found: dict[tuple[int, str], NDArray[np.float32]] = {}
    # expression first: it is quick, and what is refused is refused before hours are spent on features
    with ExitStack() as undo:
        for one, modality, name in sorted(sides, key=lambda side: side[1]):
            if (id(one), modality) in found:
                continue
            if not isinstance(one, AnnData):
                profiles = space.profiles_of_panel(one, trained)
                names = profiles.index
                values = space.embed_expression(trained, profiles.to_numpy())
            elif modality == "expression":
                values = space.embed_expression(trained, space.expression_of_spots(one, trained, name=name, **measure))
            else:
                undo.enter_context(all_or_nothing(one, key))
                values = space.images_of_spots(one, trained, name=name, **options)
            found[id(one), modality] = values
    for one, modality, _ in sides:
        if isinstance(one, AnnData) and modality == "expression":
            one.obsm[_keys.expression_embedding(key)] = found[id(one), modality]

    asked, among = (torch.from_numpy(found[id(one), modality]) for one, modality, _ in sides)
    numbers = None if own is None else (torch.from_numpy(own[rows]), torch.arange(len(among)))
    cosines, matches = (x.numpy() for x in nearest_rows(asked[rows], among, n_neighbors, numbers))
    if isinstance(adata, AnnData):
        names = adata.obs_names
    similarity = cosines.astype(np.float64).clip(-1, 1).ravel()
    return pd.DataFrame(
        {
            "query": np.repeat(names[rows], n_neighbors),
            "rank": np.tile(np.arange(1, n_neighbors + 1), len(rows)),
            "match": reference.obs_names[matches.ravel()],
            "library": _slides(reference, key)[matches.ravel()],
            "distance": 1 - similarity,
            "similarity": similarity,
        }
    )


def _modalities(query: Any, target: Any, given: bool) -> tuple[Modality, Modality]:
    for name, value in (("query", query), ("target", target)):
        if value is not None and value not in _OTHER:
            raise ValueError(f"`{name}` is {value!r}. {did_you_mean(str(value), _OTHER)}")
    if given and query == "image":
        raise ValueError("`query` is 'image', but `adata` holds expression profiles; leave `query` out, or pass spots.")
    query = query or ("expression" if given else "image")
    return query, target or _OTHER[query]


def _rows(adata: Any, spots: str | Iterable[str] | None) -> NDArray[np.intp]:
    """Rows that are asked about."""
    n, names = (len(adata), adata.index) if isinstance(adata, pd.DataFrame) else (1, None)
    if isinstance(adata, AnnData):
        n, names = adata.n_obs, adata.obs_names
    if spots is None:
        return np.arange(n)
    wanted = [spots] if isinstance(spots, str) else list(dict.fromkeys(spots))
    if names is None or not wanted:
        raise ValueError("`spots` chooses among the spots of `adata`; leave it out, or name one at least.")
    rows = names.get_indexer(wanted)
    unknown = [spot for spot, row in zip(wanted, rows, strict=True) if row < 0]
    if unknown:
        raise KeyError(
            f"{len(unknown)} of {len(wanted)} `spots` are not in `adata`: {some(unknown)}. "
            f"{did_you_mean(unknown[0], names) if n <= 100_000 else ''}"
        )
    return rows


def _find_model(adata: Any, reference: AnnData, model: Any, key: str) -> "TrainedModel":
    from ._predict import find_model

    if model is None:
        used = [(reference, _keys.FIT), (adata, _keys.PREDICT), (reference, _keys.PREDICT)]
        stored = [one.uns.get(key, {}).get(part) for one, part in used if isinstance(one, AnnData)]
        paths = [str(record["model"]) for record in stored if record and os.path.isdir(str(record["model"]))]
        if not paths:
            raise KeyError(
                f"No `model` is given, and uns[{key!r}] of `reference` and `adata` names none that is there: pass a "
                "model or the folder of a saved one."
            )
        model = paths[0]
    return find_model(reference, model, key)[0]


def _slides(adata: AnnData, key: str) -> NDArray[np.str_]:
    tiles = adata.uns.get(key, {}).get(_keys.TILES, {})
    return library_of_each_spot(adata, str(tiles.get("library_key", _keys.LIBRARY)))


def _own_rows(adata: AnnData, reference: AnnData, key: str) -> NDArray[np.int64]:
    """Row of each spot in the reference, by its name and slide; -1 where it isn't there."""
    if adata is reference:
        return np.arange(adata.n_obs)
    rows = reference.obs_names.get_indexer(adata.obs_names)
    return np.where(_slides(reference, key)[rows] == _slides(adata, key), rows, -1).astype(np.int64)
