"""What predictions of each gene are worth, as :func:`gdml.tl.predict` wrote it."""

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from gdml import _keys

from ._common import two_digits

#: Verdicts as they are read alone, without the others beside them.
_ALONE = {"partly": "partly carried by the image", "not shown": "not shown to be carried by the image"}
WARRANT, EXPECTED, ATTAINABLE, LOW, HIGH = "warrant", "pcc_expected", "pcc_attainable", "pcc_low", "pcc_high"


def gene_table(adata: AnnData, key: str) -> pd.DataFrame | None:
    """Table of ``uns[key]["predict"]["genes"]``, a row per gene; from ``var`` where only that has it; else None."""
    stored: Any = adata.uns.get(key, {}).get(_keys.PREDICT, {}).get(_keys.GENES)
    if isinstance(stored, pd.DataFrame):
        return stored.set_axis(stored.index.astype(str))
    columns = {name: _keys.score(name, key) for name in (WARRANT, EXPECTED)}
    found = {name: adata.var[column] for name, column in columns.items() if column in adata.var}
    return pd.DataFrame(found) if found else None


def warrant_text(table: pd.DataFrame | None, gene: str) -> str:
    """Say what predictions of a gene are worth: ``"carried by the image, expected PCC 0.47"``; empty if unknown."""
    if table is None or gene not in table.index:
        return ""
    row = table.loc[gene]
    verdict, expected = row.get(WARRANT), row.get(EXPECTED, np.nan)
    parts = [] if pd.isna(verdict) or not str(verdict) else [_ALONE.get(str(verdict), str(verdict))]
    if not pd.isna(expected):
        parts.append(f"expected PCC {two_digits(float(expected))}")
    return ", ".join(parts)
