"""Nearest spots in the space that image and expression share."""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import check_count, count, did_you_mean, some
from gdml._progress import tell
from gdml.spots.resolve import Spots
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
    """Find the nearest spots in the space that image and expression share.

    For instance the training spots nearest to a tile, by their expression or their images, or the tiles nearest to an
    expression profile. The search is exact.

    Parameters
    ----------
    adata
        Spots to find neighbours of; or expression profiles, normalised as the model's training data, one row each, with
        the panel's genes as columns (a Series for one profile). A SpatialData with one table works as well.
    reference
        Spots to search, usually the training spots.
    model
        A model with a shared space from :func:`gdml.tl.fit`, or the folder of a saved one. None: the model that was
        fitted on ``reference``, else the one that ``adata`` or ``reference`` was predicted with.
    query
        Modality of ``adata``: ``"image"`` (default), or the measured ``"expression"`` (always that of profiles).
    target
        Modality of ``reference``. By default the other one.
    n_neighbors
        Number of neighbours of each query.
    spots
        Names of the spots of ``adata`` to find neighbours of; all by default.
    include_self
        Whether a spot that is in ``reference`` too (same name and slide) may be its own neighbour.
    layer
        Layer with the raw counts, if expression has to be normalised. By default the recorded one, else ``X``.
    gene_key
        Column of ``var`` with the names of the panel, as in :func:`gdml.tl.predict`, if expression has to be
        normalised.
    device, precision
        As in :func:`gdml.tl.fit`.
    key
        Name under which tiles, features and predictions are stored, in both AnnData.

    Returns
    -------
    DataFrame, one row per query and neighbour, nearest first, with the columns

    ``query``
        Name of the spot or profile.
    ``rank``
        1 for the nearest.
    ``match``, ``library``
        Name of the spot in ``reference``, and its slide. Of equally near spots the first is taken.
    ``distance``, ``similarity``
        Cosine distance, 0 to 2, and 1 minus that.

    Writes to the AnnData whose modality it is (there is no ``copy``, since the table is returned):

    ``.obsm['X_gdml']``
        Embedded images, if missing, with the other results of :func:`gdml.tl.predict`.
    ``.obsm['X_gdml_expression']`` : float32, (n_obs, d)
        Embedded expression.

    Raises
    ------
    KeyError
        If no model is given and none was used, or a name of ``spots`` is not in ``adata``.
    ValueError
        If the model has no shared space; if expression is needed of spots that lack panel genes; if ``n_neighbors``
        is larger than the reference; if there are predictions of another model under ``key``.
    TypeError
        If ``reference`` is not an AnnData, or ``n_neighbors`` not a number.

    Examples
    --------
    >>> import gdml
    >>> gdml.tl.retrieve(test, train, model=model, spots="10x12-C6")  # doctest: +SKIP
    >>> gdml.tl.retrieve(train.obsm["gdml_measured"].groupby(train.obs["cluster"]).mean(), train)  # doctest: +SKIP
    """
    given = isinstance(adata, pd.DataFrame | pd.Series)
    query, target = _modalities(query, target, given)
    among = Spots.resolve(reference, key=key, coordinates=False, name="reference")
    asked = adata if given else among if adata is reference else Spots.resolve(adata, key=key, coordinates=False)
    rows = _rows(asked.adata if isinstance(asked, Spots) else asked, spots)
    trained = _find_model(asked, among, model)
    own = None if include_self or not isinstance(asked, Spots) else _own_rows(asked, among)
    check_count("n_neighbors", n_neighbors)
    left = len(among) - int(own is not None and (own[rows] >= 0).any())
    if n_neighbors > left:
        raise ValueError(f"`n_neighbors` is {n_neighbors}, but `reference` has {count(left, 'spot')} to find.")

    import torch

    from gdml.models.bank import nearest_rows

    from . import _shared_space as space

    space.check_shared_space(trained)
    sides = [(asked, query, "adata"), (among, target, "reference")]
    for one, _, name in sides:
        if isinstance(one, Spots):
            space.check_predicted(one, trained, name=name)
    found: dict[tuple[int, str], NDArray[np.float32]] = {}
    names = asked.adata.obs_names if isinstance(asked, Spots) else pd.Index([])
    # expression first: it is quick, and raises errors before features are computed
    with ExitStack() as undo:
        for one, modality, name in sorted(sides, key=lambda side: side[1]):
            if (id(one), modality) in found:
                continue
            if not isinstance(one, Spots):
                profiles = space.profiles_of_panel(one, trained)
                names = profiles.index
                values = space.embed_expression(trained, profiles.to_numpy())
            elif modality == "expression":
                measured = space.expression_of_spots(one, trained, layer=layer, gene_key=gene_key, name=name)
                values = space.embed_expression(trained, measured)
            else:
                undo.enter_context(all_or_nothing(one.adata, key))
                values = space.images_of_spots(one, trained, device=device, precision=precision, name=name)
            found[id(one), modality] = values
    for one, modality, _ in sides:
        if isinstance(one, Spots) and modality == "expression":
            one.adata.obsm[_keys.expression_embedding(key)] = found[id(one), modality]

    queries, targets = (torch.from_numpy(found[id(one), modality]) for one, modality, _ in sides)
    numbers = None if own is None else (torch.from_numpy(own[rows]), torch.arange(len(targets)))
    cosines, matches = (x.numpy() for x in nearest_rows(queries[rows], targets, n_neighbors, numbers))
    similarity = cosines.astype(np.float64).clip(-1, 1).ravel()
    tell(f"retrieve: {count(n_neighbors, 'neighbour')} by {target} of {len(rows)} queries by {query}")
    return pd.DataFrame(
        {
            "query": np.repeat(names[rows], n_neighbors),
            "rank": np.tile(np.arange(1, n_neighbors + 1), len(rows)),
            "match": among.adata.obs_names[matches.ravel()],
            "library": among.library[matches.ravel()],
            "distance": 1 - similarity,
            "similarity": similarity,
        }
    )


