"""The best correlation that the counts of the spots allow, gene by gene."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scanpy import logging as logg

from gdml import metrics
from gdml.expression import Normalization

from .measured import grid_neighbors
from .resolve import Spots

#: Slides that the attainable PCC is averaged over, at most.
_MOST_SLIDES = 8


def panel_attainable(
    spots: Spots,
    genes: Sequence[str],
    normalization: Normalization,
    *,
    layer: str | None = None,
    slides: Sequence[str] | None = None,
) -> NDArray[np.float64]:
    """Attainable PCC of each gene (:func:`gdml.metrics.attainable_pcc`), averaged over eight slides at most.

    Parameters
    ----------
    spots
        With raw counts.
    genes
        Of ``var_names``. Where the normalisation scales spots to the total of the panel, it is that of these genes.
    normalization
        How the measured values were normalised.
    layer
        Layer of the counts; None: ``X``.
    slides
        Names; None: all.

    Returns
    -------
    (M,) NaN, with a line in the log, where whole counts are not at hand.
    """
    names = list(spots.slides if slides is None else slides)
    columns = spots.adata.var_names.get_indexer(pd.Index(genes))
    found = []
    try:
        counts = spots.counts(layer)
        for name in names[:: -(-len(names) // _MOST_SLIDES)]:
            rows = spots.slides[name]
            neighbors = grid_neighbors(spots, rows) if normalization.smooth else None
            found.append(metrics.attainable_pcc(counts[rows], columns, normalization, neighbors=neighbors))
    except (KeyError, ValueError) as error:
        logg.warning(f"The attainable PCC of the genes is unknown, since counts cannot be split ({error})")
        return np.full(len(columns), np.nan)
    return metrics.nan_mean(np.stack(found), 0)
