"""Names of the features of an encoder, for the record beside an embedding.

The embedding itself stays an array: scanpy takes its first columns by position (``n_pcs``), which a DataFrame refuses.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gdml.encoders import Encoder


def names_of(encoder: "Encoder") -> NDArray[np.object_] | None:
    """Names of the columns of the embedding, (D,) str; None where the encoder declares none.

    Raises
    ------
    ValueError
        If they are not one distinct text for each column.
    """
    names = getattr(encoder, "feature_names", None)
    if names is None:
        return None
    names = list(names)
    if not all(isinstance(name, str) for name in names) or len(names) != encoder.dim or len(set(names)) != len(names):
        raise ValueError(
            f"`encoder`: the feature_names of {encoder.name!r} must be {encoder.dim} distinct texts, one for each column "
            f"of its embedding, found {len(names)}, of which {len(set(names))} differ; set encoder.feature_names to None "
            "to go without."
        )
    return np.array(names, dtype=object)