def _modalities(query: Any, target: Any, given: bool) -> tuple[Modality, Modality]:
    for name, value in (("query", query), ("target", target)):
        if value is not None and value not in _OTHER:
            raise ValueError(f"`{name}` is {value!r}. {did_you_mean(str(value), _OTHER)}")
    if given and query == "image":
        raise ValueError("`query` is 'image', but `adata` holds expression profiles; omit `query`, or pass spots.")
    query = query or ("expression" if given else "image")
    return query, target or _OTHER[query]


def _rows(adata: Any, spots: str | Iterable[str] | None) -> NDArray[np.intp]:
    """Rows of the queries."""
    n, names = (len(adata), adata.index) if isinstance(adata, pd.DataFrame) else (1, None)
    if isinstance(adata, AnnData):
        n, names = adata.n_obs, adata.obs_names
    if spots is None:
        return np.arange(n)
    wanted = [spots] if isinstance(spots, str) else list(dict.fromkeys(spots))
    if names is None or not wanted:
        raise ValueError("`spots` chooses among the spots of `adata`; omit it, or name at least one.")
    rows = names.get_indexer(wanted)
    unknown = [spot for spot, row in zip(wanted, rows, strict=True) if row < 0]
    if unknown:
        raise KeyError(
            f"{len(unknown)} of {len(wanted)} `spots` are not in `adata`: {some(unknown)}. "
            f"{did_you_mean(unknown[0], names) if n <= 100_000 else ''}"
        )
    return rows


def _find_model(asked: Any, among: Spots, model: Any) -> "TrainedModel":
    from ._model import find_model

    if model is None:
        used = [(among, _keys.FIT), (asked, _keys.PREDICT), (among, _keys.PREDICT)]
        records = [one.record(part) for one, part in used if isinstance(one, Spots)]
        paths = [str(record["model"]) for record in records if record and os.path.isdir(str(record.get("model", "")))]
        if not paths:
            raise KeyError(
                f"No `model` is given, and uns[{among.key!r}] of `reference` and `adata` names no saved model: pass a "
                "model or the folder of a saved one."
            )
        model = paths[0]
    return find_model(among, model)[0]


def _own_rows(asked: Spots, among: Spots) -> NDArray[np.int64]:
    """Row of each spot in the reference, by name and slide; -1 if absent."""
    if asked is among:
        return np.arange(len(among))
    rows = among.adata.obs_names.get_indexer(asked.adata.obs_names)
    return np.where(among.library[rows] == asked.library, rows, -1).astype(np.int64)
