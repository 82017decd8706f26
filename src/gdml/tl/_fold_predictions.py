"""Predictions of all folds put together spot by spot: what is written of them, and what each gene is worth."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._settings import settings
from gdml.spots.attainable import panel_attainable
from gdml.spots.resolve import Spots

from ._folds import unseen
from ._intervals import PART
from ._warrant import write_warrant

if TYPE_CHECKING:
    from gdml.training.compare import Plan, Results
    from gdml.training.warrant import Warrant


class _Joined:
    """Values of every fold in their place; those of the first fold where a spot is in several.

    Attributes
    ----------
    panel
        Genes of all folds, in the order of ``var_names``.
    measured
        (n_obs, M) float32 expression, NaN where nothing was scored.
    fold
        (n_obs,) number of the fold that a spot was scored in, -1 for none.
    """

    def __init__(self, adata: AnnData, results: "Results") -> None:
        self._results, self._n = results, adata.n_obs
        panel = pd.Index([]).append([pd.Index(panel) for _, panel, _ in results.data.values()]).unique()
        self.panel = adata.var_names[adata.var_names.isin(panel)]
        self.measured = self._spread(lambda fold: results.data[fold][2])
        self.fold = np.full(adata.n_obs, -1)
        for number, (rows, *_) in reversed(list(enumerate(results.data.values()))):
            self.fold[rows] = number

    def predicted(self, label: str) -> NDArray[np.float32]:
        """Predictions of a model, (n_obs, M), of the first seed; NaN where it made none."""
        return self._spread(lambda fold: self._results.predictions.get((label, fold)))

    def _spread(self, values_of: Callable[[str], Any]) -> NDArray[np.float32]:
        spread = np.full((self._n, len(self.panel)), np.nan, np.float32)
        for name, (rows, genes, _) in reversed(self._results.data.items()):
            values = values_of(name)
            if values is not None:
                spread[np.ix_(rows, self.panel.get_indexer(genes))] = values
        return spread


def fold_warrants(spots: Spots, plan: "Plan", results: "Results") -> "dict[str, Warrant]":
    """Find what the predictions of each gene are worth, by model.

    Parameters
    ----------
    spots
        With raw counts.
    plan, results
        The comparison.

    Returns
    -------
    A warrant for each model that a run was finished of, as the model of :func:`gdml.tl.fit` has one, with the further
    column ``n_folds`` of ``genes``. None of them where the epoch is chosen on the test slides.
    """
    import torch

    from gdml.training.out_of_fold import OutOfFold, even_rows
    from gdml.training.warrant import Warrant

    labels = [
        candidate.label for candidate in plan.candidates if any(candidate.label == m for m, _ in results.predictions)
    ]
    if plan.protocol.select_on_test or not labels:
        return {}
    joined, held_out = _Joined(spots.adata, results), unseen(plan)
    order = np.concatenate(list(spots.slides.values()))
    data = replace(plan.source.spots, expression=torch.from_numpy(joined.measured[order]))
    kept = even_rows(data).numpy()
    scored = list(dict.fromkeys(spots.library[joined.fold >= 0]))
    attainable = panel_attainable(
        spots, list(joined.panel), plan.source.normalization, layer=plan.source.layer, slides=scored
    )
    by = "block" if held_out == PART else "group" if held_out == f"unseen {plan.group_key}" else "slide"
    found = {}
    for label in labels:
        predicted = joined.predicted(label)[order]
        rows = kept[np.isfinite(predicted[kept]).any(1)]
        fold = joined.fold[order][rows]
        parts = torch.from_numpy(rows), torch.from_numpy(fold), torch.from_numpy(predicted[rows])
        warrant = Warrant.make(OutOfFold(*parts, by), data, joined.panel, attainable, plan.group_key)
        n_folds = [len(np.unique(fold[np.isfinite(one)])) for one in predicted[rows].T]
        found[label] = replace(warrant, unseen=held_out, genes=warrant.genes.assign(n_folds=n_folds))
    return found


def as_table(warrants: "Mapping[str, Warrant]") -> pd.DataFrame:
    """Put warrants below each other, a row for each model and gene."""
    tables = [one.genes.reset_index().assign(model=label) for label, one in warrants.items()]
    if not tables:
        return pd.DataFrame()
    table = pd.concat(tables, ignore_index=True)
    return table[["model", *table.columns.drop("model")]]


def write_predictions(
    adata: AnnData,
    plan: "Plan",
    results: "Results",
    key_added: str,
    held_out: str,
    warrants: "Mapping[str, Warrant]",
) -> None:
    """Write the predictions of each model, what they are worth, and the measured expression of the same spots."""
    joined = _Joined(adata, results)
    panel = joined.panel
    columns = adata.var_names.get_indexer(panel)
    frame_of = lambda values: pd.DataFrame(values, index=adata.obs_names, columns=panel)
    layer = plan.source.layer
    for candidate in plan.candidates:
        predicted = joined.predicted(candidate.label)
        place = _keys.of_model(candidate.label, key_added)
        adata.obsm[place] = frame_of(predicted)
        adata.obsm[_keys.measured(place)] = frame_of(joined.measured)
        adata.uns[place] = {
            _keys.PREDICT: {
                "name": candidate.name,
                "protocol": plan.protocol.name,
                "optimistic": plan.protocol.select_on_test,
                "held_out": held_out,
                "normalization": plan.source.normalization.to_dict(),
                "panel": panel.to_numpy(dtype=object),
                **({} if layer is None else {"layer": layer}),
                **write_warrant(adata, warrants.get(candidate.label), columns, key=place),
            }
        }
        if adata.n_obs * adata.n_vars * 4 / 1e9 <= settings.max_layer_gb:
            values = np.full(adata.shape, np.nan, np.float32)
            values[:, columns] = predicted
            adata.layers[place] = values
