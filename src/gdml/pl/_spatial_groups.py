"""Maps of a figure: genes and slides, measured expression and the predictions of each model."""

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

from ._results import is_optimistic, is_table, measured_table, prediction_keys
from ._warrants import gene_table, warrant_text

MEASURED = "measured"


class Panel(NamedTuple):
    """A map."""

    kind: str  # "measured", or the key of the predictions
    values: NDArray[np.float64]  # of the spots of the slide
    pcc: float | None = None  # None without measured expression
    n_pcc: int = 0  # spots that the correlation is over
    optimistic: bool = False  # the model was selected on these spots
    stretched: float | None = None  # factor to the measured spread
    warrant: str = ""  # what the predictions are worth, where nothing was measured

    @property
    def n(self) -> int:
        """Number of spots with a value."""
        return int(np.count_nonzero(~np.isnan(self.values)))


class Group(NamedTuple):
    """Maps of a gene on a slide, measured, predicted or both, side by side."""

    gene: str
    library: str
    panels: list[Panel]


def home_of(adata: AnnData, keys: Sequence[str]) -> str:
    """Key under which the tiles are recorded, which predictions of several models share."""
    return next((key for key in (*keys, _keys.KEY) if _keys.TILES in adata.uns.get(key, {})), keys[0])


def find_groups(
    adata: AnnData, genes: list[str], slides: dict[str, NDArray[np.intp]], keys: list[str], *, stretch: bool
) -> list[Group]:
    """List the maps to draw: all genes of a slide, slide after slide.

    With one model, absent values get no map. With several models all groups have the same maps, so that columns are
    aligned; the map of a gene that a model did not predict has no values. With ``stretch``, predictions have the spread of
    measured expression.

    Raises
    ------
    KeyError
        If a gene is unknown, or predictions are missing.
    ValueError
        If ``genes`` is empty, or predictions are to be stretched and nothing was measured.
    """
    predicted = {key: adata.obsm[key] for key in keys if is_table(adata, key)}
    source = measured_table(adata, keys)
    # measured expression is drawn without predictions only under the default key: another key asks for predictions
    known = prediction_keys(adata)
    for key in keys:
        if key not in predicted and (len(keys) > 1 or key != _keys.KEY or source is None or known):
            call = "gdml.tl.predict(adata, model" + (")" if key == _keys.KEY else f", key_added={key!r})")
            hint = f" {did_you_mean(key, known)}" if known else ""
            raise KeyError(f"`key` names {key!r}, but adata.obsm has no such predictions; {call} writes them.{hint}")
    tables = predicted if source is None else {MEASURED: adata.obsm[source], **predicted}
    if not genes:
        raise ValueError("`genes` is empty; name one gene at least.")
    known = pd.Index([]).append([table.columns for table in tables.values()]).unique()
    for gene in genes:
        if gene not in known:
            raise KeyError(f"`genes` names {gene!r}, which is not in the panel. {did_you_mean(gene, known)}")
    if source is not None:
        _warn_if_scales_differ(adata, source, list(predicted))
    flattered = {key for key in predicted if is_optimistic(adata, key)}
    worth = {key: gene_table(adata, key) for key in predicted}
    groups = [
        _group(gene, library, {kind: _values(table, gene, rows) for kind, table in tables.items()}, flattered, worth)
        for library, rows in slides.items()
        for gene in genes
    ]
    if stretch:
        groups = [_stretched(group) for group in groups]
    if len(keys) == 1:
        groups = [g._replace(panels=[one for one in g.panels if one.n]) for g in groups]
    return groups


def _values(table: pd.DataFrame, gene: str, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Values of a gene at some spots; NaN if the table does not have it."""
    return table[gene].to_numpy(np.float64)[rows] if gene in table else np.full(len(rows), np.nan)


def _group(
    gene: str,
    library: str,
    values: dict[str, NDArray[np.float64]],
    flattered: set[str],
    worth: dict[str, pd.DataFrame | None],
) -> Group:
    if all(np.isnan(one).all() for one in values.values()):
        raise KeyError(f"{gene!r} is neither measured nor predicted on slide {library!r}.")
    measured = values.get(MEASURED)
    panels = []
    for kind, one in values.items():
        if kind == MEASURED:
            panels.append(Panel(kind, one))
        elif measured is None or np.isnan(measured).all():
            panels.append(Panel(kind, one, optimistic=kind in flattered, warrant=warrant_text(worth[kind], gene)))
        else:
            both = ~np.isnan(measured) & ~np.isnan(one)
            pcc = float(pearson_per_gene(measured[both, None], one[both, None])[0]) if both.any() else None
            panels.append(Panel(kind, one, pcc, int(both.sum()), kind in flattered))
    return Group(gene, library, panels)


def _stretched(group: Group) -> Group:
    """Give the predictions of a group the standard deviation of its measured expression, around their own mean.

    Spots that have both values count. What becomes negative is 0 where no measured value is negative.
    """
    measured = next((panel.values for panel in group.panels if panel.kind == MEASURED and panel.n), None)
    if measured is None:
        raise ValueError(
            f"`spread` is 'measured', but {group.gene!r} was not measured on slide {group.library!r}, and the spread of "
            "another slide is not that of this one. Leave `spread` out, or draw the slides and genes that were measured "
            "(`library_id`, `genes`)."
        )
    panels = []
    for panel in group.panels:
        both = ~np.isnan(measured) & ~np.isnan(panel.values)
        own = float(np.std(panel.values[both])) if both.any() else 0.0
        if panel.kind == MEASURED or own <= 1e-12:  # nothing to stretch
            panels.append(panel)
            continue
        factor, mean = float(np.std(measured[both])) / own, float(np.mean(panel.values[both]))
        wide = mean + factor * (panel.values - mean)
        wide = np.maximum(wide, 0.0) if np.nanmin(measured) >= 0 else wide
        panels.append(panel._replace(values=wide, stretched=factor))
    return group._replace(panels=panels)


def _warn_if_scales_differ(adata: AnnData, source: str, keys: list[str]) -> None:
    """Compare the normalisation of a table of measured expression with those of predictions."""
    scored = next((key for key in (*keys, _keys.KEY) if _keys.evaluated(key) == source), None)
    if scored is not None:  # evaluate brings the counts to the scale of the predictions
        record = adata.uns.get(scored, {}).get(_keys.PREDICT, {}).get(_keys.NORMALIZATION)
    else:
        record = adata.uns.get(source.removesuffix(_keys.measured("")), {}).get(_keys.NORMALIZATION)
    for key in keys:
        own = adata.uns.get(key, {}).get(_keys.PREDICT, {}).get(_keys.NORMALIZATION)
        if not record or not own:
            continue
        measured, predicted = Normalization.from_dict(record), Normalization.from_dict(own)
        if measured != predicted:
            warnings.warn(
                f"Measured ({measured}) and predicted expression ({predicted}, {key!r}) are on different scales; "
                f"run gdml.tl.evaluate(adata, key={key!r}), which brings the counts to the scale of the model.",
                UserWarning,
                stacklevel=4,
            )
            return


def unit_of(adata: AnnData, keys: Sequence[str]) -> str:
    """Label of the colour bar: the unit of normalised expression."""
    for key in (*keys, _keys.KEY):
        stored = adata.uns.get(key, {})
        record = stored.get(_keys.PREDICT, {}).get(_keys.NORMALIZATION) or stored.get(_keys.NORMALIZATION)
        if record:
            return Normalization.from_dict(record).unit
    return "expression"
