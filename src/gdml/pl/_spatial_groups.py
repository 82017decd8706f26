"""Which maps a figure of expression shows: genes, slides, what was measured, what each model predicted."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import did_you_mean
from gdml.expression import Normalization
from gdml.metrics import pearson_per_gene

from ._results import is_optimistic

MEASURED = "measured"


class Panel(NamedTuple):
    """One map."""

    kind: str  # measured, or the key of the predictions
    values: NDArray[np.float64]  # of the spots of the slide
    pcc: float | None  # None where there is nothing to correlate with
    optimistic: bool = False  # its correlation flatters the model


class Group(NamedTuple):
    """One gene on one slide: measured, predicted, or both; the maps stand side by side."""

    gene: str
    library: str
    panels: list[Panel]


def home_of(adata: AnnData, keys: Sequence[str]) -> str:
    """Key under which the tiles are recorded: predictions of several models have them in common."""
    return next((key for key in (*keys, _keys.KEY) if _keys.TILES in adata.uns.get(key, {})), keys[0])


def find_groups(adata: AnnData, genes: list[str], slides: dict[str, NDArray[np.intp]], keys: list[str]) -> list[Group]:
    """List what is to be drawn: slides one after the other, each with all genes.

    One model: what is absent gets no map. Several models: all groups have the same maps, so that columns stay columns;
    a gene that a model did not predict is a map without values.

    Raises
    ------
    KeyError
        If a gene is unknown, or a model's predictions are not there.
    ValueError
        If ``genes`` is empty.
    """
    predicted = {key: adata.obsm[key] for key in keys if _is_table(adata, key)}
    homes = [*keys, _keys.KEY] if predicted else keys  # counts are measured once for all models
    source = next((name for key in homes for name in _measured(key) if _is_table(adata, name)), None)
    tables = predicted if source is None else {MEASURED: adata.obsm[source], **predicted}
    if not tables:
        raise KeyError(
            f"`adata.obsm` holds neither predictions ({keys[0]!r}) nor measured expression "
            f"({_keys.measured(keys[0])!r}); run gdml.tl.predict(adata), and gdml.tl.evaluate(adata) where there are counts."
        )
    for key in keys if len(keys) > 1 else []:
        if key not in predicted:
            known = [n for n in adata.obsm if _is_table(adata, n) and not n.endswith(("_measured", "_evaluated"))]
            raise KeyError(f"`key` names {key!r}, but adata.obsm has no such predictions. {did_you_mean(key, known)}")
    if not genes:
        raise ValueError("`genes` is empty; name one gene at least.")
    known = pd.Index([]).append([table.columns for table in tables.values()]).unique()
    for gene in genes:
        if gene not in known:
            raise KeyError(f"`genes` names {gene!r}, which is not in the panel. {did_you_mean(gene, known)}")
    if source is not None:
        _warn_of_two_scales(adata, source, list(predicted))
    flattered = {key for key in predicted if is_optimistic(adata, key)}
    return [
        _group(gene, library, rows, tables, flattered, all_maps=len(keys) > 1)
        for library, rows in slides.items()
        for gene in genes
    ]


def _measured(key: str) -> tuple[str, str]:
    """Places of measured expression: as it was scored, else as models learn it."""
    return _keys.evaluated(key), _keys.measured(key)


def _is_table(adata: AnnData, key: str) -> bool:
    return isinstance(adata.obsm.get(key), pd.DataFrame)


def _group(
    gene: str,
    library: str,
    rows: NDArray[np.intp],
    tables: dict[str, pd.DataFrame],
    flattered: set[str],
    *,
    all_maps: bool,
) -> Group:
    absent = np.full(len(rows), np.nan)
    values = {
        kind: table[gene].to_numpy(np.float64)[rows] if gene in table else absent for kind, table in tables.items()
    }
    if all(np.isnan(one).all() for one in values.values()):
        raise KeyError(f"{gene!r} is neither measured nor predicted on slide {library!r}.")
    measured = values.get(MEASURED, absent)
    panels = [
        Panel(kind, one, None if kind == MEASURED else _pcc(measured, one), kind in flattered)
        for kind, one in values.items()
        if all_maps or not np.isnan(one).all()
    ]
    return Group(gene, library, panels)


def _pcc(measured: NDArray[np.float64], predicted: NDArray[np.float64]) -> float | None:
    """Correlation over the spots that have both; None where no spot has."""
    both = ~np.isnan(measured) & ~np.isnan(predicted)
    return float(pearson_per_gene(measured[both, None], predicted[both, None])[0]) if both.any() else None


def _warn_of_two_scales(adata: AnnData, source: str, keys: list[str]) -> None:
    key = source.removesuffix("_evaluated").removesuffix("_measured")
    stored = adata.uns.get(key, {})
    record = (stored.get(_keys.EVALUATE, {}) if source == _keys.evaluated(key) else stored).get(_keys.NORMALIZATION)
    for key in keys:
        own = adata.uns.get(key, {}).get(_keys.PREDICT, {}).get(_keys.NORMALIZATION)
        if not record or not own:
            continue
        measured, predicted = Normalization.from_dict(record), Normalization.from_dict(own)
        if measured != predicted:
            warnings.warn(
                f"Measured ({measured}) and predicted expression ({predicted}, {key!r}) are on different scales; "
                f"run gdml.tl.evaluate(adata), which brings the counts to the scale of the model.",
                UserWarning,
                stacklevel=4,
            )
            return


def unit_of(adata: AnnData, keys: Sequence[str]) -> str:
    """Name the values, for the colour bar."""
    for key in (*keys, _keys.KEY):
        stored = adata.uns.get(key, {})
        record = stored.get(_keys.PREDICT, {}).get(_keys.NORMALIZATION) or stored.get(_keys.NORMALIZATION)
        if record:
            return Normalization.from_dict(record).unit
    return "expression"
