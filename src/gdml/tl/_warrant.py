"""How far each gene can be trusted: learnt by fit, written by predict."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml import _keys, metrics
from gdml._errors import count
from gdml.expression import Normalization
from gdml.spots.genes import GeneMatch
from gdml.spots.measured import grid_neighbors
from gdml.spots.resolve import Spots

if TYPE_CHECKING:
    from gdml.training.data import SpotData
    from gdml.training.loop import Run
    from gdml.training.warrant import Warrant

#: Training slides that the attainable PCC is averaged over, at most.
_MOST_SLIDES = 8


def make_warrant(
    spots: Spots,
    data: "SpotData",
    run: "Run",
    measured: pd.DataFrame,
    normalization: dict[str, Any],
    group_key: str | None,
) -> "Warrant | None":
    """Compare out-of-fold predictions with what was measured; None where no spots were held out."""
    from gdml.training.warrant import Warrant

    if run.out_of_fold is None:
        return None
    attainable = _attainable(spots, measured, normalization)
    return Warrant.make(run.out_of_fold, data, measured.columns, attainable, group_key)


def _attainable(spots: Spots, measured: pd.DataFrame, record: dict[str, Any]) -> NDArray[np.float64]:
    """Attainable PCC of each gene, averaged over slides; NaN where whole counts are not at hand."""
    scale = {name: record[name] for name in ("order", "target_sum", "log", "smooth")}
    normalization = Normalization(**scale)
    columns = spots.adata.var_names.get_indexer(measured.columns)
    names = list(spots.slides)
    found = []
    try:
        counts = spots.counts(record.get("layer"))
        for name in names[:: -(-len(names) // _MOST_SLIDES)]:
            rows = spots.slides[name]
            neighbors = grid_neighbors(spots, rows) if normalization.smooth else None
            found.append(metrics.attainable_pcc(counts[rows], columns, normalization, neighbors=neighbors))
    except (KeyError, ValueError) as error:
        logg.warning(f"fit: the attainable PCC of the genes is unknown, since counts cannot be split ({error})")
        return np.full(len(columns), np.nan)
    return metrics.nan_mean(np.stack(found), 0)


def write_warrant(spots: Spots, warrant: "Warrant | None", match: GeneMatch) -> dict[str, Any]:
    """Write the warrant of each gene to ``var``, and give what belongs in the record of the prediction.

    Without one, columns of an earlier prediction are removed.
    """
    adata, key = spots.adata, spots.key
    parts = {"warrant": "warrant", "pcc_expected": "pcc_expected", "attainable": "pcc_attainable"}
    if warrant is None:
        for column in {_keys.score(name, key) for name in parts} & set(adata.var):
            del adata.var[column]
        return {}
    genes = warrant.genes
    columns = match.columns[match.present]
    for name, part in parts.items():
        values = np.full(
            adata.n_vars, "" if name == "warrant" else np.nan, dtype=object if name == "warrant" else float
        )
        values[columns] = genes[part].to_numpy()[match.present]
        adata.var[_keys.score(name, key)] = values
    return {"genes": genes.copy(), "unseen": warrant.unseen, "n_unseen": warrant.n_units}


def tally(warrant: "Warrant | None") -> str:
    """Say how many genes have which warrant."""
    from gdml.training.warrant import CARRIED, PARTLY

    if warrant is None:
        return ""
    n = warrant.genes["warrant"].value_counts()
    return (
        f"; of {count(len(warrant.genes), 'gene')} {n.get(CARRIED, 0)} {CARRIED}, {n.get(PARTLY, 0)} {PARTLY} "
        f"({warrant.unseen})"
    )
