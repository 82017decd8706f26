"""How far each gene can be trusted: learnt by fit, written by predict."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from gdml import _keys
from gdml._errors import count
from gdml.expression import Normalization
from gdml.spots.attainable import panel_attainable
from gdml.spots.resolve import Spots

if TYPE_CHECKING:
    from gdml.training.data import SpotData
    from gdml.training.loop import Run
    from gdml.training.warrant import Warrant


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
    scale, layer = Normalization.from_dict(normalization), normalization.get("layer")
    attainable = panel_attainable(spots, list(measured.columns), scale, layer=layer)
    return Warrant.make(run.out_of_fold, data, measured.columns, attainable, group_key)


def write_warrant(adata: AnnData, warrant: "Warrant | None", columns: NDArray[np.intp], *, key: str) -> dict[str, Any]:
    """Write the warrant of each gene to ``var``, and give what belongs in the record of the prediction.

    Without one, columns of an earlier prediction are removed.

    Parameters
    ----------
    adata
        The predicted spots.
    warrant
        Of the model.
    columns
        Column of each of its genes in ``adata``, -1 where it is absent.
    key
        Of the prediction.
    """
    parts = {"warrant": "warrant", "pcc_expected": "pcc_expected", "attainable": "pcc_attainable"}
    if warrant is None:
        for column in {_keys.score(name, key) for name in parts} & set(adata.var):
            del adata.var[column]
        return {}
    genes, present = warrant.genes, columns >= 0
    for name, part in parts.items():
        values = np.full(
            adata.n_vars, "" if name == "warrant" else np.nan, dtype=object if name == "warrant" else float
        )
        values[columns[present]] = genes[part].to_numpy()[present]
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
